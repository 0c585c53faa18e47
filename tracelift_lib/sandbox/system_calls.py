"""The filter of system calls, as the kernel takes it: a program for its classic BPF machine (seccomp(2))."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

COLUMN = int(os.uname().machine == "aarch64")
AUDIT, CLONE, PRLIMIT, SOCKETPAIR = ((0xC000003E, 56, 302, 53), (0xC00000B7, 220, 261, 199))[COLUMN]
FIRST_NEW = 424
# By clone: a user, a machine's name, a network ..., and a process that is not below its caller (CLONE_PARENT)
DENIED_CLONES = 0x5E000000 | 0x8000


class SystemCalls(BaseModel):
    """system_calls.yaml: numbers of system calls by name, on x86-64 and arm64."""

    model_config = ConfigDict(extra="forbid")
    denied: dict[str, tuple[int, int]]
    allowed_new: dict[str, tuple[int, int]]
    denied_without_namespaces: dict[str, tuple[int, int]]
    denied_as_the_user: dict[str, tuple[int, int]]


def system_call_filter(namespaces: bool) -> bytes:
    """For a worker and all its children; `namespaces`: whether tests have some of their own.

    EPERM for what the file denies and for new namespaces by clone, but those of processes and mounts, which the worker
    makes. They need a capability, as mount does, and a test has none. (A second filter for each test would cost a tenth
    of its time.) ENOSYS, as from an older kernel, for new calls: so glibc falls back from clone3 to clone, whose flags
    a filter can read. prlimit is for the caller itself only, socketpair for streams. A call by another ABI (32 bit)
    ends the process.

    Raises:
        ValidationError: system_calls.yaml is wrong; names the key.
    """
    calls = SystemCalls.model_validate(yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text()))
    denied = dict(calls.denied)
    if not namespaces:
        denied |= calls.denied_without_namespaces | ({} if os.geteuid() == 0 else calls.denied_as_the_user)
    load, equal, at_least, any_bit, ret = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow, eperm, enosys = 0x80000000, 0x7FFF0000, 0x50000 | 1, 0x50000 | 38
    code = [(load, 0, 0, 4), (equal, 1, 0, AUDIT), (ret, 0, 0, kill)]
    code += [(load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (ret, 0, 0, kill)]
    code += [(at_least, 0, 2 * len(calls.allowed_new) + 1, FIRST_NEW)]
    for numbers in calls.allowed_new.values():
        code += [(equal, 0, 1, numbers[COLUMN]), (ret, 0, 0, allow)]
    code += [(ret, 0, 0, enosys)]
    for numbers in denied.values():
        if numbers[COLUMN] >= 0:
            code += [(equal, 0, 1, numbers[COLUMN]), (ret, 0, 0, eperm)]
    for number, bits in ((CLONE, DENIED_CLONES), (PRLIMIT, 0xFFFFFFFF)):
        code += [(equal, 0, 4, number), (load, 0, 0, 16), (any_bit, 0, 1, bits), (ret, 0, 0, eperm), (ret, 0, 0, allow)]
    # Of pairs of sockets only connected ones (types 1 and 5, not datagrams), which can send nothing to anybody else
    code += [(equal, 0, 6, SOCKETPAIR), (load, 0, 0, 24), (0x54, 0, 0, 0xF)]
    code += [(equal, 2, 0, 1), (equal, 1, 0, 5), (ret, 0, 0, eperm), (ret, 0, 0, allow)]
    return b"".join(struct.pack("HBBI", *line) for line in [*code, (ret, 0, 0, allow)])
