"""What a running test uses: CPU time, memory, processes and disk of all that belongs to it.

From /proc, and from control groups where the host could make one for the worker (host.py): they also count what no
process shows, such as the time of children that nobody waited for. Standard library only: this file runs inside the
sandbox.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

TICKS = os.sysconf("SC_CLK_TCK")
MAX_FILES = 1000  # in the folder of a test
MAX_WAITING = 16  # tests that wait in the worker's socket, with their outputs
# All address spaces of a test together, in multiples of its memory: shared pages that no process has mapped at the
# moment are in no process's memory, but were in an address space when they were made.
ADDRESS_SPACES = 4


@dataclass
class Usage:
    """Of one test, as last seen. Times of processes that are gone and were not waited for stay in `seen`."""

    seen: dict[bytes, float] = field(default_factory=dict)  # by process and the time of its start
    group_cpu: float = 0.0  # what the control group had used before


class Meter:
    """Looks at the processes of a test. groups: descriptors of a control group's files, by what they tell."""

    def __init__(self, proc: int, groups: dict[str, int]):
        self.proc, self.groups = proc, groups
        with open(os.memfd_create("x"), "rb") as file:  # inputs and outputs are such files: they are not on disk
            self.in_memory = os.fstat(file.fileno()).st_dev
        fields = self.status("self")
        self.own_pages, self.own_space = int(fields[21]), int(fields[20])  # every fork shares them
        self.own_memory = self.group_memory()[0]

    def read(self, name: str) -> bytes:
        """A file of /proc, which tests do not see where there are namespaces."""
        with open(name, "rb", opener=lambda path, flags: os.open(path, flags, dir_fd=self.proc)) as file:
            return file.read()

    def status(self, name: str) -> list[bytes]:
        """The fields of /proc/N/stat from "state" on."""
        return self.read(f"{name}/stat").rpartition(b")")[2].split()

    def group_memory(self) -> tuple[int, int]:
        """Bytes of the control group: of processes alone, and with files in memory and shared pages; 0 without one."""
        if "memory" not in self.groups:
            return 0, 0
        lines = dict(line.split() for line in os.pread(self.groups["memory"], 1 << 14, 0).splitlines())
        processes = int(lines.get(b"anon", lines.get(b"rss", 0)))  # version 2, version 1
        return processes, processes + int(lines.get(b"shmem", 0)) + int(lines.get(b"sock", 0))

    def group_cpu(self) -> float:
        """Seconds that the control group has used; 0 without one."""
        if "cpu" not in self.groups:
            return 0.0
        text = os.pread(self.groups["cpu"], 64, 0).split()  # version 1: nanoseconds; 2: "usage_usec", microseconds
        return int(text[0]) / 1e9 if len(text) == 1 else int(text[1]) / 1e6

    def start(self) -> Usage:
        """For a test that begins."""
        return Usage(group_cpu=self.group_cpu())

    def processes(self, ancestor: int) -> dict[int, list[bytes]]:
        """`ancestor` and all below it, with their `stat`. Who loses its parent goes to the next subreaper or to the
        namespace's first process, so nothing leaves the tree."""
        fields = {}
        for name in os.listdir(self.proc):
            if name.isdigit():
                with suppress(OSError):  # it has ended meanwhile
                    fields[int(name)] = self.status(name)
        found = [ancestor]
        for parent in found:  # grows
            found += [pid for pid, stat in fields.items() if int(stat[1]) == parent]
        return {pid: fields[pid] for pid in found if pid in fields}

    def exceeded(self, usage: Usage, child: int, limits: dict) -> str | None:
        """Which limit `child` and all below it have reached together, if any: "cpu", "memory" or "processes"."""
        processes = self.processes(child)
        cpu, memory, space = self._sums(usage, processes)
        cpu = max(cpu, sum(usage.seen.values()), self.group_cpu() - usage.group_cpu if self.groups else 0)
        of_processes, of_all = self.group_memory()
        memory = max(memory, of_processes - self.own_memory) / (1 << 20)
        files = limits["disk_mb"] + (MAX_WAITING + 1) * limits["file_mb"]  # outputs are files in memory too
        if cpu >= limits["cpu_s"]:
            return "cpu"
        if memory > limits["memory_mb"] or space / (1 << 20) > ADDRESS_SPACES * limits["memory_mb"]:
            return "memory"
        if (of_all - self.own_memory) / (1 << 20) > limits["memory_mb"] + files:
            return "memory"
        return "processes" if len(processes) > limits["processes"] + 8 else None

    def _sums(self, usage: Usage, processes: dict[int, list[bytes]]) -> tuple[float, float, float]:
        """Seconds of CPU time, bytes of memory and of address space."""
        cpu = memory = space = 0.0
        for pid, fields in processes.items():
            own = sum(map(int, fields[11:13])) / TICKS
            usage.seen[b"%d %s" % (pid, fields[19])] = own
            cpu += own + sum(map(int, fields[13:15])) / TICKS
            if fields[0] == b"Z" and int(fields[17]) > 1:  # the first thread has ended, and shows nothing
                fields = self._other_thread(pid) or fields
            memory += max(0, int(fields[21]) - self.own_pages) * resource.getpagesize()
            space += max(0, int(fields[20]) - self.own_space)
        return cpu, memory, space

    def _other_thread(self, pid: int) -> list[bytes] | None:
        with suppress(OSError):
            folder = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.proc)
            try:
                others = [thread for thread in os.listdir(folder) if thread != str(pid)]
            finally:
                os.close(folder)
            return self.status(f"{pid}/task/{others[0]}") if others else None
        return None

    def unlinked(self, ancestor: int) -> int:
        """Bytes of files that a test holds open and that are in no folder any more."""
        total, seen = 0, set()
        for status in self._open_files(ancestor):
            on_disk = stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and status.st_dev != self.in_memory
            if on_disk and status.st_ino not in seen:
                seen.add(status.st_ino)
                total += status.st_blocks * 512
        return total

    def _open_files(self, ancestor: int) -> Iterator[os.stat_result]:
        for pid in self.processes(ancestor):
            with suppress(OSError):  # it has ended meanwhile
                folder = os.open(f"{pid}/fd", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.proc)
                try:
                    for name in os.listdir(folder):
                        with suppress(FileNotFoundError):  # closed meanwhile
                            yield os.stat(name, dir_fd=folder)
                finally:
                    os.close(folder)


