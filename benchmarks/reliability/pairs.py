"""Run two commands at once on one output, for every pair that can name the same.

python benchmarks/reliability/pairs.py --work DIR [--pairs 400] [--seconds 600] [--seed 0] [--only NAME ...]

First every command with itself, asked for two different things; then different commands, drawn. Each may finish or
refuse (code 2). A pair is lost when something else happens, when what lies there is neither what the one nor what the
other leaves alone, when a command's files are of both, or when temporary files stay.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from commands import (
    Command,
    Contents,
    commands,
    contents,
    differences,
    leftovers,
    play,
    prepare,
    program,
    start,
    wait,
)

FINE = {0, 2}


class Alone:
    """What each command leaves alone, found once, and which values two such runs differ in."""

    def __init__(self, folder: Path, said: Path, known: dict[str, Command]) -> None:
        self.folder, self.said, self.known = folder, said, known
        self._found: dict[tuple[str, str], tuple[Contents, frozenset[str]]] = {}

    def of(self, name: str, which: str) -> tuple[Contents, frozenset[str]]:
        """Contents, and the keys of those that are of the clock."""
        if (name, which) not in self._found:
            one, other = (self._run(name, which) for _ in range(2))
            self._found[name, which] = one, frozenset(differences(one, other))
        return self._found[name, which]

    def _run(self, name: str, which: str) -> Contents:
        clear(self.folder)
        command = self.known[name]
        code = play(command.words(self.folder / command.out, which), self.said)
        assert code == 0, f"{name}: {self.said.read_text()}"
        return contents(self.folder)


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)


def pairs_of(names: list[str], rng: random.Random) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Each with itself, then all others in a drawn order."""
    yield from (((name, "a"), (name, "b")) for name in names)
    others = [*itertools.combinations(names, 2)]
    rng.shuffle(others)
    yield from (((one, "a"), (other, "b")) for one, other in others)


def meet(alone: Alone, one: tuple[str, str], other: tuple[str, str], delay_s: float) -> str:
    """Start both, the second a moment later; what is wrong in the end, or nothing."""
    expected = [alone.of(*each) for each in (one, other)]
    clear(alone.folder)
    children = []
    for name, which in (one, other):
        command = alone.known[name]
        said = alone.said.with_name(f"{which}.txt")
        children.append(start(program(command.words(alone.folder / command.out, which)), said))
        time.sleep(delay_s)
    codes = [wait(child) for child in children]
    if not {*codes} <= FINE:
        said = [alone.said.with_name(f"{which}.txt").read_text()[-400:] for (_, which) in (one, other)]
        return f"codes {codes}: {next(text for text, code in zip(said, codes, strict=True) if code not in FINE)}"
    if codes == [2, 2]:
        return "both refuse"
    found, volatile = contents(alone.folder), expected[0][1] | expected[1][1]
    wrong = [differences(found, each, volatile) for each, _ in expected]
    if one[0] == other[0]:
        common = {*expected[0][0]} & {*expected[1][0]} - volatile
        of_neither = [
            key for key in {*wrong[0]} & {*wrong[1]} if key in common or key not in {**expected[0][0], **expected[1][0]}
        ]
        of_one, of_other = ([key for key in each if key in common] for each in wrong)
        if of_neither:
            return f"of neither: {', '.join(sorted(of_neither)[:4])}"
        if of_one and of_other:
            return f"of both: {', '.join(sorted(of_one)[:2])} beside {', '.join(sorted(of_other)[:2])}"
    elif codes == [0, 0]:
        of_neither = sorted({*wrong[0]} & {*wrong[1]})
        if of_neither:
            return f"of neither: {', '.join(of_neither[:4])}"
    if left := leftovers(alone.folder):
        return f"left behind: {', '.join(left[:4])}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    work = options.work.resolve()
    known = commands(prepare(work, options.only or ()))
    names = options.only or [name for name in known if known[name].before is None and "workers" not in name]
    alone = Alone(work / "shared_arena", work / "said" / "alone.txt", known)
    rng = random.Random(options.seed)
    print(f"seed {options.seed}; at most {options.pairs} pairs and {options.seconds:g} s")
    deadline_s = time.monotonic() + options.seconds
    tried, lost = 0, 0
    for one, other in itertools.islice(pairs_of(names, rng), options.pairs):
        if time.monotonic() > deadline_s:
            break
        said = meet(alone, one, other, rng.choice((0.0, 0.05, 0.3)))
        tried += 1
        lost += bool(said)
        if said:
            print(f"{one[0]} and {other[0]}: {said}", flush=True)
    shutil.rmtree(alone.folder, ignore_errors=True)
    print(f"in all: {tried} tried, {tried - lost} survived, {lost} lost")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
