"""DINO with iBOT, KoLeo and KDE written from the formulas: one image, patch and prototype at a time, float64.

Sources of the formulas: DINOv2 (Oquab et al. 2024) and its code, iBOT (Zhou et al. 2022), SwAV (Caron et al. 2020),
KoLeo (Sablayrolles et al. 2019), Virchow2 (Zimmermann et al. 2024).
"""

import copy

import torch
from slow_reference import Moments, adamw, head_logits, softmax
from torch import Tensor

from dino_path.config import ObjectiveConfig, OptimConfig
from dino_path.model.head import DinoNetwork
from dino_path.training.schedules import StepSettings

Row = list[Tensor]


class SlowAllTerms:
    """Student, teacher and two centers, of a plain ViT whose position embedding has the size of the global views."""

    def __init__(
        self, student: DinoNetwork, *, mean: Tensor, std: Tensor, objective: ObjectiveConfig, optim: OptimConfig
    ) -> None:
        self.student, self.teacher = copy.deepcopy(student), copy.deepcopy(student)
        self.mean, self.std = mean, std
        self.objective, self.optim = objective, optim
        is_shared = objective.ibot.head == "shared"
        self.center = [0.0] * objective.dino.num_prototypes
        self.patch_center = [0.0] * (objective.dino if is_shared else objective.ibot).num_prototypes
        self.moments: dict[str, Moments] = {}
        self.clipped: set[str] = set()
        self.untouched: set[str] = set()

    def step(
        self,
        views: list[list[Tensor]],
        hidden: list[list[list[int]]],
        settings: StepSettings,
        *,
        lr: float,
        ramp: float,
    ) -> dict[str, float]:
        """One update; returns the terms' shares of the loss, by their names.

        Args:
            views: `views[v][b]` is view v of tile b, (H, W, 3) uint8.
            hidden: `hidden[v][b]` names the patches that the student does not see of the global view v of tile b.
            lr, ramp: of this step, computed by the caller; the rest is in `settings`.
        """
        num_tiles, temp = len(views[0]), settings.teacher_temp
        places = [(v, b) for v in range(2) for b in range(num_tiles)]
        with torch.no_grad():
            seen = {(v, b): self._global_tokens(self.teacher, views[v][b], []) for v, b in places}
            cls_logits = [head_logits(self.teacher.head, seen[place][0]) for place in places]
            masked = [(v, b, n) for v, b in places for n in hidden[v][b]]
            patch_head = self.teacher.patch_head or self.teacher.head
            patch_logits = [head_logits(patch_head, seen[v, b][1 + n]) for v, b, n in masked]
            targets = dict(zip(places, self._targets(cls_logits, self.center, temp), strict=True))
            patch_targets = dict(zip(masked, self._targets(patch_logits, self.patch_center, temp), strict=True))

        tokens = {(v, b): self._global_tokens(self.student, views[v][b], hidden[v][b]) for v, b in places}
        features = [
            [
                tokens[v, b][0] if v < 2 else self.student.backbone(self._pixels(image))[0]
                for b, image in enumerate(view)
            ]
            for v, view in enumerate(views)
        ]
        shares = {
            "dino_loss": self.objective.dino.weight * self._dino(features, targets),
            "ibot_loss": self.objective.ibot.weight * self._ibot(tokens, hidden, patch_targets),
            "koleo_loss": self.objective.koleo.weight * sum(koleo(view) for view in features[:2]),
            "kde_loss": self.objective.kde.weight
            * ramp
            * sum(kde(view, self.objective.kde.kappa) for view in features[:2]),
        }
        self._move_student(sum(shares.values()), settings, lr)
        with torch.no_grad():
            for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                mine.copy_(settings.momentum * mine + (1 - settings.momentum) * theirs)
        if self.objective.targets.method == "centering":
            self._move(self.center, cls_logits)
            self._move(self.patch_center, patch_logits)
        return {name: float(share.detach()) for name, share in shares.items()}

    def _pixels(self, image: Tensor) -> Tensor:
        return ((image.permute(2, 0, 1)[None].float() / 255).double() - self.mean) / self.std

    def _global_tokens(self, network: DinoNetwork, image: Tensor, hidden: list[int]) -> Tensor:
        """(1 + N, D) of one image: patches are embedded one by one, hidden ones by the mask token."""
        vit, pixels = network.backbone, self._pixels(image)[0]
        kernel, bias = vit.patch_embed.proj.weight, vit.patch_embed.proj.bias
        edge = kernel.shape[-1]
        rows = [vit.cls_token[0, 0]]
        for top in range(0, pixels.shape[1], edge):
            for left in range(0, pixels.shape[2], edge):
                if len(rows) - 1 in hidden:
                    rows.append(network.mask_token.weight[0])
                else:
                    patch = pixels[:, top : top + edge, left : left + edge]
                    rows.append((kernel * patch).sum((1, 2, 3)) + bias)
        tokens = torch.stack(rows)[None] + vit.pos_embed
        for block in vit.blocks:
            tokens = block(tokens)
        return vit.norm(tokens)[0]

    def _targets(self, logits: list[Row], center: list[float], temp: float) -> list[Row]:
        """The distributions of all teacher rows of a step."""
        if self.objective.targets.method == "centering":
            return [softmax([value - c for value, c in zip(row, center, strict=True)], temp) for row in logits]
        return sinkhorn_knopp(logits, temp)

    def _dino(self, features: list[Row], targets: dict[tuple[int, int], Row]) -> Tensor:
        total, num_pairs = torch.zeros((), dtype=torch.float64), 2 * (len(features) - 1)
        for s, view in enumerate(features):
            for b, feature in enumerate(view):
                guesses = softmax(head_logits(self.student.head, feature), self.objective.dino.student_temp)
                for t in range(2):
                    if t != s:
                        total = total + cross_entropy(targets[t, b], guesses) / len(view) / num_pairs
        return total

    def _ibot(
        self, tokens: dict[tuple[int, int], Tensor], hidden: list[list[list[int]]], targets: dict[tuple[int, ...], Row]
    ) -> Tensor:
        """Mean over all global views of the mean over their hidden patches, 0 for a view without any."""
        total, head = torch.zeros((), dtype=torch.float64), self.student.patch_head or self.student.head
        for (v, b), of_view in tokens.items():
            for n in hidden[v][b]:
                guesses = softmax(head_logits(head, of_view[1 + n]), self.objective.dino.student_temp)
                total = total + cross_entropy(targets[v, b, n], guesses) / len(hidden[v][b]) / len(tokens)
        return total

    def _move_student(self, loss: Tensor, settings: StepSettings, lr: float) -> None:
        """Clip backbone (with the mask token) and heads each by its norm; then AdamW with a rate for every layer."""
        named = {name: value for name, value in self.student.named_parameters() if value.requires_grad}
        gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        modules: dict[str, list[str]] = {"backbone": [], "head": [], "patch_head": []}
        for name in named:
            part = name.split(".")[0]
            modules["backbone" if part == "mask_token" else part].append(name)
        assert self.optim.clip_norm is not None
        for module, names in modules.items():
            norm = sum(float((gradients[name] ** 2).sum()) for name in names) ** 0.5
            factor = self.optim.clip_norm / (norm + 1e-6)
            if names:
                (self.clipped if factor < 1 else self.untouched).add(module)
            for name in names:
                gradients[name] = gradients[name] * min(factor, 1)
        for name, parameter in named.items():
            is_decayed = not (name.endswith(".bias") or parameter.ndim == 1)
            is_token = name in ("backbone.cls_token", "backbone.pos_embed", "mask_token.weight")
            is_frozen = settings.last_layer_frozen and "last_layer" in name
            self.moments[name] = adamw(
                parameter,
                gradients[name],
                self.moments.get(name),
                lr=0.0 if is_frozen else lr * self._lr_factor(name),
                weight_decay=settings.weight_decay
                if is_decayed and (self.optim.decay_embeddings or not is_token)
                else 0.0,
            )

    def _lr_factor(self, name: str) -> float:
        depth = len(self.student.backbone.blocks)
        if name == "mask_token.weight" or name.startswith(
            ("backbone.patch_embed", "backbone.cls_token", "backbone.pos_embed")
        ):
            layer = 0
        elif name.startswith("backbone.blocks."):
            layer = 1 + int(name.split(".")[2])
        else:
            layer = depth + 1
        factor = self.optim.layer_decay ** (depth + 1 - layer)
        return factor * self.optim.patch_embed_lr if "patch_embed" in name else factor

    def _move(self, center: list[float], rows: list[Row]) -> None:
        momentum = self.objective.targets.center_momentum
        for k in range(len(center)):
            mean = sum(float(row[k]) for row in rows) / len(rows)
            center[k] = momentum * center[k] + (1 - momentum) * mean


