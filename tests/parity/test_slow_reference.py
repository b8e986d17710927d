"""Five training steps against DINO written in loops from the paper."""

from pathlib import Path

import pytest
import torch
from slow_reference import SlowDino
from tiny import center_of, tiny_batches, tiny_config, tiny_learner, tiny_schedules

from dino_path.training.learner import Learner
from dino_path.training.objective.targets import Centering
from dino_path.training.step import train_step
from dino_path.views.batches import ViewBatch

# float64 on both sides, but timm resamples the position embedding of local views in float32: its gradients are summed
# in another order there, and AdamW's division makes that visible where a gradient is almost zero.
TOLERANCE = 1e-8
SETTINGS = (
    "model.drop_path_rate=0", "optim.base_lr=0.03", "objective.dino.num_prototypes=12", "optim.lr_warmup=0 steps",
    "optim.clip_norm=0.02",
    "objective.dino.teacher_temp=0.07", "objective.dino.teacher_temp_warmup=3 steps", "training.batch_size_per_gpu=2",
)  # fmt: skip


def in_float64(learner: Learner) -> Learner:
    """The same learner with every number in double precision."""
    learner.student.double()
    learner.teacher.double()
    learner.mean, learner.std = learner.mean.double(), learner.std.double()
    for term in learner.objective.terms.values():
        targets = getattr(term, "targets", None)
        if isinstance(targets, Centering):
            targets.center = targets.center.double()
    return learner


def views_of(batch: ViewBatch) -> list[list[torch.Tensor]]:
    """views[v][b] of a batch."""
    num_tiles = len(batch.tiles)
    return [list(view) for views in (batch.global_views, batch.local_views) for view in views.split(num_tiles)]


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_five_steps_equal_the_reference_in_every_parameter(tiles_folder: Path, norm_last_layer: bool) -> None:
    config = tiny_config(tiles_folder, Path("unused"), *SETTINGS, f"objective.dino.norm_last_layer={norm_last_layer}")
    learner = in_float64(tiny_learner(config))
    reference = SlowDino(learner.student, mean=learner.mean, std=learner.std, num_prototypes=12)
    batches, schedules = tiny_batches(config), tiny_schedules(config)
    start = {name: value.clone() for name, value in learner.student.named_parameters()}

    for step in range(5):
        batch, settings = batches.batch(step), schedules.at(step)
        assert settings.last_layer_frozen == (step < 2)
        report = train_step(learner, [batch], settings, step=step)
        loss = reference.step(
            views_of(batch),
            settings,
            student_temp=config.objective.dino.student_temp,
            clip_norm=0.02,
            center_momentum=config.objective.targets.center_momentum,
        )
        assert float(report.loss) == pytest.approx(loss, abs=TOLERANCE)
        if step == 1:
            assert torch.equal(learner.student.head.last_layer["weight_v"], start["head.last_layer.weight_v"])

    assert reference.clipped - reference.untouched, "some tensors must always be clipped for this test to mean much"
    assert reference.untouched
    for ours, theirs in ((learner.student, reference.student), (learner.teacher, reference.teacher)):
        for (name, value), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=TOLERANCE, msg=lambda text, n=name: f"{n}: {text}")
    torch.testing.assert_close(center_of(learner)[0].tolist(), reference.center, rtol=0, atol=TOLERANCE)
    moved = [name for name, value in learner.student.named_parameters() if not torch.equal(value, start[name])]
    frozen = ["head.last_layer.weight_g"] if norm_last_layer else []
    assert sorted({*start} - {*moved}) == frozen
