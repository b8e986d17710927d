"""Check that files are as they were written: every checksum and every record of a folder, read once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from dino_path.errors import ConfigError, DinoPathError

if TYPE_CHECKING:
    from dino_path.tiles.layout import StoreFolder


@dataclass(frozen=True)
class Verified:
    """One kind of content of a folder.

    Attributes:
        what: such as "tiles" or "checkpoints".
        count: how many were read.
        damaged: one sentence for each that is not as it was written.
        unchecked: how many have no checksum, as in files of earlier versions: they can be read, and no more is known.
    """

    what: str
    count: int
    damaged: tuple[str, ...] = ()
    unchecked: int = 0

    def line(self) -> str:
        """`tiles: 4,199 intact`."""
        num_intact = self.count - len(self.damaged) - self.unchecked
        parts = [f"{num_intact:,} intact" if num_intact or not self.count else ""]
        parts += [f"{len(self.damaged):,} damaged" if self.damaged else ""]
        parts += [f"{self.unchecked:,} readable, without a checksum" if self.unchecked else ""]
        return f"{self.what}: {', '.join(filter(None, parts))}"


def verify(path: Path) -> Iterator[Verified]:
    """The result for each kind of content of a store, run, model folder, or folder of features or results.

    Raises:
        ConfigError: none of these is here.
    """
    if (path / "store.json").is_file():
        yield from _store(path)
    elif (path / "checkpoints").is_dir():
        yield from _run(path)
    elif (path / "config.json").is_file() and (path / "model.safetensors").is_file():
        yield _model(path)
    elif kinds := [*_features(path)]:
        yield from kinds
    else:
        raise ConfigError(
            str(path),
            "holds no files of dino-path.",
            "A store, run folder, model folder, or folder of features or results is needed.",
            "Check the path.",
        )


def _store(path: Path) -> Iterator[Verified]:
    from dino_path.progress import progress
    from dino_path.records.slide import SlideRecord, read_slide_record
    from dino_path.tiles.layout import StoreFolder

    folder = StoreFolder(path)
    is_of_coordinates = folder.read_config().coordinates_only
    records: list[SlideRecord] = []
    files = folder.record_files()
    yield _each("records of slides", files, lambda file: records.append(read_slide_record(file)))
    done = [record for record in records if record.status == "done"]
    num_tiles = unchecked = 0
    tables: list[str] = []
    tiles: list[str] = []
    for record in progress(done, "tiles", total=len(done), unit="slides"):
        try:
            of_slide = _tiles_of(folder, record.slide_id, is_of_coordinates=is_of_coordinates)
        except (OSError, ValueError) as error:
            tables.append(f"{folder.table_file(record.slide_id)}: {' '.join(str(error).split())}")
            continue
        num_tiles += of_slide.count
        unchecked += of_slide.unchecked
        tiles += of_slide.damaged
    yield Verified("tables and tars", len(done), tuple(tables))
    yield Verified("tiles", num_tiles, tuple(tiles), unchecked)


def _tiles_of(folder: StoreFolder, slide_id: str, *, is_of_coordinates: bool) -> Verified:
    """All tiles of one slide, also those that quality limits refuse.

    Raises:
        OSError, ValueError: their table or tar cannot be read.
    """
    from zlib import crc32

    from dino_path.tiles.tile_table import read_tile_table

    table = read_tile_table(folder.table_file(slide_id))
    if is_of_coordinates:
        return Verified("tiles", len(table))
    tar = folder.tar_file(slide_id)
    damaged = []
    with tar.open("rb") as stream:
        for offset, length, known in zip(
            table.offset.tolist(), table.length.tolist(), table.crc32.tolist(), strict=True
        ):
            stream.seek(offset)
            content = stream.read(length)
            if len(content) != length or (known and crc32(content) != known):
                damaged.append(f"{tar}: the tile at byte {offset:,}")
    return Verified("tiles", len(table), tuple(damaged), int((table.crc32 == 0).sum()))


def _run(path: Path) -> Iterator[Verified]:
    from dino_path.model.checkpoint import read_checkpoint
    from dino_path.records.best import read_best
    from dino_path.records.environment import read_environment
    from dino_path.records.metrics import read_metrics
    from dino_path.records.start import read_start
    from dino_path.records.verdict import read_verdict
    from dino_path.run import RunFolder
    from dino_path.settings import load_config

    run = RunFolder(path)
    yield _each("checkpoints", run.checkpoint_files(), read_checkpoint)
    metrics = read_metrics(run.metrics_file)
    unreadable = tuple(f"{run.metrics_file}: {line}" for line in metrics.unreadable)
    yield Verified("lines of metrics", len(metrics.records) + len(unreadable), unreadable)
    readers: dict[Path, Callable[[Path], object]] = {
        run.config_file: load_config,
        run.environment_file: read_environment,
        run.start_file: read_start,
        run.best_file: lambda _: read_best(run),
        run.verdict_file: lambda _: read_verdict(run),
    }
    yield _each("records", [file for file in readers if file.exists()], lambda file: readers[file](file))
    if run.guide_features.is_dir():
        yield _sealed("features of the guide", run.guide_features.glob("*.npy"))
    if (path / "model" / "config.json").is_file():
        yield _model(path / "model")
    yield from _features(path)


def _model(path: Path) -> Verified:
    from dino_path.model.folder import read_model_folder
    from dino_path.model.folder_weights import load_backbone
    from dino_path.records.model_folder import CONFIG_NAME, WEIGHTS_DIGEST, read_model_record

    found = _each("model folder", [path], lambda folder: load_backbone(read_model_folder(folder)))
    if found.damaged or (read_model_record(path / CONFIG_NAME).dino_path or {}).get(WEIGHTS_DIGEST):
        return found
    return Verified(found.what, 1, unchecked=1)


def _features(path: Path) -> Iterator[Verified]:
    """Feature files and cached features of evaluations, anywhere below the folder."""
    if files := sorted(file for file in path.rglob("*.h5") if not file.name.startswith(".")):
        yield _h5(files)
    if arrays := sorted(file for folder in path.rglob("features") for file in folder.glob("*.npy")):
        yield _sealed("features of evaluations", arrays)
    if kept := [*path.rglob("segmentation/*.npz"), *path.rglob("primary.npz")]:
        yield _sealed("kept answers of evaluations", kept)
    from dino_path.records.evaluation import FEWSHOT, FRACTIONS, RESULTS
    from dino_path.records.format import Format
    from dino_path.records.retrieval import RETRIEVAL
    from dino_path.records.robustness import ROBUSTNESS
    from dino_path.records.segmentation import SEGMENTATION
    from dino_path.records.slide_evaluation import SLIDES_EVALUATION
    from dino_path.records.suite import SUITE

    formats: dict[str, Format[Any]] = {
        "results": RESULTS, "fractions": FRACTIONS, "fewshot": FEWSHOT, "retrieval": RETRIEVAL,
        "robustness": ROBUSTNESS, "segmentation": SEGMENTATION, "slides": SLIDES_EVALUATION, "suite": SUITE,
    }  # fmt: skip
    if results := [file for name in formats for file in sorted(path.rglob(f"{name}.json"))]:
        yield _each("results", results, lambda file: formats[file.stem].read(file))


def _h5(files: list[Path]) -> Verified:
    """HDF5 looks at its checksums itself, whenever it reads."""
    import h5py

    unchecked = 0

    def read(file: Path) -> None:
        nonlocal unchecked
        with h5py.File(file) as h5:
            sets = [each for each in h5.values() if isinstance(each, h5py.Dataset)]
            for each in sets:
                for start in range(0, len(each), 4096):
                    each[start : start + 4096]
            if {"features", "coords"} <= h5.keys() and len(h5["features"]) != len(h5["coords"]):
                raise ValueError(f"{len(h5['features'])} features and {len(h5['coords'])} coordinates")
            unchecked += not all(each.fletcher32 for each in sets if each.dtype.kind in "fi")

    found = _each("feature files", files, read)
    return Verified(found.what, found.count, found.damaged, unchecked)


def _sealed(what: str, files: Iterable[Path]) -> Verified:
    from zipfile import ZipFile

    import numpy as np

    from dino_path.checksum import has_checksum, is_intact

    unchecked = 0

    def read(file: Path) -> None:
        nonlocal unchecked
        if has_checksum(file):
            if not is_intact(file):
                raise ValueError("its checksum is wrong")
        elif file.suffix == ".npz":
            ZipFile(file).close()
            unchecked += 1
        else:
            np.load(file, mmap_mode="r", allow_pickle=False)
            unchecked += 1

    found = _each(what, sorted(files), read)
    return Verified(what, found.count, found.damaged, unchecked)


def _each(what: str, files: Iterable[Path], read: Callable[[Path], object]) -> Verified:
    """Read each file; a refused one is damaged."""
    damaged = []
    count = 0
    for file in files:
        count += 1
        try:
            read(file)
        except DinoPathError as error:
            damaged.append(f"{error.thing}: {error.found}")
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            damaged.append(f"{file}: {' '.join(str(error).split())}")
    return Verified(what, count, tuple(damaged))
