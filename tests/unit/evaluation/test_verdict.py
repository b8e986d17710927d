"""At its end a run says whether it beat its start: the same tests of both, with paired intervals."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TINY

from dino_path.cli import main
from dino_path.evaluation.protocols.running import running_test
from dino_path.evaluation.results.verdict import judge, sentence
from dino_path.model.backbone import build_backbone
from dino_path.model.checkpoint import read_checkpoint
from dino_path.records.labelled import ScoreRecord
from dino_path.records.verdict import JudgedRecord, read_verdict, signed, write_verdict
from dino_path.run import RunFolder
from dino_path.settings import load_config

ARGUMENTS: dict[str, bool | int | float | str] = {
    "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2,
}  # fmt: skip


def run_command(monkeypatch: pytest.MonkeyPatch, *settings: str) -> None:
    monkeypatch.setattr("sys.argv", ["dino-path", "pretrain", *TINY, "training.num_steps=6", *settings])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (None, 0)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Of the tiny ViT."""
    torch.manual_seed(3)
    save_file(build_backbone("vit_tiny_patch16_224", ARGUMENTS).state_dict(), tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


def test_start_best_and_end_are_tested_on_the_same_images_and_a_kill_before_it_loses_nothing(
    class_folders: Path,
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = (
        f"store={class_folders}", f"out={tmp_path / 'run'}", f"model.weights={weights}",
        f"monitor.knn_data={class_folders}", "monitor.knn_every_steps=2", "evaluation.knn_k=5",
        "evaluation.num_bootstrap=100", "training.keep_checkpoints=1",
    )  # fmt: skip
    run_command(monkeypatch, *settings)
    run, said = RunFolder(tmp_path / "run"), capsys.readouterr().out
    verdict = read_verdict(run)
    assert verdict is not None
    assert [row.name for row in verdict.rows] in (["start", "end"], ["start", "best", "end"])
    assert (verdict.rows[0].step, verdict.rows[-1].step, verdict.num_images) == (0, 6, 6)
    count = f"6 validation images, {verdict.num_neighbours} to learn from"
    for text in ("k-NN accuracy", "end - start", verdict.sentence, count):
        assert text in said
    config = load_config(None, [*TINY, "training.num_steps=6", *settings])
    test = running_test(config, device=torch.device("cpu"))
    backbone = build_backbone("vit_tiny_patch16_224", ARGUMENTS).eval()
    of_end = read_checkpoint(run.checkpoint_file(6)).teacher["backbone"]
    for state, row in ((load_file(weights), verdict.rows[0]), (of_end, verdict.rows[-1])):
        backbone.load_state_dict(state)
        assert test.knn(backbone) == row.accuracy["knn"].value
    end, start = verdict.rows[-1], verdict.rows[0]
    for protocol, difference in end.minus_start.items():
        values = (end.accuracy[protocol].value, start.accuracy[protocol].value)
        assert difference.value == pytest.approx(values[0] - values[1])  # type: ignore[operator]

    run_command(monkeypatch, *settings)
    assert "is already finished" in capsys.readouterr().out
    write_verdict(run, verdict.model_copy(update={"interval": "", "rows": (), "sentence": ""}))
    run_command(monkeypatch, *settings)
    assert verdict.sentence in capsys.readouterr().out
    assert read_verdict(run) == verdict

    write_verdict(run, verdict.model_copy(update={"digest": "of other images"}))
    assert judge(run, test, run.checkpoint_file(6)) is None


def test_a_continued_run_is_compared_with_the_state_that_it_took_over(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = (f"store={class_folders}", f"out={tmp_path / 'first'}")
    run_command(monkeypatch, *first)
    assert not RunFolder(tmp_path / "first").verdict_file.exists(), "random weights are no start to beat"
    assert "beats its start" not in capsys.readouterr().out
    more = (f"store={class_folders}", f"training.continue_from={tmp_path / 'first'}", "training.num_steps=8")
    run_command(monkeypatch, *more, f"out={tmp_path / 'unlabelled'}")
    assert "not known whether the run beats its start: set monitor.knn_data=SPEC" in capsys.readouterr().out
    labels = (f"monitor.knn_data={class_folders}", "monitor.knn_every_steps=2", "evaluation.num_bootstrap=100")
    run_command(monkeypatch, *more, f"out={tmp_path / 'labelled'}", *labels)
    verdict = read_verdict(RunFolder(tmp_path / "labelled"))
    assert verdict is not None
    assert (verdict.rows[0].step, verdict.rows[-1].step) == (6, 8)


@pytest.mark.parametrize(
    ("knn", "linear", "expected"),
    [
        ((0.03, 0.01, 0.05), (0.0, -0.02, 0.02), "The end beats its start: k-NN +0.030 (+0.010 to +0.050), linear"),
        ((0.03, -0.01, 0.05), (0.0, None, None), "The end does not beat its start: k-NN +0.030 (-0.010 to +0.050)"),
        ((-0.03, -0.05, -0.01), (0.01, -0.1, 0.1), "The end falls behind its start: k-NN -0.030 (-0.050 to -0.010)"),
        ((-0.03, -0.05, -0.01), (0.01, 0.0, 0.1), "The end falls behind its start: "),
        ((-0.03, -0.05, -0.01), (0.1, 0.05, 0.2), "The end beats its start by linear and falls behind it by k-NN: "),
    ],
)
def test_the_sentence_says_what_intervals_leave_out(
    knn: tuple[float, float, float], linear: tuple[float, float | None, float | None], expected: str
) -> None:
    scores = [ScoreRecord(value=value, low=low, high=high) for value, low, high in (knn, linear)]
    minus_start = {"knn": scores[0], "linear": scores[1]}
    rows = [
        JudgedRecord(name="start", step=0, accuracy={}),
        JudgedRecord.model_validate({"name": "end", "step": 9, "accuracy": {}, "minus_start": minus_start}),
    ]
    assert sentence(rows).startswith(expected)


def test_a_difference_without_an_interval_says_so() -> None:
    assert signed(ScoreRecord(value=-0.25)) == "-0.250 (no interval)"
