"""`dino_path.load`: a frozen model and its features.

Shape suffixes: N images, D features, H and W edges in pixels.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dino_path.api.images import source_of
from dino_path.api.settings import PathLike
from dino_path.api.tables import Listed
from dino_path.api.tile_store import TileStore
from dino_path.errors import ConfigError
from dino_path.tiles.source import Subset
from dino_path.tiles.store import TileStore as StoredTiles

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dino_path.api.images import Images
    from dino_path.features.extractor import Extractor as FrozenExtractor

Precision = Literal["fp32", "bf16", "fp16"]
DEVICE = re.compile(r"auto|cpu|cuda(?::(\d+))?")


@dataclass(frozen=True, eq=False, repr=False)
class Features(Listed):
    """Features of images, in their order. `numpy.asarray(features)` is `features.values`.

    Attributes:
        values: (N, D) float32.
        ids: (N,) name of each image: its path, slide and corner of a tile, or `image 0` for images without a name.
        model: name of the extractor.
        places: of the tiles of a store, the columns slide_id, patient_id, split, x_level0, y_level0, size_level0 of
            `TileStore.table`; None for other images.
    """

    values: NDArray[np.float32]
    ids: tuple[str, ...]
    model: str
    places: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values, dtype=dtype, copy=copy)

    def to_arrow(self) -> pa.Table:
        """The columns `id`, those of `places`, and `features`, each a list of D float32 numbers."""
        features = pa.FixedSizeListArray.from_arrays(pa.array(self.values.ravel()), self.values.shape[1])
        places = {} if self.places is None else dict(zip(self.places.column_names, self.places.columns, strict=True))
        return pa.table({"id": pa.array(self.ids, pa.string()), **places, "features": features})

    def __str__(self) -> str:
        return f"{len(self):,} x {self.values.shape[1]} features of {self.model}"


class Extractor:
    """A frozen model with the preprocessing that belongs to it; made by `load`.

    Attributes:
        name: its name in tables and file names.
        num_features: D, the number of features per image.
        input_px: edge of the square that the network sees, in pixels; None: images of any size.
        mpp: microns per pixel of the training tiles; None: unknown.
        precision: in which the network runs; features are always float32.
        digest: SHA-256 of weights, preprocessing and precision: equal digests give equal features.
        device: where it runs.
        module: the torch module, (N, 3, H, W) normalised float images -> (N, D), in eval mode.
    """

    def __init__(self, frozen: FrozenExtractor, device: torch.device) -> None:
        self._frozen, self.device = frozen, device
        self.name, self.num_features, self.digest = frozen.name, frozen.num_features, frozen.digest
        self.input_px, self.mpp = frozen.preprocessing.input_px, frozen.preprocessing.mpp
        self.precision: Precision = frozen.precision
        self.module: nn.Module = frozen.module

    def __repr__(self) -> str:
        expects = self._frozen.preprocessing.text()
        return f"<Extractor {self.name}: {self.num_features} features of {expects}; {self.precision} on {self.device}>"

    def embed(
        self,
        images: Images,
        *,
        batch_size: int | None = None,
        workers: int = 0,
        allow_other_mpp: bool = False,
    ) -> Features:
        """Features of images.

        The shorter edge of each image is resized to `input_px`; the central square is cut out and normalised. The
        feature files of `dino-path embed` hold the same numbers.

        Args:
            images: a PIL image, a path, or a sequence of them; an array (N, H, W, 3) or (H, W, 3), uint8 RGB; a folder
                of images; a tile store or a part of it. Images may differ in size.
            batch_size: images at a time; None: 512 on CUDA, halved until it fits, else 64.
            workers: processes that read and decode ahead; 0: only this process.
            allow_other_mpp: embed tiles of a store at another mpp than the model's.

        Raises:
            DataError: `images` is not a kind of images listed above.
            TileStoreError: an image cannot be read, or the store's mpp is not the model's (within 5 %).
            CheckpointError: the model gives numbers that are not finite.
        """
        from dino_path.features.extractor import extract_features
        from dino_path.features.specs import refuse_other_mpp

        source = source_of(images)
        if source.mpp is not None and not allow_other_mpp:
            refuse_other_mpp(self.name, self.mpp, source.mpp, str(getattr(images, "path", images)))
        values = extract_features(
            self._frozen, source, batch_size=batch_size or (512 if self.device.type == "cuda" else 64),
            device=self.device, num_workers=workers, what=f"embedding with {self.name}",
        )  # fmt: skip
        return Features(values, tuple(map(source.name, range(len(source)))), self.name, _places(source))

    def prepare(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """One image as `module` takes it: (H, W, 3) uint8 RGB -> (3, input_px, input_px) float32, normalised.

        It is a transform for `TileStore.dataset` and `labelled`.
        """
        import torch

        from dino_path.features.images import prepare_image
        from dino_path.views.normalisation import normalise_stain

        preprocessing = self._frozen.preprocessing
        if preprocessing.stain_normalisation is not None:
            image = normalise_stain(image, preprocessing.stain_normalisation)
        pixels = torch.from_numpy(np.ascontiguousarray(prepare_image(image, self.input_px))).permute(2, 0, 1).float()
        mean, std = (torch.tensor(triple).view(3, 1, 1) for triple in (preprocessing.mean, preprocessing.std))
        return (pixels / 255 - mean) / std


def load(model: PathLike, *, device: str = "auto", precision: Precision = "fp32") -> Extractor:
    """The frozen extractor that `model` names.

    Args:
        model: model folder, `timm:NAME`, `untrained:FOLDER`, `mean-colour` or `colour-statistics`; before it `cls:`,
            `mean:` or `cls+mean:` for other features of its tokens than its own.
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, or one GPU of several such as `cuda:1`.
        precision: in which the network runs: `fp32`, `bf16` or `fp16`.

    Raises:
        CheckpointError: nothing of that name can be loaded, or it has no features of this kind.
        ConfigError: no such device or precision.
        LaunchError: CUDA was asked for and is not there.
    """
    from dino_path.features.specs import look_at_model

    spec = os.fspath(model)
    if (found := DEVICE.fullmatch(device)) is None:
        raise _unknown("device", device, "auto, cpu, cuda or cuda:N")
    if precision not in get_args(Precision):
        raise _unknown("precision", precision, ", ".join(get_args(Precision)))
    look_at_model(spec)
    from dino_path.distributed import choose_device
    from dino_path.features.extractor import load_extractor

    place = choose_device(device.partition(":")[0], int(found[1] or 0))
    return Extractor(load_extractor(spec, device=place).at(precision), place)


def _unknown(word: str, given: str, known: str) -> ConfigError:
    return ConfigError(f"{word}={given}", f"no such {word}.", f"One of {known} is needed.", f"Correct {word}.")


def _places(source: object) -> pa.Table | None:
    """Which tiles of which slides they are; None for images that are no tiles of a store."""
    if isinstance(source, StoredTiles):
        return TileStore._of(source, np.arange(len(source), dtype=np.int64)).places
    if isinstance(source, Subset) and isinstance(source.source, StoredTiles):
        return TileStore._of(source.source, source.indices).places
    return None
