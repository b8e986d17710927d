"""The command that draws tiles in two dimensions by their features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dino_path.api.inputs import check_models
from dino_path.cli.help import Command
from dino_path.cli.program import (
    AsJson,
    ConfigFile,
    Device,
    Quiet,
    Workers,
    announce,
    app,
    loading,
    log_to,
    resolve_config,
    split_arguments,
)
from dino_path.cli.terminal import say, say_json
from dino_path.disk import refuse_unwritable_file
from dino_path.errors import ConfigError

if TYPE_CHECKING:
    from dino_path.config import Config
    from dino_path.evaluation.results.map_tiles import MapTiles
    from dino_path.records.feature_map import FeatureMapRecord


@app.command(
    "map",
    cls=Command,
    epilog="""
    dino-path map runs/vits16/model --store tiles --out map.html
    dino-path map runs/vits16/model --data labelled.csv --out runs/vits16/eval/map.html
    dino-path map features/20x_256px_0px_overlap/features_model --store tiles --columns centres.csv --out map.html
    """,
)
def draw_map(
    model: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL|FEATURES [KEY=VALUE]...",
            help="as for 'dino-path embed'; or, with --store, a folder of feature files written by it",
        ),
    ],
    out: Annotated[Path, typer.Option(help="HTML file; features are cached in the folder 'features' beside it")],
    data: Annotated[str | None, typer.Option("--data", help="labelled images, as for 'dino-path evaluate'")] = None,
    store: Annotated[Path | None, typer.Option(help="tile store, or a folder of images")] = None,
    split: Annotated[str | None, typer.Option(help="only this split, such as test")] = None,
    columns: Annotated[
        Path | None,
        typer.Option(help="table with slide_id, patient_id or path, and further columns to colour by, such as centre"),
    ] = None,
    max_tiles: Annotated[
        int, typer.Option(min=10, max=60_000, help="maximum number of tiles, drawn evenly from the slides")
    ] = 20_000,
    method: Annotated[Literal["tsne", "pca"], typer.Option(help="how tiles are laid out")] = "tsne",
    clusters: Annotated[int, typer.Option(min=2, max=64, help="number of k-means clusters to colour by")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="seed for drawing tiles, k-means and t-SNE")] = 0,
    config: ConfigFile = None,
    device: Device = "auto",
    workers: Workers = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw a map of tiles by their features.

    Writes one HTML page that opens without a network: colours by class, slide, patient and cluster, thumbnails, and
    each     tile's nearest neighbours from other slides.
    """
    log_to(None, is_quiet=quiet)
    specs, overrides = split_arguments(model)
    resolved = resolve_config(config, overrides)
    _check_words(specs, data, store, out)
    announce(f"reading {data or store}")
    tiles, num_all_tiles = _choose_tiles(data, store, split, columns, max_tiles, seed, resolved)
    is_folder_of_features = _check_model(specs[0], tiles)
    loading("openTSNE" if is_folder_of_features else "torch and timm")
    from dino_path.distributed import open_world
    from dino_path.evaluation.results.feature_map import MapSettings, extract, make_map, read_features
    from dino_path.features.extractor import load_extractor
    from dino_path.reporting.feature_map import write_page

    if is_folder_of_features:
        name, features = read_features(tiles, Path(specs[0]))
    else:
        with open_world(device) as world:
            extractor = load_extractor(specs[0], device=world.device)
            name = extractor.name
            features = extract(
                tiles, extractor, resolved.evaluation, out.parent / "features", device=world.device, num_workers=workers
            )
    settings = MapSettings(method, clusters, seed)
    record = make_map(tiles, features, name, settings, num_all_tiles=num_all_tiles, num_workers=workers)
    write_page(record, out)
    if as_json:
        say_json(_summary(record, out))
        return
    say(_text(record))
    say(f"map: {out} ({out.stat().st_size / 1e6:.1f} MB)")


