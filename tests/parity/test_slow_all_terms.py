"""Five training steps with all terms against the formulas written in loops."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from slow_all_terms import SlowAllTerms
from test_slow_reference import in_float64, views_of
from tiny import ALL_TERMS, tiny_batches, tiny_config, tiny_learner, tiny_schedules

from dino_path.training.step import train_step
from dino_path.views.batches import ViewBatch

TOLERANCE = 1e-8
NUM_TILES = 3
SETTINGS = (
    *ALL_TERMS, "model.drop_path_rate=0", f"training.batch_size_per_gpu={NUM_TILES}",
    "objective.dino.weight=0.75", "objective.dino.num_prototypes=12", "objective.ibot.num_prototypes=9",
    "objective.dino.teacher_temp=0.07", "objective.dino.teacher_temp_warmup=3 steps", "objective.kde.weight=0.5",
    "optim.base_lr=0.05", "optim.lr_scaling=sqrt", "optim.lr_warmup=0 steps", "optim.final_lr=0.0001",
    "optim.layer_decay=0.8", "optim.patch_embed_lr=0.2", "optim.clip_scope=module", "optim.clip_norm=20",
    "optim.freeze_by=zero_lr",
)  # fmt: skip
CASES = {
    "centering, own head": ("objective.targets.method=centering", "objective.dino.norm_last_layer=false"),
    "Sinkhorn-Knopp, own head": ("objective.targets.method=sinkhorn-knopp", "optim.decay_embeddings=false"),
    "centering, shared head": ("objective.targets.method=centering", "objective.ibot.head=shared"),
    "Sinkhorn-Knopp, shared head": (
        "objective.targets.method=sinkhorn-knopp", "objective.ibot.head=shared",
        "objective.dino.norm_last_layer=false", "objective.ibot.masks.shape=patches", "training.fused_loss=false",
    ),
}  # fmt: skip


def in_double(batch: ViewBatch) -> ViewBatch:
    """The same with exact weights of patches."""
    assert batch.masks is not None
    counts = batch.masks.hidden.sum(1)
    return replace(batch, masks=replace(batch.masks, weights=(1.0 / counts.double()).repeat_interleave(counts)))


def hidden_of(batch: ViewBatch) -> list[list[list[int]]]:
    """hidden[v][b]: the hidden patches of the global view v of tile b."""
    assert batch.masks is not None
    rows = [row.nonzero().flatten().tolist() for row in batch.masks.hidden]
    return [rows[: len(rows) // 2], rows[len(rows) // 2 :]]


@pytest.mark.parametrize("case", CASES)
def test_five_steps_with_all_terms_equal_the_formulas_in_every_parameter(tiles_folder: Path, case: str) -> None:
    config = tiny_config(tiles_folder, Path("unused"), *SETTINGS, *CASES[case])
    learner = in_float64(tiny_learner(config))
    reference = SlowAllTerms(
        learner.student, mean=learner.mean, std=learner.std, objective=config.objective, optim=config.optim
    )
    batches, schedules = tiny_batches(config), tiny_schedules(config)
    start = {name: value.clone() for name, value in learner.student.named_parameters()}
    peak = 0.05 * math.sqrt(NUM_TILES / 1024)

    for step in range(5):
        batch, settings = in_double(batches.batch(step)), schedules.at(step)
        assert settings.last_layer_frozen == (step < 2)
        report = train_step(learner, [batch], settings, step=step)
        shares = reference.step(
            views_of(batch),
            hidden_of(batch),
            settings,
            lr=1e-4 + (peak - 1e-4) * (1 + math.cos(math.pi * step / 10)) / 2,
            ramp=min(1.0, max(0.0, (step - 1) / 2)),
        )
        for name, share in shares.items():
            assert float(report.numbers[name]) == pytest.approx(share, abs=TOLERANCE), name
        assert float(report.loss) == pytest.approx(sum(shares.values()), abs=TOLERANCE)
        if step == 1:
            assert torch.equal(learner.student.head.last_layer["weight_v"], start["head.last_layer.weight_v"])

    assert reference.clipped, "some module must be clipped for this test to mean much"
    assert reference.untouched
    for ours, theirs in ((learner.student, reference.student), (learner.teacher, reference.teacher)):
        for (name, value), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=TOLERANCE, msg=lambda text, n=name: f"{n}: {text}")
    if config.objective.targets.method == "centering":
        state = learner.objective.state()
        for term, center in (("dino", reference.center), ("ibot", reference.patch_center)):
            assert state[term]["center"][0].tolist() == pytest.approx(center, abs=TOLERANCE)
            assert any(center)
    moved = [name for name, value in learner.student.named_parameters() if not torch.equal(value, start[name])]
    fixed = [name for name, value in learner.student.named_parameters() if not value.requires_grad]
    assert sorted({*start} - {*moved}) == sorted(fixed)
    assert "mask_token.weight" in moved
