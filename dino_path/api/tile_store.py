"""`dino_path.TileStore`: the tiles of a store as a sequence of images, with their table."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dino_path.api.settings import ConfigLike, PathLike, Settings
from dino_path.tiles.source import Subset
from dino_path.tiles.store import TileStore as StoredTiles

if TYPE_CHECKING:
    from dino_path.api.dataset import TileDataset

Image = NDArray[np.uint8]
MEASURED = ("tissue_fraction", "sharpness", "pen_fraction", "black_fraction", "dark_fraction")


class TileStore:
    """The tiles of a store: `len(store)`, `store[3]`, `for tile in store`; a slice or a mask is a part of the store.

    A tile is an array (size_px, size_px, 3), uint8 RGB, and is read when it is asked for. A store can be pickled, and
    is a map-style data set as it stands: `DataLoader(store, batch_size=64, num_workers=4)`. `dataset` adds labels.

    Attributes:
        path: its folder.
        size_px: edge of the tiles, in pixels.
        mpp: microns per pixel of the tiles.
    """

    def __init__(self, path: PathLike, *, split: str | None = None, exclude: Sequence[str] = ()) -> None:
        """Open a store.

        Args:
            path: what `tile` made.
            split: only slides of this split; None: all.
            exclude: slide ids or file names to leave out.

        Raises:
            TileStoreError: no store, a damaged one, or no tiles in it.
        """
        tiles = StoredTiles.open(Path(path), split=split, exclude=exclude)
        self._set(tiles, np.arange(len(tiles), dtype=np.int64))

    def _set(self, tiles: StoredTiles, numbers: NDArray[np.int64]) -> None:
        self._tiles, self._numbers = tiles, numbers
        self.path, self.size_px, self.mpp = tiles.path, tiles.size_px, tiles.mpp

    @classmethod
    def _of(cls, tiles: StoredTiles, numbers: NDArray[np.int64]) -> TileStore:
        part = cls.__new__(cls)
        part._set(tiles, numbers)
        return part

    def __reduce__(self) -> tuple[Callable[..., TileStore], tuple[Any, ...]]:
        return TileStore._of, (self._tiles, self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, which: int | np.integer[Any]) -> Image: ...
    @overload
    def __getitem__(self, which: slice | NDArray[Any] | Sequence[int]) -> TileStore: ...
    def __getitem__(self, which: Any) -> Image | TileStore:
        """One tile by its number, or a part of the store by a slice, numbers, or a mask (N,).

        Raises:
            IndexError: there are not so many tiles.
            TileStoreError: the tile cannot be read.
        """
        if isinstance(which, slice | np.ndarray | Sequence):
            chosen = which if isinstance(which, slice) else np.asarray(which)
            if isinstance(chosen, np.ndarray) and chosen.size == 0:
                chosen = chosen.astype(np.int64)
            return TileStore._of(self._tiles, self._numbers[chosen])
        return self._tiles.read_image(int(self._numbers[operator.index(which)]))

    def __iter__(self) -> Iterator[Image]:
        return (self._tiles.read_image(int(number)) for number in self._numbers)

    def __repr__(self) -> str:
        slides = len(np.unique(self._slide_numbers))
        what = f"{len(self):,} tiles of {slides} slide(s), {self.size_px} px at {self.mpp:g} um/px"
        return f"<TileStore {self.path}: {what}>"

    @property
    def source(self) -> Subset:
        """The tiles as dino_path's own functions read them."""
        return Subset(self._tiles, self._numbers)

    @property
    def ids(self) -> tuple[str, ...]:
        """Each tile's name, `<slide_id> x=<x_level0> y=<y_level0>`."""
        return tuple(self._tiles.name(int(number)) for number in self._numbers)

    @property
    def _slide_numbers(self) -> NDArray[np.int64]:
        return np.searchsorted(self._tiles.starts, self._numbers, side="right") - 1

    @cached_property
    def table(self) -> pa.Table:
        """One row per tile, in their order, as an Arrow table.

        slide_id, patient_id, split; x_level0, y_level0, size_level0: top-left corner and edge, level-0 pixels of the
        slide; tissue_fraction, pen_fraction, black_fraction, dark_fraction: shares of its area, 0 to 1; sharpness:
        variance of the Laplacian, grey levels squared.
        """
        measured = self._tiles.all_measured(MEASURED)
        table = self.places
        for name, values in measured.items():
            table = table.append_column(name, pa.array(values[self._numbers]))
        return table

    @property
    def places(self) -> pa.Table:
        """The columns of `table` that tell which tile it is; no file is read for them."""
        tiles, slides = self._tiles, pa.array(self._slide_numbers)
        columns = {}
        for name in ("slide_id", "patient_id", "split"):
            of_slides = pa.array([getattr(record, name) for record in tiles.slides], pa.string())
            columns[name] = of_slides.take(slides).dictionary_encode()
        for name in ("x_level0", "y_level0", "size_level0"):
            columns[name] = pa.array(getattr(tiles, name)[self._numbers])
        return pa.table(columns)

    def dataset(
        self,
        labels: PathLike | Sequence[str | None] | None = None,
        *,
        transform: Callable[[Image], Any] | None = None,
        config: ConfigLike = None,
        **settings: Unpack[Settings],
    ) -> TileDataset:
        """The tiles that have a label, as a torch data set of (image, class number).

        Args:
            labels: a folder of regions, one file per slide, as `evaluation.regions` takes it (tiles in no region are
                left out); a CSV, TSV or Parquet table with the columns `slide_id,label` (all tiles of a slide have
                its label; slides without one are left out); the label of each tile (N,), None where it has none.
                Not given: all tiles, with the class number -1.
            transform: given each tile, (size_px, size_px, 3) uint8; None: a uint8 tensor (3, size_px, size_px).
            config: YAML file with the section `evaluation`, whose `min_region_fraction` and `region_classes` say
                which tiles a region labels.

        Raises:
            DataError: no labels, malformed ones, or none that a tile has.
        """
        from dino_path.api.dataset import label_store

        return label_store(self, labels, transform=transform, config=config, settings=settings)
