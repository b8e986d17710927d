"""Hostile and damaged inputs of every kind: each must give the right result or a clear refusal.

    uv run python benchmarks/reliability/fuzz.py --inputs 10000 --seconds 1800 --seed 0
    uv run python benchmarks/reliability/fuzz.py --seed 0 --case settings/17    # one input again, with its traceback

A find is everything else: a traceback, exit code 1, a refusal that does not say what to do, a result that differs from
that of the undamaged input, more than 20 s, more than 2 GB. Each is printed with what repeats it. Inputs are drawn from
the seed alone, so two versions of the code get the same ones.

`fuzz_corpus.py` makes the undamaged files once (a minute; `--corpus` keeps them); `fuzz_kinds.py` damages copies.
Inputs run in a forked process, through the command line's own `main` or the library's reader; a watchdog ends one that
takes too long. The kind `process` starts real processes.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_corpus import Corpus, build_corpus
from fuzz_kinds import KINDS, Find, Input

MOST_SECONDS = 20.0  # of processor time: the machine may be shared
MOST_WAIT_S = 90.0  # without an answer, whoever is to blame
MOST_BYTES = 2 << 30
BATCH = 200  # inputs of one forked process: what one of them leaves behind ends with it


@dataclass(frozen=True)
class Outcome:
    """What became of one input: `right`, `refused`, or a find with what was seen."""

    name: str
    told: str
    note: str = ""
    details: str = ""

    @property
    def is_find(self) -> bool:
        return self.told not in ("right", "refused")


def names_of_inputs(seed: int, count: int, kinds: Sequence[str]) -> list[str]:
    """`kind/number` of every input, in the order in which they run: each kind by its weight, mixed by the seed."""
    weights = {kind: KINDS[kind].weight for kind in kinds}
    total = sum(weights.values())
    names = [f"{kind}/{number}" for kind in kinds for number in range(max(1, round(count * weights[kind] / total)))]
    random.Random(seed).shuffle(names)
    return names


def try_input(name: str, seed: int, corpus: Corpus | None, scratch: Path) -> Outcome:
    """Run one input in this process."""
    kind = name.split("/")[0]
    folder = scratch / re.sub(r"\W", "_", name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(folder)
    one = Input(random.Random(f"{seed}/{name}"), folder, corpus)
    try:
        told = KINDS[kind].run(one)
        return Outcome(name, told, one.note)
    except Find as find:
        return Outcome(name, find.told, one.note, find.details)
    except BaseException as error:  # noqa: BLE001  (a find, whatever it is)
        return Outcome(name, _where(error), one.note, traceback.format_exc())
    finally:
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)


def _where(error: BaseException) -> str:
    """`TypeError in geojson.py:_class_name`: what tells one kind of find from another."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "dino_path/" in frame.filename]
    last = f" in {Path(frames[-1].filename).name}:{frames[-1].name}" if frames else ""
    return f"{type(error).__name__}{last}"


def _serve(pipe: Connection, far_end: Connection, seed: int, corpus: Corpus | None, scratch: Path) -> None:
    """Run inputs whose names come through the pipe, in a process of its own."""
    os.setsid()
    far_end.close()  # so that this process ends when the other one does
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    used = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
    resource.setrlimit(resource.RLIMIT_DATA, (used + MOST_BYTES, resource.RLIM_INFINITY))
    while (name := pipe.recv()) is not None:
        pipe.send(try_input(name, seed, corpus, scratch))


def run_all(
    names: Sequence[str], seed: int, corpus: Corpus | None, scratch: Path, deadline: float
) -> Iterator[Outcome]:
    """What became of each input, in turn, until `deadline` (of time.monotonic)."""
    context = get_context("fork")
    waiting = list(reversed(names))
    while waiting and time.monotonic() < deadline:
        pipe, other = context.Pipe()
        worker = context.Process(target=_serve, args=(other, pipe, seed, corpus, scratch))
        worker.start()
        other.close()
        for _ in range(BATCH):
            if not waiting or time.monotonic() >= deadline:
                break
            name = waiting.pop()
            pipe.send(name)
            outcome = _answer(pipe, worker, name)
            yield outcome
            if not worker.is_alive() or "took over" in outcome.told:
                break
        else:
            pipe.send(None)
        if worker.pid is not None:
            try:
                os.killpg(worker.pid, signal.SIGKILL)
            except ProcessLookupError:
                worker.kill()
        worker.join()
        pipe.close()


