"""The names of timm's models, read from its source: importing timm takes seconds, and a typo should fail at once."""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from dino_path.errors import CheckpointError, ConfigError

# `@register_model`, other decorators perhaps, and the function that builds the model and has its name.
MODEL = re.compile(r"^@register_model\s*(?:\n@[^\n]*)*\ndef (\w+)\(", re.MULTILINE)
# Names of earlier versions, which timm still takes: `register_model_deprecations(__name__, {"old": "new", ...})`.
EARLIER_NAMES = re.compile(r"register_model_deprecations\(__name__, \{(.*?)\}\)", re.DOTALL)
EARLIER_NAME = re.compile(r"""["']([\w.]+)["']\s*:\s*["'][\w.]+["']""")


def architecture(name: str) -> str:
    """The timm architecture in `name`, which may carry a pretrained tag (`vit_small_patch16_224.dino`).

    Raises:
        ConfigError: timm has no such architecture; the nearest names are listed.
    """
    arch = name.split(".", 1)[0]
    names, earlier = _timm_names()
    if arch not in names and arch not in earlier:
        close = difflib.get_close_matches(arch, sorted(names), n=3)
        raise ConfigError(
            f"model.backbone={name}",
            f"timm {version('timm')} has no such model.",
            "A timm model name is needed.",
            f"Did you mean {' or '.join(close)}?" if close else "See timm.list_models().",
        )
    return arch


def timm_model_and_file(name: str) -> tuple[str, Path | None]:
    """`NAME` or `NAME@FILE` -> a timm model and the file of its weights.

    Raises:
        CheckpointError: timm has no such model, or there is no such file.
    """
    model, _, file = name.partition("@")
    if file and not Path(file).is_file():
        raise CheckpointError(f"timm:{name}", "no such file.", "A file of weights is needed.", "Check the path.")
    try:
        architecture(model)
    except ConfigError as error:
        raise CheckpointError(f"timm:{model}", error.found, error.needed, error.remedy) from None
    return model, Path(file) if file else None


@cache
def _timm_names() -> tuple[frozenset[str], frozenset[str]]:
    """The names of models, and earlier names of some."""
    timm = find_spec("timm")
    assert timm is not None
    assert timm.origin is not None
    texts = [file.read_text(encoding="utf-8") for file in sorted((Path(timm.origin).parent / "models").glob("*.py"))]
    earlier = (block for text in texts for block in EARLIER_NAMES.findall(text))
    return (
        frozenset(name for text in texts for name in MODEL.findall(text)),
        frozenset(name for block in earlier for name in EARLIER_NAME.findall(block)),
    )
