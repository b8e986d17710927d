"""Kill every command at many moments, call it again, and compare with an undisturbed run.

python benchmarks/reliability/kills.py --work DIR [--moments 100] [--seconds 600] [--seed 0] [--only NAME ...]

Moments are half at random times, half just before a file is synced, renamed, linked or removed. A kill is lost when
the next call fails, or what it leaves differs from an undisturbed run's, or temporary files stay, or a process lives.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from commands import (
    Command,
    Contents,
    Spots,
    commands,
    contents,
    differences,
    leftovers,
    play,
    prepare,
    program,
    start,
    survivors,
    wait,
)


@dataclass
class Tally:
    """What became of the kills of one command; `missed`: it ended before the moment came."""

    tried: int = 0
    missed: int = 0
    lost: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Undisturbed:
    """What a command leaves when nothing happens to it; `volatile`: what differs between two such runs."""

    left: Contents
    volatile: frozenset[str]
    seconds: float
    num_spots: int


class Arena:
    """A folder in which one command is run, hurt and run again."""

    def __init__(self, work: Path, name: str, command: Command, known: dict[str, Command]) -> None:
        self.folder, self.command, self.name = work / "arena", command, name
        self.before = known[command.before] if command.before else None
        self.words = command.words(self.folder / command.out, "a")
        self.said = work / "said" / f"{name.replace(' ', '_')}.txt"

    def clear(self) -> None:
        """As it was before the command was called for the first time."""
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / self.command.out).parent.mkdir(parents=True)
        if self.before is not None:
            code = play(self.before.words(self.folder / self.command.out, "a"), self.said)
            assert code == 0, self.said.read_text()

    def undisturbed(self) -> Undisturbed:
        """Two runs: their differences are of the clock."""
        found = []
        for _ in range(2):
            self.clear()
            spots, start_s = Spots(), time.monotonic()
            code = play(self.words, self.said, spots.install)
            assert code == 0, self.said.read_text()
            found.append((contents(self.folder), time.monotonic() - start_s, spots.count.value))
        (one, _, _), (other, seconds, num_spots) = found
        return Undisturbed(one, frozenset(differences(one, other)), seconds, num_spots)

    def again(self, undisturbed: Undisturbed) -> str:
        """Call the command once more; what is wrong then, or nothing."""
        code = play(self.words, self.said)
        if code != 0:
            return f"the next call ends with {code}: {self.said.read_text()[-300:]}"
        if wrong := differences(contents(self.folder), undisturbed.left, undisturbed.volatile):
            return f"{len(wrong)} differ: {', '.join(wrong[:4])}"
        if left := leftovers(self.folder):
            return f"left behind: {', '.join(left[:4])}"
        return ""


def attack(arena: Arena, undisturbed: Undisturbed, moments: list[float], deadline_s: float) -> Tally:
    """Kill at each of the moments: a spot's number where it is whole, else a share of the undisturbed run's time."""
    tally = Tally()
    for moment in moments:
        if time.monotonic() > deadline_s:
            break
        arena.clear()
        at = moment if isinstance(moment, int) else None
        spots = Spots(at, lambda _: os.kill(os.getpid(), signal.SIGKILL))

        def body(spots: Spots = spots) -> int:
            spots.install()
            return program(arena.words)()

        child = start(body, arena.said)
        if at is None:
            time.sleep(moment * undisturbed.seconds)
            os.kill(child, signal.SIGKILL)
        code = wait(child)
        alive = survivors(child)
        tally.tried += 1
        tally.missed += code == 0
        where = f"spot {at}" if at is not None else f"{moment:.3f} of the time"
        if alive:
            tally.lost.append(f"{where}: {len(alive)} processes outlived it")
        if wrong := arena.again(undisturbed):
            tally.lost.append(f"{where}: {wrong}")
    return tally


def moments_of(undisturbed: Undisturbed, count: int, rng: random.Random) -> list[float]:
    """Spots (all, or so many drawn), and times for the rest."""
    spots = rng.sample(range(undisturbed.num_spots), min(undisturbed.num_spots, count // 2))
    return [*sorted(spots), *(rng.random() for _ in range(count - len(spots)))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    inputs = prepare(options.work.resolve(), options.only or ())
    known = commands(inputs)
    chosen = options.only or [*known]
    print(f"seed {options.seed}; {options.moments} moments each, {options.seconds:g} s in all")
    print(f"{'command':24}{'tried':>7}{'killed':>8}{'survived':>10}{'lost':>6}{'spots':>7}{'s':>7}  not compared")
    total, end_s = Tally(), time.monotonic() + options.seconds
    for number, name in enumerate(chosen):
        begun_s = time.monotonic()
        deadline_s = begun_s + (end_s - begun_s) / (len(chosen) - number)  # what one leaves over goes to the others
        arena = Arena(options.work.resolve(), name, known[name], known)
        undisturbed = arena.undisturbed()
        rng = random.Random(f"{options.seed} {number} {name}")
        moments = moments_of(undisturbed, options.moments, rng)
        rng.shuffle(moments)
        tally = attack(arena, undisturbed, moments, deadline_s)
        untold = sorted({key.partition(":")[0].rpartition("/")[2] for key in undisturbed.volatile})
        print(
            f"{name:24}{tally.tried:7}{tally.tried - tally.missed:8}{tally.tried - len(tally.lost):10}"
            f"{len(tally.lost):6}{undisturbed.num_spots:7}{undisturbed.seconds:7.1f}"
            f"  {len(undisturbed.volatile)} values of {len(undisturbed.left)}: {', '.join(untold)[:60]}",
            flush=True,
        )
        for lost in tally.lost[:5]:
            print(f"    {lost}", flush=True)
        total = Tally(total.tried + tally.tried, total.missed + tally.missed, total.lost + tally.lost)
    shutil.rmtree(options.work / "arena", ignore_errors=True)
    print(
        f"in all: {total.tried} tried, {total.tried - total.missed} killed, {total.tried - len(total.lost)} survived,"
        f" {len(total.lost)} lost"
    )
    return int(bool(total.lost))


if __name__ == "__main__":
    sys.exit(main())
