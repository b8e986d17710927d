"""Distillation's loss and standardisation, against numbers computed by hand."""

import pytest
import torch
from objective_batches import SETTINGS

from dino_path.config import DistillConfig
from dino_path.model.head import Match, NetworkOutput
from dino_path.records.guide import GuideRecord
from dino_path.training.objective.distill import DistillTerm, Standardisation, distance
from dino_path.training.objective.term import Guidance, Outputs

CPU = torch.device("cpu")


def guide_record(num_features: int = 2, num_patches: int | None = 3) -> GuideRecord:
    return GuideRecord(
        name="guide", digest="ab" * 32, num_parameters=9, num_features=num_features, input_px=16,
        num_patches=num_patches,
    )  # fmt: skip


def test_the_distance_is_that_of_the_formula() -> None:
    # cos = 0.6 and 0; differences (0, 4) and (-0.5, 0.5): smooth L1 of 0, 3.5, 0.125, 0.125.
    student = torch.tensor([[3.0, 4.0], [0.0, 0.5]], requires_grad=True)
    loss, cosine = distance(student, torch.tensor([[3.0, 0.0], [0.5, 0.0]]))
    assert cosine.item() == pytest.approx(0.3)
    assert loss.item() == pytest.approx(0.7 + 3.75 / 4)
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    # of smooth L1: sign or difference, over 4 numbers; of the cosine: -(t - cos s) / |s| over 2 rows of unit s and t.
    cls = -(torch.tensor([[1.0, 0.0], [1.0, 0.0]]) - torch.tensor([[0.36, 0.48], [0.0, 0.0]]))
    expected = torch.tensor([[0.0, 1.0], [-0.5, 0.5]]) / 4 + cls / torch.tensor([[5.0], [0.5]]) / 2
    torch.testing.assert_close(student.grad, expected)


def test_it_is_computed_in_fp32_of_a_student_in_bf16() -> None:
    student, target = torch.randn(5, 7), torch.randn(5, 7)
    loss, _ = distance(student.bfloat16(), target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, distance(student.bfloat16().float(), target)[0], rtol=0, atol=0)


def test_standardisation_is_by_mean_and_std_of_all_rows_so_far_whatever_their_size() -> None:
    generator = torch.Generator().manual_seed(0)
    scale, shift = torch.tensor([1e-3, 1.0, 300.0, 0.0]), torch.tensor([5.0, 0.0, -2000.0, 7.0])
    rows = torch.randn(3, 50, 4, generator=generator) * scale + shift
    running = Standardisation(4, CPU)
    torch.testing.assert_close(running(rows[0]), rows[0])
    for step in rows:
        running.update(running.to_average(step))
    whole = rows.flatten(0, 1).double()
    torch.testing.assert_close(running.mean, whole.mean(0))
    found = running(whole.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, 1:3].std(0, correction=0), torch.ones(2), rtol=1e-4, atol=0)
    assert found[:, 3].abs().max() < 1e-3  # a constant feature tells nothing, and is not blown up
    assert found[:, 0].abs().max() < 1  # nor is one that is all but constant


def outputs_of(generator: torch.Generator, *, num_tiles: int = 2, with_patches: bool = True) -> Outputs:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(2 * num_tiles, *shape, generator=generator)

    patches = (random(3, 2), random(3, 2)) if with_patches else (None, None)
    student = NetworkOutput(random(5), None, match=Match(random(2), patches[0]))
    return Outputs(student, None, guidance=Guidance(random(2), patches[1]))


def test_cls_and_patches_are_weighted_and_the_first_step_only_measures() -> None:
    generator = torch.Generator().manual_seed(1)
    config = DistillConfig(weight=2.0, teacher="guide", patches=0.5)
    term, outputs = DistillTerm(config, guide_record(), CPU), outputs_of(generator)
    assert outputs.num_tiles == 2
    assert term.measure(outputs, SETTINGS).loss.item() == 0
    term.update(term.to_average(outputs))
    value = term.measure(outputs, SETTINGS)
    match, guidance = outputs.student.match, outputs.guidance
    assert match is not None
    assert guidance is not None
    parts = []
    for ours, theirs in ((match.cls, guidance.cls), (match.patches, guidance.patches)):
        assert ours is not None
        assert theirs is not None
        rows = theirs.flatten(0, -2).double()
        target = ((rows - rows.mean(0)) / rows.std(0, correction=0)).float()
        parts.append(distance(ours.flatten(0, -2), target))
    (cls, cosine), (patches, patch_cosine) = parts
    torch.testing.assert_close(value.loss, cls + 0.5 * patches, rtol=1e-5, atol=0)
    torch.testing.assert_close(value.logged["distill_cosine"], cosine, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(value.logged["distill_patch_cosine"], patch_cosine, rtol=1e-5, atol=1e-6)


def test_without_patches_there_is_cls_alone() -> None:
    term = DistillTerm(DistillConfig(weight=1, teacher="guide", patches=0), guide_record(num_patches=None), CPU)
    outputs = outputs_of(torch.Generator(), with_patches=False)
    term.update(term.to_average(outputs))
    assert {*term.measure(outputs, SETTINGS).logged} == {"distill_cosine"}
    assert {*term.state()} == {"guide", "cls_num_steps", "cls_mean", "cls_mean_square"}
    assert bytes(term.state()["guide"].tolist()).hex() == "ab" * 32
