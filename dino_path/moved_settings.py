"""Settings that have moved since an earlier version; old files and commands still work."""

from __future__ import annotations

from typing import Any

# Where a setting stood -> where it stands. A section below the last dot may be made on the way.
MOVED = {
    "model.num_prototypes": "objective.dino.num_prototypes",
    "model.head_hidden": "objective.dino.head_hidden",
    "model.head_bottleneck": "objective.dino.head_bottleneck",
    "model.head_layers": "objective.dino.head_layers",
    "model.head_batch_norm": "objective.dino.head_batch_norm",
    "model.norm_last_layer": "objective.dino.norm_last_layer",
    "training.student_temp": "objective.dino.student_temp",
    "training.teacher_temp": "objective.dino.teacher_temp",
    "training.warmup_teacher_temp": "objective.dino.warmup_teacher_temp",
    "training.teacher_temp_warmup": "objective.dino.teacher_temp_warmup",
    "training.center_momentum": "objective.targets.center_momentum",
}


def lift_settings(tree: dict[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """A copy of the tree with every moved setting at its new place.

    Returns:
        the tree; the old names that were found; those of them whose new place was taken, and where the old one won.
    """
    lifted, found, twice = dict(tree), list[str](), list[str]()
    for old, new in MOVED.items():
        section, key = old.split(".")
        before = lifted.get(section)
        if not isinstance(before, dict) or key not in before:
            continue
        lifted[section] = {name: value for name, value in before.items() if name != key}
        found.append(old)
        *sections, name = new.split(".")
        place = lifted
        for each in sections:
            inner = place.get(each)
            if inner is not None and not isinstance(inner, dict):
                break  # a value where a section belongs: whoever checks the tree says so
            place[each] = dict(inner or {})
            place = place[each]
        else:
            if name in place:
                twice.append(old)
            place[name] = before[key]
    return lifted, found, twice
