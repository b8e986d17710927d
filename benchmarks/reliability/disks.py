"""Give every command a bad disk, an input that vanishes or a clock that jumps; then call it again on a good one.

python benchmarks/reliability/disks.py --work DIR [--times 3] [--seconds 600] [--seed 0] [--only NAME ...]

Full disks and disks without inodes are a tmpfs (as root; where none can be mounted, these rows are left out). Under
trouble a command must end with 0 (it did not notice), 2 (refused) or 3 (some items failed); a traceback is counted
apart. What it leaves after the next, undisturbed call must equal an undisturbed run's, without temporary files.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from commands import Spots, commands, play, prepare, program, start, wait
from kills import Arena, Undisturbed

TROUBLES = ("full", "no inodes", "read-only", "slow", "input gone", "clock back", "clock forward")
ON_TMPFS = {"full", "no inodes", "read-only"}
DAY_S = 86400.0


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    """A disk of memory at `folder`, of a size that `remount` changes."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount(folder: Path) -> bool:
    """Whether this user may mount a tmpfs there: root, outside most containers."""
    if os.geteuid() != 0:
        return False
    try:
        with tmpfs(folder, "size=64k"):
            return True
    except (FileNotFoundError, subprocess.CalledProcessError):
        return False


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


class BadDisk(Arena):
    """An arena whose folder may be a disk of its own; `used_kb` and `used_files` are what the command needs."""

    used_kb: float
    used_files: int

    def clear(self) -> None:
        for entry in self.folder.iterdir() if self.folder.exists() else ():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        (self.folder / self.command.out).parent.mkdir(parents=True, exist_ok=True)
        if self.before is not None:
            assert play(self.before.words(self.folder / self.command.out, "a"), self.said) == 0


def hurt(arena: Arena, act: Callable[[], None], spot: int | None) -> int:
    """Run the command, `act` being called in it at a spot (None: at its start); its exit code."""
    spots = Spots(spot, lambda _: act())

    def body() -> int:
        spots.install()
        if spot is None:
            act()
        return program(arena.words)()

    return wait(start(body, arena.said))


def shift_clock(seconds: float) -> None:
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)


def slow_disk() -> None:
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        setattr(os, name, lambda *rest, original=original, **named: (time.sleep(0.2), original(*rest, **named))[1])


def suffer(arena: Arena, undisturbed: Undisturbed, trouble: str, inputs: Path, rng: random.Random) -> tuple[int, str]:
    """The exit code under trouble, and what is wrong after the next call, or nothing."""
    spot = rng.randrange(undisturbed.num_spots) if undisturbed.num_spots else None
    if trouble in ON_TMPFS:
        with tmpfs(arena.folder, "size=1g"):
            arena.clear()
            disk = os.statvfs(arena.folder)
            used_kb = (disk.f_blocks - disk.f_bfree) * disk.f_frsize / 1024
            room = {
                "full": f"size={int(used_kb + max(4, rng.random() * arena.used_kb))}k",
                "no inodes": f"nr_inodes={disk.f_files - disk.f_ffree + rng.randint(1, 1 + arena.used_files)}",
                "read-only": "ro",
            }
            remount(arena.folder, room[trouble])
            code = play(arena.words, arena.said)
            said = arena.said.read_text()
            remount(arena.folder, "rw,size=1g,nr_inodes=0")
            wrong = arena.again(undisturbed)
            arena.said.write_text(said)
            return code, wrong
    arena.clear()
    if trouble == "slow":
        code = hurt(arena, slow_disk, None)
    elif trouble == "input gone":
        victim = rng.choice([*(inputs / "images").rglob("*.png"), *(inputs / "slides").rglob("*.tif")])
        aside = victim.with_suffix(".aside")
        code = hurt(arena, lambda: victim.replace(aside) and None, spot)
        said = arena.said.read_text()
        if aside.exists():
            aside.replace(victim)
        wrong = arena.again(undisturbed)
        arena.said.write_text(said)
        return code, wrong
    else:
        code = hurt(arena, lambda: shift_clock(DAY_S if trouble == "clock forward" else -DAY_S), spot)
    said = arena.said.read_text()
    wrong = arena.again(undisturbed)
    arena.said.write_text(said)
    return code, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--troubles", nargs="*", choices=TROUBLES, default=TROUBLES)
    options = parser.parse_args()
    work = options.work.resolve()
    inputs = prepare(work, options.only or ())
    known = commands(inputs)
    names = options.only or [name for name in known if "workers" not in name]
    may_mount = can_mount(work / "arena")
    troubles = [one for one in options.troubles if one not in ON_TMPFS or may_mount]
    rng = random.Random(options.seed)
    deadline_s = time.monotonic() + options.seconds
    print(f"seed {options.seed}; {options.times} times each, at most {options.seconds:g} s")
    tally: dict[str, Counter[str]] = {trouble: Counter() for trouble in troubles}
    for name in names:
        if time.monotonic() > deadline_s:
            print(f"no time left for {name} and what follows it")
            break
        arena = BadDisk(work, name, known[name], known)
        undisturbed = arena.undisturbed()
        files = list(arena.folder.rglob("*"))
        arena.used_kb = sum(file.stat().st_size for file in files) / 1024
        arena.used_files = len(files)
        for trouble in troubles:
            for _ in range(options.times):
                code, wrong = suffer(arena, undisturbed, trouble, inputs, rng)
                has_traceback = "Traceback" in arena.said.read_text()
                count = tally[trouble]
                count["tried"] += 1
                count[{0: "unnoticed", 2: "refused", 3: "some failed"}.get(code, "other ends")] += 1
                count["tracebacks"] += has_traceback
                count["lost"] += bool(wrong)
                if wrong:
                    print(f"    {name}, {trouble}: then {wrong}", flush=True)
                if has_traceback or code not in (0, 2, 3):
                    last = arena.said.read_text().strip().splitlines()[-1:]
                    print(f"    {name}, {trouble}: code {code}, {' '.join(last)[:200]}", flush=True)
    shutil.rmtree(work / "arena", ignore_errors=True)
    columns = ("tried", "unnoticed", "refused", "some failed", "other ends", "tracebacks", "lost")
    print(f"{'':16}" + "".join(f"{column:>13}" for column in columns))
    for trouble, count in tally.items():
        print(f"{trouble:16}" + "".join(f"{count[column]:13}" for column in columns))
    return int(any(count["lost"] for count in tally.values()))


if __name__ == "__main__":
    sys.exit(main())