# --- disk, where a test has a folder on it -------------------------------------------------------------


def is_full(folder: str, size: int) -> bool:
    """Whether a folder holds more than `size` bytes or MAX_FILES files, as a memory folder would not take more. What
    cannot be counted, since its path is too long or may not be read, counts as too much."""
    total, queue = 0, [folder]
    for place in queue:
        try:
            for entry in os.scandir(place):
                total += entry.stat(follow_symlinks=False).st_blocks * 512 + size // MAX_FILES
                if total > size:
                    return True
                if entry.is_dir(follow_symlinks=False):
                    queue.append(entry.path)
        except FileNotFoundError:  # gone meanwhile
            continue
        except OSError:
            return True
    return False


def remove(folder: str) -> None:
    """Remove a folder and all in it, however deep, and whatever rights it has, as far as this process may.

    Deep folders are moved up level by level, so that no path is long.
    """
    number = 0
    with suppress(OSError):
        os.chmod(folder, 0o700)
    while names := os.listdir(folder):
        for name in names:
            path = f"{folder}/{name}"
            if os.path.islink(path) or not os.path.isdir(path):
                os.unlink(path)
                continue
            with suppress(OSError):
                os.chmod(path, 0o700)
            for inner in os.listdir(path):
                number += 1
                if os.path.isdir(f"{path}/{inner}") and not os.path.islink(f"{path}/{inner}"):
                    with suppress(OSError):
                        os.chmod(f"{path}/{inner}", 0o700)
                    os.rename(f"{path}/{inner}", f"{folder}/moved-{os.getpid()}-{number}")
                else:
                    os.unlink(f"{path}/{inner}")
            os.rmdir(path)
    os.rmdir(folder)
