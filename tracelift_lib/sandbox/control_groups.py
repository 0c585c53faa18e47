"""A control group for a sandbox worker, where the machine lets us make one (as root, or in a delegated subtree).

It counts what no process shows: CPU time of children that nobody waited for, memory behind sockets and unmapped shared
pages; and its processes can be ended, whoever their parent is. Versions 1 and 2 (Linux's cgroups(7)).
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "tracelift-"
STALE_SECONDS = 3600
# What is read, by the controller of version 1 and by the file of version 2
FILES = {"memory": ("memory", "memory.stat", "memory.stat"), "cpu": ("cpuacct", "cpuacct.usage", "cpu.stat")}
# As the worker's first process enters its groups before it becomes the worker: group files, "--", its command
ENTER = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 1; shift; done; shift; exec "$@"'


@dataclass
class ControlGroup:
    """folders: to enter; files: what to read, by "memory" and "cpu". Both empty where none could be made."""

    folders: list[Path] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    def command(self, command: list[str]) -> list[str]:
        """A command that enters the group and then is `command`."""
        if not self.folders:
            return command
        return ["/bin/sh", "-c", ENTER, "sh", *(f"{folder}/cgroup.procs" for folder in self.folders), "--", *command]

    def remove(self) -> None:
        """End all that is in the group, and remove it."""
        for folder in self.folders:
            for _ in range(100):
                with suppress(OSError, ValueError):
                    for pid in (folder / "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:  # its processes still end
                    time.sleep(0.01)
                else:
                    break


def make_control_group(name: str) -> ControlGroup:
    """A group below that of this process, as far as this machine allows."""
    group = ControlGroup()
    for what, (controller, old, new) in FILES.items():
        for version, parent in _parents(controller):
            folder, file = parent / f"{PREFIX}{name}", old if version == 1 else new
            try:
                _remove_stale(parent)
                folder.mkdir(exist_ok=True)
                (folder / file).read_bytes()
                with open(folder / "cgroup.procs", "w"):
                    pass
            except OSError:
                with suppress(OSError):
                    folder.rmdir()
                continue
            group.files[what] = folder / file
            if folder not in group.folders:
                group.folders.append(folder)
            break
    return group


def _remove_stale(parent: Path) -> None:
    """Groups of processes that were killed; one in use cannot be removed, but one whose worker only starts could."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if folder.stat().st_mtime < time.time() - STALE_SECONDS:
                folder.rmdir()


def _parents(controller: str) -> list[tuple[int, Path]]:
    """Folders of the group of this process: of the controller in version 1, and of version 2."""
    found = []
    with suppress(OSError):
        own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for fields in mounts:
            kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
            for number, controllers, path in own:
                first = kind == "cgroup" and controller in controllers.split(",") and controller in options
                second = kind == "cgroup2" and number == "0" and not controllers
                if first or second:
                    inside = path if fields[3] == "/" else path.removeprefix(fields[3])
                    found.append((1 if first else 2, Path(fields[4] + inside)))
    return sorted(found)