def sinkhorn_knopp(logits: list[Row], temp: float) -> list[Row]:
    """exp, then three times: every prototype's row by its sum and K, every sample's column by its sum and n."""
    num_samples, num_prototypes = len(logits), len(logits[0])
    q = [[(row[k] / temp).exp() for row in logits] for k in range(num_prototypes)]
    for _ in range(3):
        for k in range(num_prototypes):
            total = sum(q[k])
            q[k] = [value / total / num_prototypes for value in q[k]]
        for n in range(num_samples):
            total = sum(q[k][n] for k in range(num_prototypes))
            for k in range(num_prototypes):
                q[k][n] = q[k][n] / total / num_samples
    return [[q[k][n] * num_samples for k in range(num_prototypes)] for n in range(num_samples)]


def cross_entropy(target: Row, guesses: Row) -> Tensor:
    return -torch.stack([t * g.log() for t, g in zip(target, guesses, strict=True)]).sum()


def koleo(features: Row) -> Tensor:
    unit = [x / (x * x).sum().sqrt() for x in features]
    total = torch.zeros((), dtype=torch.float64)
    for i, x in enumerate(unit):
        others = [y for j, y in enumerate(unit) if j != i]
        nearest = max(others, key=lambda y: float((x * y).sum().detach()))
        total = total - (((x - nearest + 1e-8) ** 2).sum().sqrt() + 1e-8).log() / len(unit)
    return total


def kde(features: Row, kappa: float) -> Tensor:
    unit = [x / (x * x).sum().sqrt() for x in features]
    total = torch.zeros((), dtype=torch.float64)
    for i, x in enumerate(unit):
        density = sum((kappa * (x * y).sum()).exp() for j, y in enumerate(unit) if j != i) / (len(unit) - 1)
        total = total + density.log() / len(unit)
    return total
