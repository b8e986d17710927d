"""Requirements of `objective.distill` on other settings, checked without torch."""

from __future__ import annotations

from dino_path.config import Config
from dino_path.errors import ConfigError


def check_distillation(config: Config) -> None:
    """Refuse settings that contradict one another.

    Raises:
        ConfigError: local views that no term looks at; features kept for whole tiles, and views that are not.
    """
    distill, views = config.objective.distill, config.views
    if distill.weight == 0:
        return
    if not config.objective.has_prototypes and views.num_local > 0:
        raise ConfigError(
            f"views.num_local={views.num_local}",
            "no term uses local views.",
            "Distillation compares global views, which the frozen model also sees; only DINO uses local views.",
            "Set views.num_local=0, or objective.dino.weight=1 to train with DINO as well.",
        )
    if distill.cached:
        _refuse_other_places(config)


def _refuse_other_places(config: Config) -> None:
    """Refuse views that do not show the whole tiles of the cached features."""
    views = config.views
    found, wanted = {}, {}
    if views.global_um is not None:
        found["views.global_um"], wanted["views.global_um"] = str(list(views.global_um)), "null"
    for name in ("global_scale", "aspect"):
        if getattr(views, name) != (1, 1):
            found[f"views.{name}"], wanted[f"views.{name}"] = str(list(getattr(views, name))), "[1,1]"
    if config.objective.distill.patches > 0:
        if views.dihedral:
            found["views.dihedral"], wanted["views.dihedral"] = "true", "false"
        if views.flip_prob > 0:
            found["views.flip_prob"], wanted["views.flip_prob"] = f"{views.flip_prob:g}", "0"
    if not found:
        return
    turned = any(name in found for name in ("views.dihedral", "views.flip_prob"))
    raise ConfigError(
        "objective.distill.cached=true",
        f"the views are not whole tiles: {', '.join(f'{name}={value}' for name, value in found.items())}.",
        "The frozen model's features are cached once for each whole tile"
        + (", patch by patch, so the student's views must show the same." if turned else "."),
        f"Set {' '.join(f'{name}={value}' for name, value in wanted.items())}"
        + (" (or objective.distill.patches=0, which allows flips and rotations)" if turned else "")
        + ", or objective.distill.cached=false.",
    )
