"""One training step: the algorithm, in its published order."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dino_path.distributed import World
from dino_path.model.head import NetworkOutput
from dino_path.training.learner import Learner
from dino_path.training.networks import update_teacher
from dino_path.training.objective.term import Outputs
from dino_path.training.optimizer import clip_gradients, set_schedules
from dino_path.training.schedules import StepSettings
from dino_path.views.batches import ViewBatch


@dataclass(frozen=True)
class StepReport:
    """The numbers of one step for the log."""

    numbers: dict[str, Tensor]
    """Scalars on the device, by their names in the record: the loss and what its terms log, as means over the
    micro-batches; `grad_norm` of all gradients before clipping, and `grad_norm_<part>` of the student's parts."""
    features: Tensor
    """(B, D) of the first global view of every tile, the teacher's; the student's where the teacher has no pass."""
    is_skipped: bool
    """The loss was not finite on some rank: nothing was updated."""
    is_stopping: bool
    """Whether some rank wants to stop after this step; all ranks learn it in the same step."""

    @property
    def loss(self) -> Tensor:
        return self.numbers["loss"]


def train_step(
    learner: Learner,
    micro_batches: Sequence[ViewBatch],
    settings: StepSettings,
    *,
    step: int,
    wants_stop: bool = False,
) -> StepReport:
    """One update: targets, loss, gradients, student, teacher, center (facebookresearch/dino, train_one_epoch).

    With several micro-batches it is the update of one batch of them all: the teacher sees all of them first, since
    Sinkhorn-Knopp balances its targets over the whole batch; the loss, and the means that terms remember such as the
    center, are means over them, and all meet the same targets and teacher. Where no term asks for the teacher's pass
    there is none, and it only follows the student. The global random state is set from (seed, step, rank) first, so
    that stochastic depth depends on nothing else and a resumed run repeats it. A loss that is not finite on any rank
    moves nothing on all of them. While the backbone is frozen its parameters have no gradients: the optimizer does not
    know them yet, so they have no moments and no decay.

    Args:
        wants_stop: this rank asks all to stop after this step; see `StepReport.is_stopping`.
    """
    training, world, objective = learner.training, learner.world, learner.objective
    world.progress.arrive()
    torch.manual_seed(_step_seed(training.seed, step, world.rank))
    set_schedules(learner.optimizer, settings)
    learner.optimizer.zero_grad(set_to_none=True)
    # Batch norms move in the forward pass; a skipped step puts them back. ViTs have no buffers.
    buffers = [*learner.student.buffers(), *learner.teacher.buffers()]
    buffers_before = [buffer.clone() for buffer in buffers]

    views = [learner.global_views(batch) for batch in micro_batches]
    taught: list[NetworkOutput] = []
    if objective.needs.teacher:
        taught = [learner.teach(seen, batch.masks) for seen, batch in zip(views, micro_batches, strict=True)]
        objective.prepare(taught, settings)

    study = partial(learner.study, backbone_frozen=settings.backbone_frozen)
    features: list[Tensor] = []
    measured: list[dict[str, Tensor]] = []
    means: dict[str, Tensor] = {}  # over the global batch, of what the terms remember: DINO's next center
    for number, batch in enumerate(micro_batches, 1):
        is_last = number == len(micro_batches)
        with nullcontext() if is_last else learner.gradients_stay_here():
            seen, teacher = views.pop(0), taught.pop(0) if taught else None
            guidance = learner.consult(seen, batch)
            outputs = Outputs(study(seen, batch), teacher, batch.masks, guidance)
            features.append((teacher or outputs.student).features[: len(batch.tiles)].detach().float())
            loss, numbers = objective.measure(outputs, settings)
            measured.append(numbers)
            for name, value in objective.to_average(outputs).items():
                means[name] = means.get(name, 0) + value / len(micro_batches)
            if is_last:
                # Queued before the last backward pass: the terms' sums travel while that runs, and the verdict is
                # on the host by the time it is wanted, without the device ever running out of work.
                sums = [world.start_sum(value) for value in means.values()]
                verdict = _verdict([each["loss"] for each in measured], world, wants_stop=wants_stop)
            # Of no use to the backward pass: prototypes, 67 MB each of 65,536, and the views in fp32.
            del seen, teacher, guidance, outputs
            (loss / len(micro_batches)).backward()  # type: ignore[no-untyped-call]
    if settings.backbone_frozen:
        learner.average_gradients()

    num_bad, num_stopping = verdict.read()
    for each in sums:
        each.wait()
    is_skipped = num_bad > 0
    part_norms = [torch.zeros((), device=world.device)] * len(learner.parts)
    if is_skipped:
        learner.num_skipped += 1
        for buffer, before in zip(buffers, buffers_before, strict=True):
            buffer.copy_(before)
    else:
        if settings.last_layer_frozen and learner.optim.freeze_by == "no_gradient":
            # AdamW then skips the prototypes (no moments, no decay), and they do not count in a global norm.
            for head in learner.student.heads:
                for parameter in head.last_layer.values():
                    parameter.grad = None
        part_norms = clip_gradients(learner.parts, learner.optim)
        learner.optimizer.step()
        update_teacher(learner.teacher, learner.student, settings.momentum, has_pass=objective.needs.teacher)
        objective.update({name: value / world.size for name, value in means.items()})
    norms = {f"grad_norm_{part}": norm for part, norm in zip(learner.parts, part_norms, strict=True)}
    return StepReport(
        numbers={
            **{name: torch.stack([each[name] for each in measured]).mean() for name in measured[0]},
            "grad_norm": torch.stack(part_norms).norm(),
            **norms,
        },
        features=torch.cat(features),
        is_skipped=is_skipped,
        is_stopping=num_stopping > 0,
    )


def _step_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    state = 0
    for number in numbers:
        state = (state * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return state


def _verdict(losses: Sequence[Tensor], world: World, *, wants_stop: bool) -> _HostCopy:
    """How many ranks have a loss that is not finite, and how many want to stop."""
    is_bad = ~torch.stack(list(losses)).isfinite().all()
    stops = torch.full((), float(wants_stop), device=world.device)  # filled there: a copy from the host would wait
    return _HostCopy(world.sum_(torch.stack([is_bad.float(), stops])))


class _HostCopy:
    """Numbers on their way to the host. `read` waits for them, but not for work queued on the device after them.

    A plain `.item()` after the backward pass would let the device run dry once a step: everything queued must end
    before the host may queue the optimizer.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrival = torch.cuda.Event() if numbers.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrival is not None:
            self._arrival.record()

    def read(self) -> list[float]:
        if self._arrival is not None:
            self._arrival.synchronize()
        numbers: list[float] = self._numbers.tolist()
        return numbers
