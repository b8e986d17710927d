"""Feature files from a frozen model and tiles, slide by slide; called again, it adds missing files.

Shape suffixes: N tiles of a slide, D features.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.distributed import World
from dino_path.errors import TileStoreError
from dino_path.features.coordinates import Coordinates, write_coordinates
from dino_path.features.extractor import Extractor, Forward, batches_of, refuse_not_finite
from dino_path.features.files import (
    Features,
    Origin,
    other_features,
    read_origin,
    write_slide_features,
    write_tensor,
)
from dino_path.features.images import Batch, read_batches, stain_normalised
from dino_path.features.layouts import (
    Attributes,
    FeatureLayout,
    LayoutName,
    TridentLayout,
    has_given_id,
    layouts_of,
    refuse_shared_names,
    trident_attributes,
)
from dino_path.features.patch_tokens import TokenShape, refuse_too_large, token_file, token_shape
from dino_path.features.specs import LARGEST_MPP_DIFFERENCE, refuse_other_mpp
from dino_path.progress import Meter, meter
from dino_path.records.embedding import EmbeddingRecord, write_embedding
from dino_path.records.slide import SlideRecord
from dino_path.tiles.layout import StoreFolder
from dino_path.tiles.store import TileStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbedSummary:
    """What became of the slides of a store.

    Attributes:
        written, kept: slides whose files are new; were complete already.
        empty: (slide id, reason) of slides that tiling left without tiles, so that no file was due.
        failed: (slide id, reason) of slides that could not be tiled, or whose tiles could not be read; a new call
            tries them again.
        folders: where the features lie, one per layout.
        token_folder: where the patch tokens lie; None: none were asked for.
        seen: what the network saw of the tiles, as a sentence.
    """

    written: tuple[str, ...]
    kept: tuple[str, ...]
    empty: tuple[tuple[str, str], ...]
    failed: tuple[tuple[str, str], ...]
    num_tiles: int
    folders: tuple[Path, ...]
    token_folder: Path | None
    seen: str

    def text(self) -> str:
        """For people: the counts, every slide without features and why, and where the files are."""
        counts = [f"{len(self.written)} slides embedded", f"{len(self.kept)} already there"]
        counts += [f"{len(self.empty)} without tiles", f"{len(self.failed)} failed"]
        lines = [f"failed   {slide_id}: {reason}" for slide_id, reason in self.failed]
        lines += [f"empty    {slide_id}: {reason}" for slide_id, reason in self.empty]
        lines.append(f"{', '.join(counts)}; {self.num_tiles:,} tiles")
        lines.append(f"input: {self.seen}")
        lines += [f"features: {folder}" for folder in self.folders]
        return "\n".join(lines if self.token_folder is None else [*lines, f"patch tokens: {self.token_folder}"])


@dataclass(frozen=True)
class _Files:
    """The h5 files of a slide, whose origins say whether it is finished.

    Attributes:
        features: one per layout.
        tokens: of its patch tokens, whether they are asked for or not.
    """

    features: tuple[Path, ...]
    tokens: Path

    def due(self, *, with_tokens: bool) -> tuple[Path, ...]:
        return (*self.features, self.tokens) if with_tokens else self.features


@dataclass(frozen=True)
class _Slide:
    """One slide to embed, and the files that will hold it."""

    record: SlideRecord
    tiles: NDArray[np.int64]  # indices into the store
    files: _Files
    origin: Origin


@dataclass(frozen=True)
class _Standing:
    """The files that existed before this call, by slide id.

    Attributes:
        finished: slides whose files are all there.
        replaced: files of slides that others have replaced since, each with the tensor beside it.
    """

    finished: frozenset[str]
    replaced: Mapping[str, tuple[tuple[Path, Path | None], ...]]


def embed_store(
    extractor: Extractor,
    store: TileStore,
    out: Path,
    *,
    layouts: Sequence[LayoutName] = ("trident",),
    batch_size: int,
    world: World,
    num_workers: int = 0,
    allow_other_mpp: bool = False,
    with_tokens: bool = False,
) -> EmbedSummary:
    """Features of all tiles of a store, one file per slide and layout, below `out`.

    trident: `out/<mag>x_<px>px_<overlap>px_overlap/features_<encoder>/<name>.h5`, and `patches/` beside it;
    clam: `out/clam_<encoder>/h5_files/<name>.h5` and `pt_files/<name>.pt`. Patch tokens are in TRIDENT's layout, in
    `tokens_<encoder>/<name>.h5` (see `patch_tokens.token_file`). `name` is that of the slide file, by which
    both look for it, or the id that the user gave the slide. `out/embed_<encoder>.json` lists every slide with what
    became of it. Features of a slide that another has replaced since are made again.

    Args:
        world: each of its processes takes some slides; all return the same summary.
        num_workers: processes that read, of each process of the world.
        allow_other_mpp: embed tiles whose mpp differs by more than 5 % from the one the model was trained at.
        with_tokens: write patch tokens too. Their size is logged before the work.

    Raises:
        TileStoreError: the tiles' mpp is not the model's.
        SlideError: two slides have one name.
        DataError: `out` holds features of these slides that another model, or other tiles of them, have given.
        CheckpointError: the model has no patch tokens, or gives numbers that are not finite.
        ConfigError: the disk cannot hold the patch tokens.
    """
    if not allow_other_mpp:
        refuse_other_mpp(extractor.name, extractor.preprocessing.mpp, store.mpp, str(store.path))
    refuse_shared_names(
        ((one.path, one.slide_id if has_given_id(one.path, one.slide_id) else None) for one in store.slides), layouts
    )
    chosen = layouts_of(layouts, StoreFolder(store.path).read_config())
    slides = [_plan(extractor, store, out, chosen, number) for number in range(len(store.slides))]
    records = StoreFolder(store.path).records()
    standing = _look(extractor, out, chosen, slides, records, with_tokens=with_tokens)
    done = standing.finished
    shape = token_shape(extractor, world.device) if with_tokens else None
    if shape is not None:
        num_tiles = sum(len(slide.tiles) for slide in slides if slide.record.slide_id not in done)
        logger.info("%s", shape.text(num_tiles))
        refuse_too_large(shape, num_tiles, out)
    world.barrier()  # all have looked before any writes
    mine = share([slide for slide in slides if slide.record.slide_id not in done], world)
    _delete_replaced(standing, [slide.record.slide_id for slide in mine])
    if world.is_first:
        _delete_replaced(standing, [record.slide_id for record in records if record.status != "done"])
    written: list[str] = []
    failed: list[tuple[str, str]] = []
    with meter("embedding", sum(len(slide.tiles) for slide in mine), "tiles", lines=world.is_first) as counter:
        for slide, answer in _slide_features(
            extractor, store, mine, batch_size, world.device, num_workers, counter, shape
        ):  # fmt: skip
            if isinstance(answer, TileStoreError):
                failed.append((slide.record.slide_id, f"{answer.thing}: {answer.found}"))
            else:
                _write(store, slide, answer, out, chosen)
                written.append(slide.record.slide_id)
    answers = world.gather((written, failed))
    written = sorted(slide_id for some, _ in answers for slide_id in some)
    failed = [failure for _, some in answers for failure in some]
    untiled = [(record.slide_id, record.reason) for record in records if record.status == "failed"]
    summary = EmbedSummary(
        written=tuple(written),
        kept=tuple(slide.record.slide_id for slide in slides if slide.record.slide_id in done),
        empty=tuple((record.slide_id, record.reason) for record in records if record.status == "empty"),
        failed=tuple(sorted([*untiled, *failed])),
        num_tiles=sum(len(slide.tiles) for slide in slides if slide.record.slide_id in done.union(written)),
        folders=tuple(layout.feature_folder(out, encoder_folder_name(extractor)) for layout in chosen),
        token_folder=_trident(store).token_folder(out, encoder_folder_name(extractor)) if with_tokens else None,
        seen=_seen(extractor, store),
    )
    if world.is_first:
        _write_summary(extractor, store, out, summary, None if shape is None else shape.grid)
    return summary


def _seen(extractor: Extractor, store: TileStore) -> str:
    """The network's input for the store's tiles, and its input in training if that has another scale."""
    trained = extractor.preprocessing
    seen = trained.of_tiles(store.size_px, store.mpp)
    text, mpp, trained_mpp = seen.text(), seen.seen_mpp, trained.seen_mpp
    if mpp and trained_mpp and abs(mpp / trained_mpp - 1) > LARGEST_MPP_DIFFERENCE + 1e-9:
        text += f"; {extractor.name} saw {trained_mpp:.4g} um/px in training, tiles of {trained.tile_px} px"
    return text


def share(slides: Sequence[_Slide], world: World) -> list[_Slide]:
    """The slides of this process: largest first, each to the process with the fewest tiles so far."""
    loads = [0] * world.size
    mine = []
    for slide in sorted(slides, key=lambda one: -len(one.tiles)):
        least = loads.index(min(loads))
        loads[least] += len(slide.tiles)
        if least == world.rank:
            mine.append(slide)
    return sorted(mine, key=lambda one: one.record.slide_id)


def encoder_folder_name(extractor: Extractor) -> str:
    """The extractor's name as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in extractor.name)