def _answer(pipe: Connection, worker: BaseProcess, name: str) -> Outcome:
    start_s, spent_s = time.monotonic(), _processor_s(worker)
    try:
        while not pipe.poll(0.5):
            took = _processor_s(worker) - spent_s
            if took > MOST_SECONDS:
                return Outcome(name, f"took over {MOST_SECONDS:.0f} s")
            if time.monotonic() - start_s > MOST_WAIT_S:
                return Outcome(name, f"took over {MOST_WAIT_S:.0f} s, most of it waiting")
        answer: Outcome = pipe.recv()
        return answer
    except (EOFError, OSError):
        return Outcome(name, "the process died (a crash in a C library, or the memory's limit)")


def _processor_s(worker: BaseProcess) -> float:
    """Processor time of a process and of those that it started and that have ended."""
    try:
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="some of them, with commas between")
    parser.add_argument("--case", help="KIND/NUMBER,...: these inputs alone, with everything that was seen")
    parser.add_argument("--corpus", type=Path, help="where the undamaged files are kept")
    parser.add_argument("--log", type=Path, help="file for the details of every find")
    arguments = parser.parse_args()
    os.environ |= {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        corpus = build_corpus(arguments.corpus or Path(temporary) / "corpus")
        corpus.warm_up()
        scratch = Path(temporary) / "scratch"
        names = names_of_inputs(arguments.seed, arguments.inputs, arguments.kinds.split(","))
        if arguments.case:
            names = arguments.case.split(",")
        print(f"seed {arguments.seed}: {len(names):,} inputs, at most {arguments.seconds:.0f} s", flush=True)
        outcomes: list[Outcome] = []
        start = time.monotonic()
        spent: Counter[str] = Counter()
        before = start
        for outcome in run_all(names, arguments.seed, corpus, scratch, start + arguments.seconds):
            outcomes.append(outcome)
            now = time.monotonic()
            spent[outcome.name.split("/")[0]] += now - before  # type: ignore[assignment]
            before = now
            if outcome.is_find and arguments.log:
                with arguments.log.open("a") as log:
                    log.write(f"=== {outcome.name}: {outcome.told}\n{outcome.note}\n{outcome.details}\n")
            if arguments.case:
                print(f"{outcome.told}\n{outcome.note}\n{outcome.details}")
        _report(outcomes, spent, len(names), time.monotonic() - start, arguments.seed)
    return 3 if any(outcome.is_find for outcome in outcomes) else 0


def _report(outcomes: Sequence[Outcome], spent: Counter[str], wanted: int, seconds: float, seed: int) -> None:
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    alike: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        kind = outcome.name.split("/")[0]
        by_kind[kind]["find" if outcome.is_find else outcome.told] += 1
        if outcome.is_find:
            alike[kind, outcome.told].append(outcome)
    print("\n| kind | inputs | right | refused | finds | s |\n|---|---|---|---|---|---|")
    for kind, counts in sorted(by_kind.items()):
        print(
            f"| {kind} | {counts.total():,} | {counts['right']:,} | {counts['refused']:,} | {counts['find']:,}"
            f" | {spent[kind]:.0f} |"
        )
    num_finds = sum(map(len, alike.values()))
    print(f"\n{num_finds:,} finds of {len(outcomes):,} inputs ({wanted:,} wanted) in {seconds:.0f} s, seed {seed}")
    for (kind, told), group in sorted(alike.items(), key=lambda item: -len(item[1])):
        first = group[0]
        print(f"\n{len(group)} x {kind}: {told}\n    --seed {seed} --case {first.name}   {first.note[:300]}")


if __name__ == "__main__":
    sys.exit(main())
