"""Everything that training changes: networks, objective, optimizer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dino_path.config import ModelConfig, ObjectiveConfig, OptimConfig, TrainingConfig
from dino_path.distributed import World
from dino_path.model.backbone import build_backbone
from dino_path.model.head import NetworkOutput
from dino_path.model.lora import add_adapters, merged
from dino_path.training.guide import Guide
from dino_path.training.networks import (
    build_network,
    check_needs,
    load_start_weights,
    prepare_networks,
    resolve_precision,
)
from dino_path.training.objective.term import Guidance
from dino_path.training.objective.total import Objective, build_terms
from dino_path.training.optimizer import build_optimizer
from dino_path.training.sharding import whole
from dino_path.views.batches import ViewBatch
from dino_path.views.device import finish_views
from dino_path.views.masks import ViewMasks


class Learner:
    """Two networks, the objective with the state of its terms, the optimizer, and the count of skipped steps.

    Args:
        guide: the frozen model of `objective.distill`, if that has a weight.
    """

    def __init__(
        self,
        model: ModelConfig,
        objective: ObjectiveConfig,
        optim: OptimConfig,
        training: TrainingConfig,
        world: World,
        guide: Guide | None = None,
    ) -> None:
        # Every module built below advances the random state, so their order decides the initial weights: another order
        # changes the results of every seed.
        torch.manual_seed(training.seed)
        self.model, self.optim, self.training, self.world, self.guide = model, optim, training, world, guide
        facts = guide.facts if guide is not None else None
        guide_features = facts.num_features if facts is not None else None
        self.student = build_network(
            model, objective, drop_path_rate=model.drop_path_rate, guide_features=guide_features
        )
        if model.weights is not None:
            load_start_weights(self.student, model)
        # Stochastic depth is for the student only, as published.
        self.teacher = build_network(model, objective, drop_path_rate=0.0, guide_features=guide_features)
        if model.lora_rank is not None:
            for network in (self.student, self.teacher):
                add_adapters(network.backbone, model)
        # After weights and adapters, so that the teacher starts as an exact copy of the student.
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.precision = resolve_precision(training, world.device)
        self.objective = Objective(build_terms(objective, training, world, facts))
        check_needs(self.student.backbone, model.backbone, self.objective.needs)
        # Sharding replaces the parameters (by DTensors), so the optimizer must be built after it.
        self._forward_student = prepare_networks(self.student, self.teacher, model.backbone, training, world)
        self.parts = self.student.parts()
        self.optimizer = build_optimizer(self.student, optim)
        self.num_skipped = 0
        self.mean = torch.tensor(model.mean, device=world.device).view(1, 3, 1, 1)
        self.std = torch.tensor(model.std, device=world.device).view(1, 3, 1, 1)

    @property
    def global_batch_size(self) -> int:
        """Tiles per step on all ranks."""
        return self.training.batch_size_per_gpu * self.training.accumulate_steps * self.world.size

    def normalised(self, views: Tensor, parameters: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, H, W) float on the training device, finished and normalised by the model's
        mean and std.

        Args:
            parameters: (N, P), of a ViewBatch.
        """
        return (finish_views(views, parameters, self.world.device) - self.mean) / self.std

    def autocast(self) -> torch.autocast:
        """The precision of backbone and head; loss, softmax and center are fp32 in any case."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def teacher_backbone(self) -> nn.Module | None:
        """A copy of the teacher's backbone for inference, on rank 0. All ranks must call: each may hold a part."""
        state = whole(self.teacher.backbone.state_dict(), self.world)
        if not self.world.is_first:
            return None
        backbone = build_backbone(self.model.backbone, self.model.backbone_arguments)
        backbone.load_state_dict(merged(state, self.model))
        return backbone.to(self.world.device).eval()

    def gradients_stay_here(self) -> AbstractContextManager[None]:
        """Within this context, a backward pass adds to this rank's gradients without averaging them over the ranks."""
        if isinstance(self._forward_student, DistributedDataParallel):
            return self._forward_student.no_sync()
        return nullcontext()

    def average_gradients(self) -> None:
        """Average the gradients of passes that bypassed DDP over the ranks; FSDP2 averages by itself."""
        if isinstance(self._forward_student, DistributedDataParallel):
            for parameter in self.student.parameters():
                if parameter.grad is not None:
                    self.world.sum_(parameter.grad).div_(self.world.size)

    def global_views(self, batch: ViewBatch) -> Tensor:
        """(2 * B, 3, H, W): the global views of a micro-batch for both networks; the student sees them masked."""
        return self.normalised(batch.global_views, batch.global_parameters)

    @torch.no_grad()
    def teach(self, global_views: Tensor, masks: ViewMasks | None) -> NetworkOutput:
        """The teacher's output for the unmasked global views, and for the patches that are masked in the student's."""
        chosen = masks.indices if masks is not None else None
        with self.autocast():
            output: NetworkOutput = self.teacher(
                [global_views], with_patches=self.objective.needs.patches, chosen=chosen
            )
        return output

    @torch.no_grad()
    def consult(self, global_views: Tensor, batch: ViewBatch) -> Guidance | None:
        """The guide's features of the global views of a micro-batch; None without a guide."""
        if self.guide is None:
            return None
        with self.autocast():
            # Back to [0, 1]: the guide normalises by its own mean and std.
            return self.guide(global_views * self.std + self.mean, batch.tiles)

    def study(self, global_views: Tensor, batch: ViewBatch, *, backbone_frozen: bool = False) -> NetworkOutput:
        """The student's output for all views of a micro-batch, with masked patches hidden.

        With a frozen backbone the pass bypasses DDP, which would wait for the backbone's gradients. In that case
        call `average_gradients` after the last backward pass of the step.
        """
        views, masks = [global_views], batch.masks
        if len(batch.local_views):
            views.append(self.normalised(batch.local_views, batch.local_parameters))
        with self.autocast():
            network = self.student if backbone_frozen else self._forward_student
            output: NetworkOutput = network(
                views,
                with_patches=self.objective.needs.patches,
                hidden=masks.hidden if masks is not None else None,
                chosen=masks.indices if masks is not None else None,
                with_match=self.guide is not None,
                backbone_frozen=backbone_frozen,
            )
        return output
