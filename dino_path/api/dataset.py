"""Labelled tiles as a map-style torch data set, for your own training loops.

Shape suffixes: N images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from dino_path.api.settings import ConfigLike, PathLike, Settings, settled
from dino_path.api.tile_store import Image, TileStore
from dino_path.errors import DataError
from dino_path.tiles.source import Subset, TileSource
from dino_path.tiles.store import TileStore as StoredTiles

Transform = Callable[[Image], Any]


class TileDataset(Dataset[tuple[Any, int]]):
    """Images by number, each with its class number; made by `TileStore.dataset` and `labelled`.

    It works in a DataLoader with any number of workers: files are opened in each of them.

    Attributes:
        classes: names of the classes, in the order of their numbers.
        labels: (N,) class numbers; -1 if no labels were requested.
        groups: (N,) patient or slide of each image, which a split should keep together; None: unknown.
        transform: given each image, (H, W, 3) uint8 RGB; None: a uint8 tensor (3, H, W).
    """

    def __init__(
        self,
        source: TileSource,
        labels: NDArray[np.int64],
        classes: Sequence[str],
        *,
        groups: NDArray[np.str_] | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.source, self.labels, self.classes = source, labels, tuple(classes)
        self.groups, self.transform = groups, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """An image, as `transform` gives it, and its class number.

        Raises:
            TileStoreError: the image cannot be read.
        """
        label = int(self.labels[index])  # raises IndexError where iteration ends
        image = self.source.read_image(range(len(self))[index])
        if self.transform is not None:
            return self.transform(image), label
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), label

    @property
    def ids(self) -> tuple[str, ...]:
        """Each image's name: its path, or slide and corner of a tile."""
        return tuple(map(self.source.name, range(len(self))))

    def __repr__(self) -> str:
        counts = [f"{name} {int((self.labels == number).sum()):,}" for number, name in enumerate(self.classes)]
        return f"<TileDataset: {len(self):,} images ({', '.join(counts) or 'no labels'})>"


def labelled(
    data: PathLike,
    *,
    split: str | None = None,
    transform: Transform | None = None,
    config: ConfigLike = None,
    **settings: Unpack[Settings],
) -> TileDataset:
    """Labelled images as a torch data set, with the images and the split that `evaluate` uses.

    Args:
        data: class folders, a manifest (CSV, TSV or Parquet: `path,label[,patient_id][,slide_id][,split]`),
            `store:STORE` with `evaluation={"regions": FOLDER}`, or a published set by name such as `pcam:FOLDER`.
        split: `train`, `val` or `test`; None: all images.
        transform: given each image, (H, W, 3) uint8; None: a uint8 tensor (3, H, W).
        config: YAML file with the section `evaluation`.

    Raises:
        DataError: nothing is there, it is malformed, a given split leaks, or it has no such split.
        TileStoreError: an image cannot be read.
    """
    from dino_path.evaluation.labelled.datasets import load_labelled

    found = load_labelled(os.fspath(data), settled(config, settings).evaluation)
    chosen = np.arange(len(found.labels), dtype=np.int64) if split is None else found.part(split)
    if not len(chosen):
        raise DataError(
            f"split {split!r}",
            f"{found.name} has no image of it.",
            f"One of {', '.join(found.counts())} is needed.",
            "Name one of them; `val` is there only where the data bring it.",
        )
    groups = None if found.groups is None else found.groups[chosen]
    return TileDataset(
        Subset(found.source, chosen), found.labels[chosen], found.classes, groups=groups, transform=transform
    )


def label_store(
    store: TileStore,
    labels: PathLike | Sequence[str | None] | None,
    *,
    transform: Transform | None,
    config: ConfigLike,
    settings: Mapping[str, Any],
) -> TileDataset:
    """The tiles of a store that have a label; see `TileStore.dataset`."""
    slides = np.asarray(store.places["slide_id"].to_pylist(), np.str_)
    if labels is None:
        none = np.full(len(store), -1, np.int64)
        return TileDataset(store.source, none, (), groups=slides, transform=transform)
    if not isinstance(labels, str | os.PathLike):
        names = ["" if label is None else str(label) for label in labels]
        if len(names) != len(store):
            raise DataError(
                "labels",
                f"{len(names):,} are given for {len(store):,} tiles.",
                "One label per tile, in the order of the store, is needed.",
                "Take the tiles that have one by store[numbers] first.",
            )
    elif Path(labels).is_dir():
        names = _by_region(store, Path(labels), config, settings)
    else:
        names = _by_slide(slides, Path(labels))
    classes = sorted({name for name in names if name})
    numbers = {name: number for number, name in enumerate(classes)}
    has_label = np.flatnonzero([bool(name) for name in names])
    return TileDataset(
        store[has_label].source,
        np.array([numbers[names[tile]] for tile in has_label], np.int64),
        classes,
        groups=slides[has_label],
        transform=transform,
    )


def _by_region(store: TileStore, regions: Path, config: ConfigLike, settings: Mapping[str, Any]) -> list[str]:
    """The class of the region that each tile lies in; empty: none."""
    from dino_path.evaluation.labelled.regions import label_store as label_by_regions

    resolved = settled(config, {**settings, "evaluation.regions": regions}).evaluation
    whole = store.source.source
    assert isinstance(whole, StoredTiles)
    listing = label_by_regions(whole, resolved)
    assert isinstance(listing.source, Subset)
    of_all = dict(zip(listing.source.indices.tolist(), listing.labels, strict=True))
    return [of_all.get(number, "") for number in store.source.indices.tolist()]


def _by_slide(slides: NDArray[np.str_], table: Path) -> list[str]:
    """The label of each tile's slide; empty: it has none."""
    from dino_path.tiles.tables import read_table

    if not table.is_file():
        raise DataError(
            str(table),
            "no such file or folder.",
            "A folder of regions, or a table with the columns slide_id,label, is needed.",
            "Check the path.",
        )
    columns = read_table(table, needed=("slide_id", "label"))
    by_slide: dict[str, str] = {}
    for slide, label in zip(columns["slide_id"], columns["label"], strict=True):
        if by_slide.setdefault(slide, label) != label:
            raise DataError(
                str(table),
                f"{slide} is {by_slide[slide]!r} in one row and {label!r} in another.",
                "Every slide has one label.",
                "Correct the table.",
            )
    names = [by_slide.get(slide, "") for slide in slides.tolist()]
    if not any(names):
        raise DataError(
            str(table),
            f"it labels none of the store's slides ({', '.join(sorted({*slides.tolist()})[:3])}, ...).",
            "Slide ids as the store has them are needed in the column slide_id.",
            "Compare them with store.table['slide_id'].",
        )
    return names
