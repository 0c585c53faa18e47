"""What each tier of the sandbox stops, from the hostile suite, as docs/sandbox.md (`make sandbox-table`)."""

from __future__ import annotations

import os
import platform
import socket
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hostile_kinds import ALL
from hostile_programs import Attack

from tracelift_lib.sandbox.host import SAFE_TIERS, Limits
from tracelift_lib.sandbox.tiers import tier_fault
from tracelift_lib.verifier.verify_code import CodeVerifier

PROJECT = Path(__file__).resolve().parent.parent
LIMITS = Limits(cpu_s=0.5, wall_s=60, memory_mb=256, disk_mb=32, file_mb=4, processes=16)
PATIENCE = 4  # seconds that an attack gets which only waits
START, END = "<!-- table: start -->", "<!-- table: end -->"


@contextmanager
def outside():
    """A folder of the host that every user may write, with a file that is readable and one that is not, and a socket
    that takes datagrams."""
    with (
        tempfile.TemporaryDirectory(prefix="outside-") as name,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server,
    ):
        folder = Path(name)
        folder.chmod(0o777)
        for file, mode in (("public", 0o666), ("private", 0o600)):
            (folder / file).write_text(f"{file} text")
            (folder / file).chmod(mode)
        server.bind(f"{folder}/socket")
        os.chmod(folder / "socket", 0o777)
        yield folder


def program_of(attack: Attack, folder: Path, limits: Limits) -> str:
    """The attack's program, with its placeholders filled in."""
    text = attack.program.replace("OUTSIDE", str(folder)).replace("PARENT", str(os.getpid()))
    return text.replace("LIMIT_MB", str(limits.memory_mb))


def failures(tier: str, attacks: list[Attack]) -> dict[str, str]:
    """Of the attacks those that the tier did not contain, each with how it ended instead."""
    found = {}
    with (
        outside() as folder,
        CodeVerifier(1, LIMITS, tier=tier) as patient,
        CodeVerifier(1, replace(LIMITS, wall_s=PATIENCE), tier=tier) as impatient,
    ):
        for attack in attacks:
            verifier, start = impatient if attack.waits else patient, time.monotonic()
            (result,) = verifier.verify([(program_of(attack, folder, LIMITS), attack.tests)])
            if result.outcomes[0] not in attack.outcomes:
                found[attack.name] = str(result.outcomes[0])
            took, held = time.monotonic() - start, attack.name not in found
            print(
                f"{tier} {attack.name}: {result.outcomes[0]}{'' if held else ' NOT CONTAINED'}, {took:.1f} s",
                flush=True,
            )
    return found


def table() -> str:
    """Rows: what is attacked; columns: tiers, with how many of its attacks each contained."""
    tiers = [tier for tier in SAFE_TIERS if tier_fault(tier) is None]
    groups = defaultdict(list)
    for attack in ALL:
        groups[attack.target].append(attack.name)
    with ThreadPoolExecutor(len(tiers)) as pool:
        failed = dict(zip(tiers, pool.map(failures, tiers, [ALL] * len(tiers))))
    lines = [f"| attacked | {' | '.join(tiers)} |", f"| --- |{' --- |' * len(tiers)}"]
    for target, names in groups.items():
        counts = [f"{sum(name not in failed[tier] for name in names)} of {len(names)}" for tier in tiers]
        lines.append(f"| {target} | {' | '.join(counts)} |")
    totals = [f"**{len(ALL) - len(failed[tier])} of {len(ALL)}**" for tier in tiers]
    lines.append(f"| all | {' | '.join(totals)} |")
    who = "root" if os.geteuid() == 0 else "a plain user"
    lines += ["", f"Linux {platform.release().split('-')[0]}, as {who}, Python {platform.python_version()}.", ""]
    for tier in tiers:
        if failed[tier]:
            lines.append(
                f"Not contained by {tier}: " + ", ".join(f"`{n}` ({o})" for n, o in failed[tier].items()) + "."
            )
    return "\n".join(lines)


def main() -> None:
    path = PROJECT / "docs" / "sandbox.md"
    before, _, rest = path.read_text().partition(START)
    path.write_text(f"{before}{START}\n{table()}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    if sys.argv[1:]:  # a tier and parts of names: what is not contained
        wanted = [a for a in ALL if not sys.argv[2:] or any(part in a.name for part in sys.argv[2:])]
        print(failures(sys.argv[1], wanted))
    else:
        main()