def _plan(extractor: Extractor, store: TileStore, out: Path, layouts: Sequence[FeatureLayout], number: int) -> _Slide:
    record = store.slides[number]
    first, last = store.starts[number : number + 2]
    tiles = np.arange(first, last, dtype=np.int64)
    content = hashlib.sha256()
    for column in (store.x_level0, store.y_level0, store.size_level0, store.offset, store.length):
        content.update(column[first:last].tobytes())
    files = _files(encoder_folder_name(extractor), out, layouts, record)
    return _Slide(record, tiles, files, _origin(extractor, record, content.hexdigest()[:16]))


def _files(encoder: str, out: Path, layouts: Sequence[FeatureLayout], record: SlideRecord) -> _Files:
    features = tuple(layout.feature_file(out, encoder, record) for layout in layouts)
    return _Files(features, TridentLayout(layouts[0].config).token_file(out, encoder, record))


def _trident(store: TileStore) -> TridentLayout:
    return TridentLayout(StoreFolder(store.path).read_config())


def _origin(extractor: Extractor, record: SlideRecord, tiles_digest: str) -> Origin:
    return Origin(extractor.name, extractor.digest, tiles_digest, record.content_digest)


def _look(
    extractor: Extractor,
    out: Path,
    layouts: Sequence[FeatureLayout],
    slides: Sequence[_Slide],
    records: Sequence[SlideRecord],
    *,
    with_tokens: bool,
) -> _Standing:
    """The existing files of these slides. Files are written atomically, so an existing one is complete.

    Raises:
        DataError: a file holds features of another model or of other tiles of the same slide.
    """
    finished: set[str] = set()
    replaced: dict[str, tuple[tuple[Path, Path | None], ...]] = {}
    for slide in slides:
        files = slide.files.due(with_tokens=True)
        origins = {file: read_origin(file) for file in files if file.exists()}
        slide_id = slide.record.slide_id
        others = [file for file in origins if origins[file][0].is_of_replaced_slide(slide.origin)]
        replaced[slide_id] = _with_tensors(others, slide.files, layouts)
        for file, (origin, num_rows) in origins.items():
            if file not in others and not (origin.is_same(slide.origin) and num_rows == len(slide.tiles)):
                raise other_features(file)
        if origins.keys() >= {*slide.files.due(with_tokens=with_tokens)} and not others:
            finished.add(slide_id)
    for record in records:
        if record.status != "done":  # the slide that replaced one with tiles has none
            now = _origin(extractor, record, "")
            known = _files(encoder_folder_name(extractor), out, layouts, record)
            there = [file for file in known.due(with_tokens=True) if file.exists()]
            others = [file for file in there if read_origin(file)[0].is_of_replaced_slide(now)]
            replaced[record.slide_id] = _with_tensors(others, known, layouts)
    return _Standing(frozenset(finished), replaced)


