"""Checks that need a GPU. Everywhere else these tests are skipped; `make bench-gpu` runs them first."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from runs import metrics_of
from tiny import ALONE, state_of, tiny_batches, tiny_config, tiny_learner, tiny_schedules
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dino_path.distributed import World
from dino_path.model.head import Projection
from dino_path.run import RunFolder
from dino_path.training.learner import Learner
from dino_path.training.loop import pretrain
from dino_path.training.objective import fused_loss
from dino_path.training.objective.dino_loss import dino_loss
from dino_path.training.objective.fused_loss import fused_dino_loss
from dino_path.training.step import StepReport, train_step
from dino_path.views.batches import ViewBatch, sent_ahead
from dino_path.views.device import finish_views

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of drivers and compilers, which are not ours to fix
]
OUT = Path("unused")
GPU = World(rank=0, size=1, local_rank=0, device=torch.device("cuda", 0))
COLOUR = "views.colour_on_device=true"


def steps(learner: Learner, store: Path, *settings: str, num_steps: int = 4) -> list[StepReport]:
    config = tiny_config(store, OUT, *settings)
    batches, schedules = tiny_batches(config), tiny_schedules(config)
    return [
        train_step(learner, [batches.batch(step).pin_memory()], schedules.at(step), step=step)
        for step in range(num_steps)
    ]


def on_both(store: Path, *settings: str) -> tuple[list[float], list[float]]:
    """Losses of four steps on the CPU and on the GPU."""
    config = tiny_config(store, OUT, "model.drop_path_rate=0", *settings)
    reports = [steps(tiny_learner(config, world), store, *settings) for world in (ALONE, GPU)]
    cpu, gpu = ([float(report.loss) for report in each] for each in reports)
    return cpu, gpu


@pytest.mark.parametrize("recipe", ["dino", "histology"])
def test_views_finished_on_the_gpu_are_those_of_the_cpu(tiles_folder: Path, recipe: str) -> None:
    batch = tiny_batches(tiny_config(tiles_folder, OUT, COLOUR, f"views.recipe={recipe}")).batch(0)
    for views, parameters in (
        (batch.global_views, batch.global_parameters), (batch.local_views, batch.local_parameters),
    ):  # fmt: skip
        expected = finish_views(views, parameters, ALONE.device)
        finished = finish_views(views.pin_memory(), parameters.pin_memory(), GPU.device)
        assert finished.is_cuda
        assert float((finished.cpu() - expected).abs().mean()) < 1e-4
        torch.testing.assert_close(finished.cpu(), expected, rtol=0, atol=1 / 255)  # hues turn sharply at grey


def test_batches_sent_ahead_arrive_in_order_and_whole(tiles_folder: Path) -> None:
    batches = tiny_batches(tiny_config(tiles_folder, OUT, COLOUR))
    made = [batches.batch(number).pin_memory() for number in range(5)]
    for batch, expected in zip(sent_ahead(iter(made), GPU.device), made, strict=True):
        torch.cuda._sleep(10_000_000)  # the device lags behind: a copy must not overwrite what is still to be read
        seen: list[Tensor] = [batch.global_views + 0, batch.local_views + 0]
        assert torch.equal(seen[0].cpu(), expected.global_views)
        assert torch.equal(seen[1].cpu(), expected.local_views)
        assert torch.equal(batch.tiles, expected.tiles)


@pytest.mark.parametrize("piece_bytes", [2**30, 1])
def test_the_fused_loss_equals_the_plain_one(monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    monkeypatch.setattr(fused_loss, "PIECE_BYTES", piece_bytes)
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int) -> Tensor:
        return nn.functional.normalize(torch.randn(rows, 256, generator=generator)).to(GPU.device)

    student = Projection(unit(10 * 4).requires_grad_(), unit(65536).requires_grad_())
    teacher, center = Projection(unit(2 * 4), unit(65536)), torch.zeros(1, 65536, device=GPU.device)
    plain = dino_loss(student.logits(), teacher.logits(), center, student_temp=0.1, teacher_temp=0.04)
    fused = fused_dino_loss(student, teacher, center, student_temp=0.1, teacher_temp=0.04)
    for name in ("loss", "teacher_entropy", "kl", "prototypes_used"):
        torch.testing.assert_close(getattr(fused, name), getattr(plain, name), rtol=1e-5, atol=1e-5)
    for one, other in zip(*(torch.autograd.grad(each.loss, [*student]) for each in (plain, fused)), strict=True):
        assert float((one - other).norm() / one.norm()) < 5e-5


def test_steps_on_the_gpu_are_those_of_the_cpu(tiles_folder: Path) -> None:
    cpu, gpu = on_both(tiles_folder, "training.precision=fp32")
    assert gpu == pytest.approx(cpu, rel=1e-4)


def test_steps_in_bf16_are_those_of_the_cpu_but_for_its_rounding(tiles_folder: Path) -> None:
    cpu, gpu = on_both(tiles_folder, "training.precision=bf16")
    assert gpu == pytest.approx(cpu, rel=1e-2)


@pytest.mark.parametrize("recompute", ["false", "elementwise", "true"])
@pytest.mark.parametrize("is_compiled", ["false", "true"])
def test_options_of_speed_and_memory_leave_the_losses(tiles_folder: Path, is_compiled: str, recompute: str) -> None:
    torch._dynamo.reset()  # type: ignore[no-untyped-call]  # code compiled for one network serves its like
    exact = ("training.precision=fp32", "model.drop_path_rate=0")
    options = (f"training.compile={is_compiled}", f"training.activation_checkpointing={recompute}")
    plain = steps(tiny_learner(tiny_config(tiles_folder, OUT, *exact), GPU), tiles_folder)
    other = steps(tiny_learner(tiny_config(tiles_folder, OUT, *exact, *options), GPU), tiles_folder)
    for one, two in zip(plain, other, strict=True):
        assert float(two.loss) == pytest.approx(float(one.loss), rel=1e-4)


@pytest.mark.parametrize("colour", ["true", "false"])
@pytest.mark.parametrize("is_fused", ["true", "false"])
def test_a_step_never_waits_for_all_that_is_queued(tiles_folder: Path, colour: str, is_fused: str) -> None:
    config = tiny_config(
        tiles_folder, OUT, f"views.colour_on_device={colour}", f"training.fused_loss={is_fused}",
        "training.batch_size_per_gpu=64",
    )  # fmt: skip
    learner, schedules = tiny_learner(config, GPU), tiny_schedules(config)
    batches = [tiny_batches(config).batch(step).pin_memory() for step in range(5)]
    for step, batch in enumerate(sent_ahead(iter(batches), GPU.device)):
        torch.cuda.set_sync_debug_mode("default" if step < 2 else "error")
        try:
            report = train_step(learner, [batch], schedules.at(step), step=step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert bool(report.loss.isfinite())


def test_a_student_learns_on_the_gpu_from_a_frozen_model_as_on_the_cpu(tiles_folder: Path) -> None:
    teacher = "objective.distill.teacher=untrained:timm:vit_tiny_patch16_224"
    cpu, gpu = on_both(tiles_folder, "training.precision=fp32", "objective.distill.weight=1", teacher)
    assert gpu == pytest.approx(cpu, rel=1e-4)


@pytest.fixture
def nccl() -> Iterator[None]:
    """A process group of one on NCCL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1, device_id=GPU.device)
    yield
    dist.destroy_process_group()


