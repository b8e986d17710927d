"""What commands print can be read: by people at 80 columns and in a file, and by programs."""

import io
import json
import logging
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from slide_files import tissue_image, write_slide_file
from tiny import TINY, write_tiles

from dino_path import __version__, cli
from dino_path.cli import terminal
from dino_path.evaluation.results.writing import markdown_table
from dino_path.progress import rate_text
from dino_path.run import TIME_FORMAT

TILES = ("tiles.mpp=0.5", "tiles.size_px=64", "tiles.mask_mpp=4", "tiles.min_area_um2=500")
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Callable]:
    """Calls the program in this process, in an empty folder: exit code, stdout, stderr."""
    logger = logging.getLogger("dino_path")
    before = logger.handlers[:], logger.propagate, logger.level
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dino-path", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        output = capfd.readouterr()
        return int(end.value.code or 0), output.out, output.err

    yield call
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def commands_of(group: object, *before: str) -> dict[tuple[str, ...], typer.core.TyperCommand]:
    """All commands by their words, those of groups too."""
    assert isinstance(group, typer.core.TyperGroup)
    found: dict[tuple[str, ...], typer.core.TyperCommand] = {}
    for name, command in group.commands.items():
        words = (*before, name)
        if isinstance(command, typer.core.TyperGroup):
            found |= commands_of(command, *words)
        else:
            assert isinstance(command, typer.core.TyperCommand)
            found[words] = command
    return found


COMMANDS = commands_of(typer.main.get_command(cli.app))
GROUPS = sorted({words[:-1] for words in COMMANDS})


@pytest.mark.parametrize("group", GROUPS, ids=lambda words: " ".join(words) or "dino-path")
def test_summaries_are_not_cut_at_80_columns(run: Callable, group: tuple[str, ...]) -> None:
    code, out, _ = run(*group, "-h")
    assert code == 0
    for name in [words[-1] for words in COMMANDS if words[:-1] == group]:
        line = next(line for line in out.splitlines() if line.startswith(f"  {name} "))
        assert line.endswith("."), line
        assert not line.endswith("..."), line


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_is_words_and_examples(run: Callable, words: tuple[str, ...]) -> None:
    code, out, _ = run(*words, "-h")
    assert code == 0
    assert "list[" not in out
    assert "`" not in out
    assert "--no-" not in out
    assert "\nExamples:\n" in out


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_examples_are_commands_that_can_be_given(words: tuple[str, ...]) -> None:
    lines = [line.strip() for line in (COMMANDS[words].epilog or "").strip().splitlines()]
    assert lines
    for line in lines:
        given = shlex.split(line.partition(" > ")[0])
        after = given.index("dino_path") if given[0] == "torchrun" else given.index("dino-path")
        assert tuple(given[after + 1 :][: len(words)]) == words
        cli.check_command(given[after + 1 :])


def test_the_version_and_completion_are_there(run: Callable) -> None:
    assert run("--version")[:2] == (0, f"dino-path {__version__}\n")
    assert "--install-completion" in run("-h")[1]


@pytest.mark.parametrize(
    ("rate", "text"),
    [(1234.4, "1,234 tiles/s"), (10, "10 tiles/s"), (1.42, "1.4 tiles/s"), (0.12, "8.3 s/tile"), (0, "")],
)
def test_rates_tell_slow_work_from_none(rate: float, text: str) -> None:
    assert rate_text(rate, "tiles") == text


def test_a_table_in_a_file_is_as_wide_as_it_is_and_has_no_marks(capsys: pytest.CaptureFixture[str]) -> None:
    long = "a sentence that is longer than eighty columns " * 4
    terminal.say_markdown(f"# title\n\n| name | score |\n| --- | --- |\n| {long}`code` | 0.5 |\n| b |  |\n\n- note\n")
    out = capsys.readouterr().out
    assert any(long + "'code'" in line for line in out.splitlines())
    assert "|" not in out
    assert "---" not in out
    assert "`" not in out
    assert out.splitlines()[0] == "title"


def test_a_name_with_a_bar_or_a_line_break_stays_in_its_cell(capsys: pytest.CaptureFixture[str]) -> None:
    lines = markdown_table(["class", "score"], [["a|b\n| x | y |", "0.5"]])
    assert lines[2:] == [r"| a\|b \| x \| y \| | 0.5 |"]
    terminal.say_markdown("\n".join(lines))
    assert "a|b | x | y |" in capsys.readouterr().out


def test_what_is_no_number_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say_json({"low": float("nan"), "rows": [{"path": Path("a"), 3: (1.5, float("inf"))}]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "low": None, "rows": [{"path": "a", "3": [1.5, None]}],
    }  # fmt: skip


def in_terminal(columns: int, *words: str, cwd: Path, of: str = "stdout") -> str:
    """What the program writes to one of its streams where that is a terminal of so many columns."""
    main, side = pty.openpty()
    streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, of: side}
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "dumb"}
    with subprocess.Popen([sys.executable, "-m", "dino_path", *words], cwd=cwd, env=environment, **streams) as process:
        os.close(side)
        written = io.BytesIO()
        while True:
            try:
                piece = os.read(main, 65536)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            written.write(piece)
        process.wait()
    os.close(main)
    return written.getvalue().decode()


