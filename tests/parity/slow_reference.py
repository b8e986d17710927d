"""DINO written from the paper in loops: one image at a time, one prototype at a time, float64. Slow and plain."""

import copy
import math

import torch
from torch import Tensor, nn

from dino_path.model.head import DinoNetwork
from dino_path.training.schedules import StepSettings

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
Moments = tuple[Tensor, Tensor, int]  # first, second, number of updates


class SlowDino:
    """Student, teacher and center, moved by one algorithm-1 step at a time (Caron et al. 2021)."""

    def __init__(self, student: DinoNetwork, *, mean: Tensor, std: Tensor, num_prototypes: int) -> None:
        self.student = copy.deepcopy(student)
        self.teacher = copy.deepcopy(student)
        self.mean, self.std = mean, std
        self.center = [0.0] * num_prototypes
        self.moments: dict[str, Moments] = {}
        self.clipped: set[str] = set()
        self.untouched: set[str] = set()

    def step(
        self,
        views: list[list[Tensor]],
        settings: StepSettings,
        *,
        student_temp: float,
        clip_norm: float,
        center_momentum: float,
    ) -> float:
        """One update; `views[v][b]` is view v of tile b, (H, W, 3) uint8. Returns the loss."""
        with torch.no_grad():
            teacher_out = [[self._logits(self.teacher, image) for image in view] for view in views[:2]]
        student_out = [[self._logits(self.student, image) for image in view] for view in views]
        loss = self._loss(student_out, teacher_out, student_temp, settings.teacher_temp)
        self._move_student(loss, settings, clip_norm)
        with torch.no_grad():
            for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                mine.copy_(settings.momentum * mine + (1 - settings.momentum) * theirs)
        self._move_center([logits for view in teacher_out for logits in view], center_momentum)
        return float(loss.detach())

    def _logits(self, network: DinoNetwork, image: Tensor) -> list[Tensor]:
        """The K logits of one image."""
        pixels = image.permute(2, 0, 1)[None].float() / 255
        return head_logits(network.head, network.backbone((pixels.double() - self.mean) / self.std)[0])

    def _loss(
        self,
        student_out: list[list[list[Tensor]]],
        teacher_out: list[list[list[Tensor]]],
        student_temp: float,
        teacher_temp: float,
    ) -> Tensor:
        """Cross-entropy of every pair of different views, averaged over tiles and then over pairs."""
        total, num_pairs = torch.zeros((), dtype=torch.float64), 0
        for t, teacher_view in enumerate(teacher_out):
            for s, student_view in enumerate(student_out):
                if s == t:
                    continue
                num_pairs += 1
                for teacher_logits, student_logits in zip(teacher_view, student_view, strict=True):
                    centred = [value - c for value, c in zip(teacher_logits, self.center, strict=True)]
                    targets = softmax(centred, teacher_temp)
                    guesses = softmax(student_logits, student_temp)
                    for target, guess in zip(targets, guesses, strict=True):
                        total = total - target * guess.log() / len(teacher_view)
        return total / num_pairs

    def _move_student(self, loss: Tensor, settings: StepSettings, clip_norm: float) -> None:
        """Clip each gradient by its own norm, then AdamW."""
        named = {name: value for name, value in self.student.named_parameters() if value.requires_grad}
        gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        for name, parameter in named.items():
            if settings.last_layer_frozen and "last_layer" in name:
                continue
            gradient = gradients[name]
            factor = clip_norm / (float((gradient**2).sum().sqrt()) + 1e-6)
            if factor < 1:
                gradient = gradient * factor
            (self.clipped if factor < 1 else self.untouched).add(name)
            is_decayed = not (name.endswith(".bias") or parameter.ndim == 1)
            decay = settings.weight_decay if is_decayed else 0.0
            self.moments[name] = adamw(parameter, gradient, self.moments.get(name), lr=settings.lr, weight_decay=decay)

    def _move_center(self, rows: list[list[Tensor]], center_momentum: float) -> None:
        for k in range(len(self.center)):
            mean = sum(float(row[k]) for row in rows) / len(rows)
            self.center[k] = center_momentum * self.center[k] + (1 - center_momentum) * mean


def head_logits(head: nn.Module, x: Tensor) -> list[Tensor]:
    """The K logits of one feature vector."""
    weights = dict(head.named_parameters())
    layers = sorted(name.removesuffix(".weight") for name in weights if name.endswith(".weight"))
    for number, layer in enumerate(layers):
        if number:
            x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        x = weights[f"{layer}.weight"] @ x + weights[f"{layer}.bias"]
    x = x / (x * x).sum().sqrt()
    prototypes, lengths = weights["last_layer.weight_v"], weights["last_layer.weight_g"]
    return [g[0] * (v * x).sum() / (v * v).sum().sqrt() for v, g in zip(prototypes, lengths, strict=True)]


def adamw(parameter: Tensor, gradient: Tensor, moments: Moments | None, *, lr: float, weight_decay: float) -> Moments:
    """Move one parameter (Loshchilov & Hutter 2019, algorithm 2); returns its new moments."""
    first, second, count = moments or (torch.zeros_like(gradient), torch.zeros_like(gradient), 0)
    first = BETA1 * first + (1 - BETA1) * gradient
    second = BETA2 * second + (1 - BETA2) * gradient**2
    count += 1
    with torch.no_grad():
        parameter.mul_(1 - lr * weight_decay)
        parameter.sub_(lr * first / (1 - BETA1**count) / ((second / (1 - BETA2**count)).sqrt() + EPSILON))
    return first, second, count


def softmax(logits: list[Tensor], temperature: float) -> list[Tensor]:
    powers = [(value / temperature).exp() for value in logits]
    total = torch.stack(powers).sum()
    return [power / total for power in powers]
