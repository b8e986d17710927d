"""Self-supervised DINO pretraining for histology, in Python and on the command line (`dino-path`).

    import dino_path

    tiles = dino_path.tile("slides/", out="tiles", tiles={"mpp": 0.5}).tiles()
    features = dino_path.load("runs/vits16/model").embed(tiles)
    features.to_pandas()

`docs/api.md` has all of it. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from dino_path import errors
from dino_path.errors import DinoPathError

if TYPE_CHECKING:
    from dino_path.api.dataset import TileDataset, labelled
    from dino_path.api.evaluation import Evaluation, evaluate
    from dino_path.api.export import export
    from dino_path.api.extractor import Extractor, Features, load
    from dino_path.api.pretraining import Pretraining, pretrain
    from dino_path.api.tile_store import TileStore
    from dino_path.api.tiling import Tiling, tile
    from dino_path.exporting.model_folder import ExportResult

__version__ = "0.4.0.dev0"

# Where each public name is defined; it is imported when it is first asked for (PEP 562).
_HOMES = {
    "tile": "dino_path.api.tiling",
    "Tiling": "dino_path.api.tiling",
    "TileStore": "dino_path.api.tile_store",
    "TileDataset": "dino_path.api.dataset",
    "labelled": "dino_path.api.dataset",
    "pretrain": "dino_path.api.pretraining",
    "Pretraining": "dino_path.api.pretraining",
    "export": "dino_path.api.export",
    "ExportResult": "dino_path.exporting.model_folder",
    "load": "dino_path.api.extractor",
    "Extractor": "dino_path.api.extractor",
    "Features": "dino_path.api.extractor",
    "evaluate": "dino_path.api.evaluation",
    "Evaluation": "dino_path.api.evaluation",
}

__all__ = [
    "DinoPathError",
    "Evaluation",
    "ExportResult",
    "Extractor",
    "Features",
    "Pretraining",
    "TileDataset",
    "TileStore",
    "Tiling",
    "errors",
    "evaluate",
    "export",
    "labelled",
    "load",
    "pretrain",
    "tile",
]


if not TYPE_CHECKING:  # with it, a type checker would believe in any name

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found: object = getattr(import_module(_HOMES[name]), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