def _with_tensors(
    some: Sequence[Path], files: _Files, layouts: Sequence[FeatureLayout]
) -> tuple[tuple[Path, Path | None], ...]:
    """Some of a slide's files, each with the tensor beside it."""
    tensors = {file: layout.tensor_file(file) for layout, file in zip(layouts, files.features, strict=True)}
    return tuple((file, tensors.get(file)) for file in some)


def _delete_replaced(standing: _Standing, slide_ids: Iterable[str]) -> None:
    """Delete features of slides that others have replaced: until the new ones are made there are none."""
    for slide_id in slide_ids:
        for file, tensor in standing.replaced.get(slide_id, ()):
            logger.warning("%s: the slide was replaced by another; its old features are deleted (%s)", slide_id, file)
            file.unlink(missing_ok=True)
            if tensor is not None:
                tensor.unlink(missing_ok=True)


def _slide_features(
    extractor: Extractor,
    store: TileStore,
    slides: Sequence[_Slide],
    batch_size: int,
    device: torch.device,
    num_workers: int,
    counter: Meter,
    shape: TokenShape | None,
) -> Iterator[tuple[_Slide, Features | TileStoreError]]:
    """Each slide with its features, or with why its tiles cannot be read. Reading runs ahead over the slides.

    Args:
        shape: of the patch tokens of a tile, which are written to their file here; None: there are to be none.
    """
    batches = [batches_of(slide.tiles, batch_size) for slide in slides]
    numbers_of_all = [numbers for of_slide in batches for numbers in of_slide]
    is_cuda = device.type == "cuda"
    preprocessing = extractor.preprocessing
    source = stain_normalised(store, preprocessing.stain_normalisation)
    images = read_batches(source, numbers_of_all, preprocessing.input_px, num_workers=num_workers, pin_memory=is_cuda)
    forward = Forward(extractor, device)
    for slide, of_slide in zip(slides, batches, strict=True):
        own = zip(of_slide, islice(images, len(of_slide)), strict=True)
        answer: Features | TileStoreError
        try:
            answer = _features_of(extractor, store, slide, own, forward, counter, shape)
        except TileStoreError as error:
            answer = error
        yield slide, answer