def test_ddp_on_nccl_gives_the_gradients_of_the_bare_network_also_accumulated(nccl: None, tiles_folder: Path) -> None:
    exact = ("training.precision=fp32", "model.drop_path_rate=0", "objective.dino.norm_last_layer=false")
    sizes = ("training.batch_size_per_gpu=2", "training.accumulate_steps=2")
    config = tiny_config(tiles_folder, OUT, *exact, *sizes)
    states = []
    for is_ddp in (False, True):
        learner = tiny_learner(config, GPU)
        if is_ddp:
            learner._forward_student = DistributedDataParallel(learner.student, device_ids=[0])
        batches, schedules = tiny_batches(config), tiny_schedules(config)
        for step in range(4):
            pieces: list[ViewBatch] = [batches.batch(2 * step + piece).pin_memory() for piece in range(2)]
            train_step(learner, pieces, schedules.at(step), step=step)
        states.append(state_of(learner))
    for name, value in states[0].items():
        torch.testing.assert_close(
            states[1][name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_synchronised_batch_norms_train(nccl: None, tiles_folder: Path) -> None:
    config = tiny_config(tiles_folder, OUT, "objective.dino.head_batch_norm=true", "training.precision=fp32")
    plain, converted = tiny_learner(config, GPU), tiny_learner(config, GPU)
    converted.student = nn.SyncBatchNorm.convert_sync_batchnorm(converted.student)
    converted._forward_student = DistributedDataParallel(converted.student, device_ids=[0])
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.student.modules())
    losses = [[float(report.loss) for report in steps(each, tiles_folder, num_steps=1)] for each in (plain, converted)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_run_killed_halfway_ends_as_the_run_that_was_not(tiles_folder: Path, tmp_path: Path) -> None:
    """The same steps from the same checkpoint; not bit for bit, because GPUs add in varying order."""
    losses = []
    for name, is_cut in (("whole", False), ("cut", True)):
        config = tiny_config(tiles_folder, tmp_path / name, COLOUR, "training.device=cuda", "training.num_workers=2")
        run = RunFolder(tmp_path / name)
        pretrain(config, GPU)
        if is_cut:
            run.checkpoint_file(10).unlink()
            pretrain(config, GPU)
        losses.append({record["step"]: record["loss"] for record in metrics_of(run)})
    assert sorted(losses[0]) == sorted(losses[1]) == [*range(10)]
    assert [losses[1][step] for step in range(10)] == pytest.approx([losses[0][step] for step in range(10)], rel=1e-2)