def test_a_table_in_a_terminal_keeps_within_its_columns(tmp_path: Path) -> None:
    (tmp_path / ("run_with_a_long_name_" * 4)).mkdir()
    run = tmp_path / ("run_with_a_long_name_" * 4)
    (run / "config.yaml").write_text("store: a_store_with_a_long_name_too/and_a_folder_below_it\n")
    for columns in (80, 120):
        lines = in_terminal(columns, "status", run.name, cwd=tmp_path).splitlines()
        assert any("pretrain" in line for line in lines)
        assert max(map(len, lines)) <= columns


def test_sentences_are_wrapped_between_words_in_a_terminal(tmp_path: Path) -> None:
    lines = in_terminal(50, "status", "a_folder_that_is_not_there", cwd=tmp_path, of="stderr").splitlines()
    assert lines[0].startswith("CheckpointError: a_folder_that_is_not")
    assert max(map(len, lines)) <= 50
    assert {"pretrain'", "needed."} <= {word for line in lines for word in line.split()}


def test_results_for_programs_are_all_of_stdout(run: Callable, tmp_path: Path) -> None:
    write_slide_file(tmp_path / "good.tif", [tissue_image()])
    write_tiles(tmp_path / "labelled/A", 6)
    write_tiles(tmp_path / "labelled/B", 6)
    code, out, _ = run("tile", "good.tif", *TILES, "--out", "store", "--workers", 0, "--json")
    assert code == 0
    told = json.loads(out)
    assert [slide["status"] for slide in told["slides"]] == ["done"]
    assert told["num_tiles"] == told["slides"][0]["num_tiles"] > 0
    evaluated = run("evaluate", "knn", "mean-colour", "--data", "labelled", "--workers", 0, "--json", "--out", "eval",
                    "evaluation.num_bootstrap=100", "evaluation.knn_k=1")  # fmt: skip
    assert "balanced_accuracy" in json.dumps(json.loads(evaluated[1])["rows"]), evaluated[2]
    embedded = json.loads(run("embed", "mean-colour", "store", "--out", "features", "--workers", 0, "--json")[1])
    assert embedded["written"] == ["good"]
    sizes = json.loads(run("models", "Ti/16", "--px", 32, "--local-px", 32, "--json")[1])
    assert sizes[0]["width"] == 192
    findings = json.loads(run("doctor", "--json")[1])
    assert {"name", "found", "is_fault", "remedy"} <= findings[0].keys()


def test_a_run_is_told_to_programs_and_ends_with_what_to_do(run: Callable, tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles", 8)
    words = ("pretrain", "store=tiles", "out=run", *TINY, "training.num_steps=2", "optim.base_lr=1e-9")
    code, out, err = run(*words, "training.momentum=0.996", "--apply-advice")
    assert code == 0, err
    for key, value in (("training.momentum", "0.5"), ("training.accumulate_steps", "32")):
        assert f"--apply-advice: {key}={value}" in err
        assert f"{key.partition('.')[2]}: {value}" in (tmp_path / "run/config.yaml").read_text()
    assert "advice: " not in err.replace("--apply-advice: ", "").replace("advice: this CPU", "")
    assert all(TIME.match(line) for line in (tmp_path / "run/log.txt").read_text().splitlines())
    assert all(TIME.match(line) for line in err.splitlines())

    code, out, err = run(*words, "training.momentum=0.996", "--apply-advice")
    assert code == 0
    assert "run is already finished: run/checkpoints/step_00000002.pt" in out
    assert "dino-path export run --out run/model" in out
    assert "loading" not in err

    stages = {stage["stage"]: stage["state"] for stage in json.loads(run("status", "run", "--json")[1])["stages"]}
    assert stages["pretrain"] == "done"
    exported = json.loads(run("export", "run", "--out", "run/model", "--json")[1])
    assert exported["num_features"] > 0


def test_a_run_whose_loss_stays_at_that_of_guessing_says_so_in_its_last_line(run: Callable, tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles", 8)
    words = ("pretrain", "store=tiles", *TINY, "training.num_steps=2", "optim.base_lr=1e-9")
    # A student as even as this one gives ln K whatever the teacher says.
    code, out, _ = run(*words, "out=even", "training.student_temp=1000", "--quiet")
    assert code == 0
    assert out.splitlines()[-1].startswith("NOT LEARNED: after 2 steps DINO's loss is 4.15")
    assert "NOT LEARNED" not in run(*words, "out=sharp")[1]


def test_quiet_is_quiet(run: Callable, tmp_path: Path) -> None:
    write_slide_file(tmp_path / "good.tif", [tissue_image()])
    code, out, err = run("tile", "good.tif", *TILES, "--out", "store", "--workers", 0, "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith("1 done")


def test_dates_are_one_kind() -> None:
    assert TIME_FORMAT == "%Y-%m-%d %H:%M:%S"
    package = Path(cli.__file__).parents[1]
    others = [file.name for file in package.rglob("*.py") if re.search(r"%H:%M|isoformat\(", file.read_text())]
    assert others == ["run.py"]