def _features_of(
    extractor: Extractor,
    store: TileStore,
    slide: _Slide,
    batches: Iterable[tuple[NDArray[np.int64], Batch]],
    forward: Forward,
    counter: Meter,
    shape: TokenShape | None,
) -> Features:
    """The features of a slide (N, D); its patch tokens go to their file, batch by batch.

    Raises:
        TileStoreError: a tile cannot be read; all batches are taken nevertheless.
        CheckpointError: the model gives numbers that are not finite.
    """
    parts: list[Features] = []
    error: TileStoreError | None = None
    with ExitStack() as stack:
        append = None
        if shape is not None:
            coords_N2, attributes = _place(store, slide, slide.files.tokens)
            append = stack.enter_context(token_file(slide.files.tokens, shape, coords_N2, attributes, slide.origin))
        for numbers, batch in batches:
            if isinstance(batch, TileStoreError):
                error = error or batch
            elif error is None and append is None:
                parts.append(forward(batch))
                refuse_not_finite(extractor, store, numbers, parts[-1])
            elif error is None and append is not None:
                assert not isinstance(batch, list), "prepared tiles have one size"
                features_BD, tokens_BPD = forward.features_and_patches(batch)
                refuse_not_finite(extractor, store, numbers, features_BD)
                refuse_not_finite(extractor, store, numbers, tokens_BPD, "patch tokens in fp16")
                parts.append(features_BD)
                append(tokens_BPD)
            counter.advance(len(numbers), slide.record.slide_id)
        if error is not None:
            raise error
    return np.concatenate(parts)


def _place(store: TileStore, slide: _Slide, file: Path) -> tuple[Coordinates, Attributes]:
    """The corners of the slide's tiles and their attributes, for a file in TRIDENT's manner."""
    tiles = slide.tiles
    coords_N2: Coordinates = np.stack([store.x_level0[tiles], store.y_level0[tiles]], axis=1).astype(np.int64)
    config, size_level0 = StoreFolder(store.path).read_config(), int(store.size_level0[tiles[0]])
    return coords_N2, trident_attributes(slide.record, config, name=file.stem, size_level0=size_level0)


def _write(store: TileStore, slide: _Slide, features_ND: Features, out: Path, layouts: Sequence[FeatureLayout]) -> None:
    for layout, file in zip(layouts, slide.files.features, strict=True):
        coords_N2, attributes = _place(store, slide, file)
        # The h5 file is what a later call looks for, so it comes last.
        if (tensor := layout.tensor_file(file)) is not None:
            write_tensor(tensor, features_ND)
        if (patches := layout.patches_file(out, slide.record)) is not None:
            write_coordinates(patches, coords_N2, attributes)
        write_slide_features(file, features_ND, coords_N2, attributes, slide.origin)


def _write_summary(
    extractor: Extractor, store: TileStore, out: Path, summary: EmbedSummary, token_grid: tuple[int, int] | None
) -> None:
    record = EmbeddingRecord(
        encoder=extractor.name,
        encoder_digest=extractor.digest,
        encoder_mpp=extractor.preprocessing.mpp,
        tile_mpp=store.mpp,
        tile_px=store.size_px,
        input_px=extractor.preprocessing.input_px,
        features=extractor.kind,
        token_grid=token_grid,
        stain_normalisation=extractor.preprocessing.stain_normalisation,
        precision=extractor.precision,
        store_digest=store.digest,
        written=summary.written,
        kept=summary.kept,
        empty=summary.empty,
        failed=summary.failed,
        num_tiles=summary.num_tiles,
    )
    write_embedding(out / f"embed_{encoder_folder_name(extractor)}.json", record)
