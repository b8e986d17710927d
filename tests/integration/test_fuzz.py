"""The short form of benchmarks/reliability/fuzz.py: hostile inputs of the kinds that need no model."""

import os
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "reliability"
SEED = 0
INPUTS = {"settings": 150, "yaml": 40, "tables": 40, "annotations": 100, "jpeg": 60, "images": 25, "h5": 6}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of what damaged files hold
def test_hostile_inputs_are_read_rightly_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import fuzz
    import fuzz_corpus

    corpus = fuzz_corpus.Corpus(tmp_path / "corpus")
    fuzz_corpus.write_inputs(corpus)
    here = Path.cwd()
    try:
        names = [f"{kind}/{number}" for kind, count in INPUTS.items() for number in range(count)]
        outcomes = [fuzz.try_input(name, SEED, corpus, tmp_path / "scratch") for name in names]
    finally:
        os.chdir(here)
    finds = [f"{one.name} (seed {SEED}): {one.told}\n{one.note}\n{one.details}" for one in outcomes if one.is_find]
    assert not finds, "\n\n".join(finds)
    assert {one.told for one in outcomes} == {"right", "refused"}
