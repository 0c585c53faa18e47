"""Which tier of isolation this machine offers: in each, a probe tries to break out."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from contextlib import closing, nullcontext
from functools import cache
from pathlib import Path
from typing import get_args

from tracelift_lib.sandbox.host import SAFE_TIERS, Limits, SandboxError, Tier, Worker
from tracelift_lib.sandbox.running import Job, run_each
from tracelift_lib.sandbox.worker import landlock_version

# Tries what must fail, and last what must work. It prints the names of what it got.
PROBE = """
import os, sys
sys.stderr = sys.stdout
def attempt(name, action):
    try:
        action()
    except Exception:
        return
    print(name)
secret, open_folder, parent = sys.stdin.read().split("\\n")
attempt("reads_host_file", lambda: open(secret).read())
attempt("writes_host_folder", lambda: open(open_folder + "/written", "w"))
attempt("reads_environment", lambda: open("/proc/%s/environ" % parent).read())
attempt("signals_host", lambda: os.kill(int(parent), 0))
attempt("network", lambda: __import__("socket").socket().connect(("127.0.0.1", 9)))
attempt("root", lambda: os.setuid(0))
def work():
    import colorsys  # no module that the worker has loaded
    os.waitpid(os.fork() or os._exit(0), 0)
attempt("works", work)
"""


@cache
def tier_fault(tier: Tier) -> str | None:
    """Why this machine cannot offer the tier, or None if it can: starts it and lets a program try to break out."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return f"the sandbox needs Linux on x86-64 or arm64; this is {sys.platform} on {platform.machine()}"
    if tier == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed (Debian, Ubuntu: apt install bubblewrap)"
    if tier == "landlock" and landlock_version() < (3 if os.geteuid() == 0 else 6):
        return f"the kernel's Landlock has version {landlock_version()}; 3 is needed, without root 6"
    if tier not in get_args(Tier):
        return f"no such tier; there are {', '.join(get_args(Tier))}"
    try:
        got = _probe(tier)
    except (SandboxError, OSError) as error:
        return str(error)
    return None if got == ["works"] or tier == "none" else f"the probe did not come out as it must: {got}"


def _probe(tier: Tier) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="tracelift-probe-") as folder:
        os.chmod(folder, 0o777)
        secret = Path(folder, "secret")
        secret.touch(0o600)
        text = f"{secret}\n{folder}\n{os.getpid()}"
        with closing(Worker(tier, Limits())) as worker:
            (end,), (output,) = run_each(lambda: nullcontext(worker), Job(PROBE), "input", [text], lambda _, out: out)
    if end.code != 0:
        raise SandboxError(f"the probe ended with {end}: {output[-500:]}")
    return output.split()


def choose_tier(wanted: Tier | None = None) -> Tier:
    """The strongest safe tier that this machine offers, or `wanted` if it offers that. Probed once per process.

    Raises:
        SandboxError: there is none; says why for each, and what to do.
    """
    if wanted is not None and wanted not in get_args(Tier):
        raise SandboxError(f"no tier {wanted!r}; there are {', '.join(get_args(Tier))}")
    for tier in (wanted,) if wanted else SAFE_TIERS:
        if tier_fault(tier) is None:
            return tier
    if wanted:
        offered = [tier for tier in SAFE_TIERS if tier != wanted and tier_fault(tier) is None]
        instead = f"it offers {', '.join(offered)}" if offered else "nor another safe one"
        raise SandboxError(f"this machine does not offer tier {wanted!r}: {tier_fault(wanted)}\n{instead}")
    reasons = "\n".join(f"  {tier}: {tier_fault(tier)}" for tier in SAFE_TIERS)
    raise SandboxError(
        f"no safe place for model-written programs on this machine:\n{reasons}\nInstall bubblewrap, or name the tier "
        "'none' where the whole machine is disposable: programs can then reach all that this user can."
    )
