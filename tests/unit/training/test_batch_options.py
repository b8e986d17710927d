"""Options of memory and time: the numbers stay those of the plain step."""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny import differences, state_of, tiny_batches, tiny_config, tiny_learner, tiny_schedules, training_of
from torch import Tensor

from dino_path.config import Config
from dino_path.errors import ConfigError
from dino_path.model.head import NetworkOutput
from dino_path.training import networks
from dino_path.training.acceleration import checkpoint_activations, compile_blocks
from dino_path.training.learner import Learner
from dino_path.training.step import StepReport, train_step
from dino_path.views.batches import ViewBatch

OUT = Path("unused")
DIVIDED = ("training.batch_size_per_gpu=1", "training.accumulate_steps=4")


def micro_batches(config: Config, step: int) -> list[ViewBatch]:
    batches, count = tiny_batches(config), training_of(config).accumulate_steps
    return [batches.batch(step * count + piece) for piece in range(count)]


def trained(
    config: Config, *, num_steps: int = 4, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, torch.Tensor], list[StepReport]]:
    """The state after some steps in `dtype`, and their reports."""
    torch.set_default_dtype(dtype)
    try:
        learner = tiny_learner(config)
    finally:
        torch.set_default_dtype(torch.float32)
    schedules = tiny_schedules(config)
    reports = [
        train_step(learner, micro_batches(config, step), schedules.at(step), step=step) for step in range(num_steps)
    ]
    return state_of(learner), reports


def tiles_of(batches: Sequence[ViewBatch]) -> list[int]:
    return [tile for batch in batches for tile in batch.tiles.tolist()]


def test_micro_batches_are_the_tiles_of_the_whole_batch(tiles_folder: Path) -> None:
    whole, divided = tiny_config(tiles_folder, OUT), tiny_config(tiles_folder, OUT, *DIVIDED)
    for step in range(3):
        assert tiles_of(micro_batches(divided, step)) == tiles_of(micro_batches(whole, step))


def test_two_ranks_with_two_micro_batches_each_see_the_tiles_of_the_whole_batch(tiles_folder: Path) -> None:
    settings = ("training.batch_size_per_gpu=1", "training.accumulate_steps=2")
    config = tiny_config(tiles_folder, OUT, *settings)
    ranks = [tiny_batches(config, rank=rank, world_size=2) for rank in range(2)]
    for step in range(3):
        seen = [rank.batch(2 * step + piece) for rank in ranks for piece in range(2)]
        assert tiles_of(seen) == tiles_of(micro_batches(tiny_config(tiles_folder, OUT), step))


