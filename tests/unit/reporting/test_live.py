"""A page of runs that go on: written when something is new, told what is silent, ended when they end."""

import json
from pathlib import Path

import pytest
from made_up import write_run

from dino_path.records.metrics import read_metrics
from dino_path.reporting.live import LOOK_EVERY_S, REFRESH_S, progress_line, watch_runs


class Clock:
    """Time that passes while one sleeps; `then` happens once it is late enough."""

    def __init__(self) -> None:
        self.time_s, self.then = 0.0, list[tuple[float, Path, str]]()

    def now(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.time_s += seconds
        while self.then and self.then[0][0] <= self.time_s:
            _, file, text = self.then.pop(0)
            file.write_text(text)


def test_the_page_is_written_at_once_then_with_new_records_and_last_without_a_refresh(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_records=4)
    file, clock = run / "metrics.jsonl", Clock()
    lines = [json.dumps({**json.loads(line), "num_steps": 40}) for line in file.read_text().splitlines()]
    upto = {count: "".join(f"{line}\n" for line in lines[:count]) for count in (1, 2, 3, 4)}
    file.write_text(upto[1])
    clock.then = [(10, file, upto[2]), (50, file, upto[3]), (1000, file, upto[4])]
    written, said = list[tuple[float, int | None]](), list[tuple[float, str]]()
    watch_runs(
        [run], lambda refresh_s: written.append((clock.time_s, refresh_s)),
        lambda text: said.append((clock.time_s, text)), now_s=clock.now, sleep=clock.sleep,
    )  # fmt: skip
    assert written == [(0, REFRESH_S), (REFRESH_S, REFRESH_S), (60, REFRESH_S), (1000, None)]
    assert [time_s for time_s, text in said if "step" in text] == [0, 10, 50, 1000]
    assert [text for _, text in said if "no new record" in text] == [
        "no new record for 10 minutes: check log.txt and `dino-path status RUN`"
    ]
    assert said[-1] == (1000, "all runs have ended")
    assert LOOK_EVERY_S <= 10


def test_a_run_that_had_ended_is_written_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_records=2)
    lines = [json.loads(line) | {"num_steps": 20} for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    written = list[int | None]()
    watch_runs([run], written.append, lambda _: None, sleep=lambda _: pytest.fail("nothing to wait for"))
    assert written == [None]


def test_the_line_tells_how_far_how_well_and_how_long(tmp_path: Path) -> None:
    record = read_metrics(write_run(tmp_path / "run", num_records=1) / "metrics.jsonl").records[0]
    record = record.model_copy(update={
        "step": 49, "num_steps": 200, "loss": 5.25, "rankme": 30.4, "tiles_per_s": 22.0, "data_wait": 0.05,
        "eta_s": 4000.0, "knn_accuracy": 0.8, "collapse": "uniform",
    })  # fmt: skip
    assert progress_line(record) == (
        "step 50/200  25.0%  loss 5.250  rank 30  k-NN 0.800  22 tiles/s  wait 5%  eta 1h06m  COLLAPSE (uniform)"
    )