def _check_words(specs: list[str], data: str | None, store: Path | None, out: Path) -> None:
    """One model, one set of tiles, and a file to write."""
    if len(specs) != 1:
        raise ConfigError(
            " ".join(specs) or "MODEL", f"{len(specs)} models are given.", "A map shows one model.", "Give one model."
        )
    if (data is None) == (store is None):
        raise ConfigError(
            "--data, --store",
            "both are given." if data is not None else "neither is given.",
            "The tiles of the map are labelled images (--data) or a tile store (--store).",
            "Give one of them.",
        )
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(
            f"--out {out}", "is a folder." if out.is_dir() else "does not end in .html.",
            "The name of an HTML file is needed.", "Correct --out.",
        )  # fmt: skip
    refuse_unwritable_file(out)


def _choose_tiles(
    data: str | None,
    store: Path | None,
    split: str | None,
    columns: Path | None,
    max_tiles: int,
    seed: int,
    config: Config,
) -> tuple[MapTiles, int]:
    """The tiles of the map, and how many they were drawn from."""
    from dino_path.evaluation.results.map_tiles import Table, tiles_of_labelled, tiles_of_source
    from dino_path.tiles.expected import refuse_unfinished

    table = None if columns is None else Table.read(columns)
    if store is not None:
        if (store / "store.json").exists():
            refuse_unfinished(store)
        tiles = tiles_of_source(store, table, split, max_tiles, seed=seed)
        return tiles, len(tiles.source)
    from dino_path.evaluation.labelled.datasets import load_labelled

    assert data is not None
    labelled = load_labelled(data, config.evaluation)
    tiles = tiles_of_labelled(data, labelled, table, split, max_tiles, seed=seed)
    return tiles, len(labelled.labels if split is None else labelled.part(split))


def _check_model(spec: str, tiles: MapTiles) -> bool:
    """Whether it is a folder of feature files; a model is there, and sees tiles at its own mpp."""
    from dino_path.features.specs import look_at_model, refuse_other_mpp

    path = Path(spec)
    place = tiles.store_rows
    if path.is_dir() and not (path / "config.json").exists() and any(path.glob("*.h5")):
        if place is None:
            raise ConfigError(
                spec,
                "is a folder of feature files, and the tiles are images of their own.",
                "Feature files are drawn with the tile store that they were made of.",
                "Give --store, or a model instead of the folder.",
            )
        return True
    check_models([spec])
    folder = look_at_model(spec)
    if place is not None and folder is not None:
        refuse_other_mpp(path.name, folder.preprocessing.mpp, place[0].mpp, str(place[0].path))
    return False


def _text(record: FeatureMapRecord) -> str:
    """What the page says in numbers."""
    of = f" of {record.num_all_tiles:,}" if record.num_all_tiles > record.num_tiles else ""
    lines = [
        f"{record.num_tiles:,}{of} tiles of {record.num_units:,} {record.unit}s, {record.method} of {record.model}"
    ]
    lines.append(
        f"kept: {record.kept:.1%} of each tile's {record.num_neighbours} nearest in feature space are among its"
        f" {record.num_neighbours} nearest in the map (by chance {record.kept_by_chance:.2%})"
    )
    lines += [
        f"{column.title}: {column.alike:.1%} of neighbours from other {record.unit}s have the tile's own"
        f" (by chance {column.alike_by_chance:.1%})"
        for column in record.columns
        if column.alike is not None
    ]
    return "\n".join([*lines, *record.notes])


def _summary(record: FeatureMapRecord, out: Path) -> dict[str, Any]:
    """The numbers, without those of each tile."""
    kept = ("model", "data", "unit", "method", "seed", "num_all_tiles", "num_tiles", "num_units", "num_neighbours",
            "kept", "kept_by_chance", "notes")  # fmt: skip
    return {
        **{name: getattr(record, name) for name in kept},
        "columns": [
            {"title": column.title, "num_values": len(column.names), "alike": column.alike,
             "alike_by_chance": column.alike_by_chance}
            for column in record.columns
        ],
        "thumbnail_px": record.pictures.edge_px,
        "bytes": out.stat().st_size,
        "page": out,
    }  # fmt: skip
