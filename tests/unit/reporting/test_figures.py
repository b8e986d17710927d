"""Figures for papers: one file for each chart, with its numbers and names, the same each time."""

import re
from pathlib import Path

import pytest
from made_up import write_evaluation, write_fractions, write_run

from dino_path.reporting import figures
from dino_path.reporting.figures import write_figures


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "vits16", num_records=12)
    write_evaluation(run / "eval" / "results.json")
    write_fractions(run / "eval" / "fractions.json")
    return run


def test_every_chart_has_a_name_of_its_own(run: Path) -> None:
    names = [name for name, _ in figures._charts([run], [])]
    assert len(set(names)) == len(names) == 14 + 2 + 2
    assert {"table_polyps_linear-probe", "fractions_polyps_k-nn", "curve_learning-rate"} <= set(names)


def test_a_chart_of_each_kind_becomes_a_file_of_each_kind_the_same_each_time(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_kind = {chart["kind"]: (name, chart) for name, chart in figures._charts([run], [])}
    monkeypatch.setattr(figures, "_charts", lambda runs, evaluations: by_kind.values())
    files = write_figures([run], tmp_path / "figures", kinds=("svg", "pdf"))
    assert len(files) == 3 * 2
    assert all(file.read_bytes().startswith(b"%PDF" if file.suffix == ".pdf" else b"<?xml") for file in files)
    again = write_figures([run], tmp_path / "again", kinds=("svg", "pdf"))
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]


def test_a_point_lies_where_its_number_is(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [chart] = [(name, chart) for name, chart in figures._charts([run], []) if name == "table_polyps_linear-probe"]
    monkeypatch.setattr(figures, "_charts", lambda runs, evaluations: [chart])
    write_figures([run], tmp_path, kinds=("svg",))
    svg = (tmp_path / "table_polyps_linear-probe.svg").read_text()
    assert "untrained-vits16" in svg, "text stays text"
    ticks = [
        (float(x), float(value))
        for x, value in re.findall(r'<g id="xtick_\d+">.*?<use [^>]*x="([\d.]+)".*?>(0\.\d+)</text>', svg, re.DOTALL)
    ]
    (x0, v0), (x1, v1) = ticks[0], ticks[-1]
    marks = re.findall(r'<use [^>]*x="([\d.]+)"', svg)
    of_value = {round(v0 + (float(x) - x0) / (x1 - x0) * (v1 - v0), 3) for x in marks}
    assert {0.9, 0.71, 0.66, 0.82} <= of_value