def test_accumulated_steps_equal_those_of_the_whole_batch(tiles_folder: Path) -> None:
    plain = ("model.drop_path_rate=0", "optim.clip_norm=0.05")
    whole, reports = trained(tiny_config(tiles_folder, OUT, *plain), dtype=torch.float64)
    divided, parts = trained(tiny_config(tiles_folder, OUT, *plain, *DIVIDED), dtype=torch.float64)
    assert whole.keys() == divided.keys()
    for name, value in whole.items():
        torch.testing.assert_close(divided[name], value, rtol=1e-8, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}")
    assert bool(whole["center"].any())
    for report, part in zip(reports, parts, strict=True):
        for name in ("loss", "teacher_entropy", "kl", "grad_norm", "grad_norm_backbone"):
            torch.testing.assert_close(part.numbers[name], report.numbers[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(part.features, report.features, rtol=1e-5, atol=1e-6)


def test_one_micro_batch_that_is_not_finite_skips_the_whole_step(
    tiles_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tiles_folder, OUT, *DIVIDED)
    learner, schedules = tiny_learner(config), tiny_schedules(config)
    train_step(learner, micro_batches(config, 0), schedules.at(0), step=0)
    before, study, calls = state_of(learner), learner.study, []

    def broken_once(global_views: Tensor, batch: ViewBatch, *, backbone_frozen: bool) -> NetworkOutput:
        output = study(global_views, batch, backbone_frozen=backbone_frozen)
        calls.append(batch)
        assert output.projection is not None
        broken = output.projection._replace(
            bottleneck=output.projection.bottleneck * (math.nan if len(calls) == 2 else 1)
        )
        return output._replace(projection=broken)

    monkeypatch.setattr(learner, "study", broken_once)
    report = train_step(learner, micro_batches(config, 1), schedules.at(1), step=1)
    assert len(calls) == 4
    assert report.is_skipped
    assert differences(before, state_of(learner)) == []


@pytest.mark.parametrize("choice", ["true", "elementwise"])
@pytest.mark.parametrize(("precision", "schedule"), [("fp32", "linear"), ("bf16", "constant")])
def test_activations_computed_twice_change_no_bit_stochastic_depth_included(
    tiles_folder: Path, choice: str, precision: str, schedule: str
) -> None:
    settings = (
        "model.drop_path_rate=0.5",
        f"model.drop_path_schedule={schedule}",
        f"training.precision={precision}",
    )
    plain, _ = trained(tiny_config(tiles_folder, OUT, *settings))
    twice, _ = trained(tiny_config(tiles_folder, OUT, *settings, f"training.activation_checkpointing={choice}"))
    assert differences(plain, twice) == []


def numbers_kept(learner: Learner, batch: ViewBatch) -> int:
    """What autograd keeps of the student's pass over the global views."""
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        learner.student.backbone(learner.normalised(batch.global_views, batch.global_parameters))
    return sum(sizes)


def test_activations_computed_twice_are_not_kept(tiles_folder: Path) -> None:
    batch = tiny_batches(tiny_config(tiles_folder, OUT)).batch(0)
    kept = [
        numbers_kept(tiny_learner(tiny_config(tiles_folder, OUT, f"training.activation_checkpointing={choice}")), batch)
        for choice in ("false", "elementwise", "true")
    ]
    width, tokens, num_blocks = 32, 8 * (1 + 4 * 4), 2
    hidden, weights = 4 * width * tokens, 4 * width**2  # of one block; only the innermost hooks see what a layer keeps
    assert kept[1] == kept[0] - (hidden + weights) * num_blocks
    assert kept[2] < 0.5 * kept[0]


def test_layer_scales_change_results_by_rounding_only_and_what_they_scale_is_not_kept(
    tiles_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(
        tiles_folder, OUT, "model.drop_path_rate=0", "model.arguments.init_values=0.5", "training.precision=fp32"
    )
    batch = tiny_batches(config).batch(0)
    folded, kept = trained(config, dtype=torch.float64)[0], numbers_kept(tiny_learner(config), batch)
    monkeypatch.setattr(networks, "fold_layer_scales", lambda _: None)
    plain, kept_plain = trained(config, dtype=torch.float64)[0], numbers_kept(tiny_learner(config), batch)
    assert folded.keys() == plain.keys(), "folding leaves the parameters as they are"
    for name, value in plain.items():
        torch.testing.assert_close(folded[name], value, rtol=1e-7, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")
    width, tokens, num_scales, num_blocks = 32, 8 * (1 + 4 * 4), 4, 2
    scaled, weights = num_scales * width * tokens, num_blocks * (1 + 4) * width**2
    biases = num_scales * width  # and the scales, which are kept once more for them
    assert kept == kept_plain - scaled + weights + 2 * biases


def test_a_backbone_without_plain_mlps_is_refused_where_they_are_to_be_computed_twice(tiles_folder: Path) -> None:
    settings = ("model.backbone=resnet18", "model.arguments={}", "training.activation_checkpointing=elementwise")
    with pytest.raises(ConfigError, match="resnet18 has no MLPs"):
        tiny_learner(tiny_config(tiles_folder, OUT, *settings))


@pytest.mark.parametrize(("precision", "is_fused"), [("fp32", True), ("bf16", False)])
def test_attention_on_a_cpu_is_explicit_where_the_fused_kernel_is_slow(
    tiles_folder: Path, precision: str, is_fused: bool
) -> None:
    learner = tiny_learner(tiny_config(tiles_folder, OUT, f"training.precision={precision}"))
    choices = [
        m.fused_attn for n in (learner.student, learner.teacher) for m in n.modules() if hasattr(m, "fused_attn")
    ]
    assert choices == [is_fused] * 4


def test_a_backbone_without_such_options_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no activation checkpointing"):
        checkpoint_activations(torch.nn.Linear(2, 2), "linear")
    with pytest.raises(ConfigError, match="has no blocks to compile"):
        compile_blocks(torch.nn.Linear(2, 2), "linear")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler itself
def test_compiled_blocks_change_results_by_rounding_only(tiles_folder: Path) -> None:
    exact = ("model.drop_path_rate=0", "training.precision=fp32")
    plain, reports = trained(tiny_config(tiles_folder, OUT, *exact))
    kept = []
    for recompute in ("false", "elementwise"):
        torch._dynamo.reset()  # type: ignore[no-untyped-call]  # code compiled for one network serves its like
        options = ("training.compile=true", f"training.activation_checkpointing={recompute}")
        config = tiny_config(tiles_folder, OUT, *exact, *options)
        compiled, others = trained(config)
        for report, other in zip(reports, others, strict=True):
            torch.testing.assert_close(other.loss, report.loss, rtol=1e-5, atol=1e-5)
        assert plain.keys() == compiled.keys(), "a compiled model has the names of a plain one"
        for name, value in plain.items():
            torch.testing.assert_close(
                compiled[name], value, rtol=1e-3, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}"
            )
        kept.append(numbers_kept(tiny_learner(config), tiny_batches(config).batch(0)))
    assert kept[1] < 0.8 * kept[0]
