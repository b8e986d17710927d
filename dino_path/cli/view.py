"""The slides of a tile store in a browser, and their overlays as files."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dino_path.api.inputs import check_models
from dino_path.cli.help import Command
from dino_path.cli.program import AsJson, Device, Quiet, announce, app, loading, log_to
from dino_path.cli.terminal import say, say_json
from dino_path.disk import refuse_unwritable
from dino_path.errors import ConfigError

if TYPE_CHECKING:
    from dino_path.viewing.viewer import Viewer


@app.command(
    cls=Command,
    epilog="""
    dino-path view tiles
    dino-path view tiles --model runs/vits16/model --features features
    dino-path view tiles --overlay slide_7.geojson --port 8765
    dino-path view tiles --model runs/vits16/model --export overlays --slide slide_7
    """,
)
def view(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="tile store")],
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="adds clusters, neighbours, patch tokens and attention")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="folder written by 'dino-path embed'; missing features are computed first. Default: keep"
            " them in memory"
        ),
    ] = None,
    clusters: Annotated[int, typer.Option(help="number of clusters of the features of all tiles", min=2, max=12)] = 8,
    overlay: Annotated[
        list[Path] | None,
        typer.Option(help="GeoJSON with a value per tile, such as a heat map, named after its slide; may be repeated"),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="write all overlays as GeoJSON and PNG, and exit")
    ] = None,
    slide: Annotated[
        list[str] | None, typer.Option(metavar="SLIDE_ID", help="with --export: only this slide; may be repeated")
    ] = None,
    port: Annotated[int, typer.Option(help="port of this machine; 0: any free port", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option("--browser", help="open the page in the browser of this machine")] = False,
    allow_other_mpp: Annotated[
        bool, typer.Option("--allow-other-mpp", help="use the model on tiles at another mpp than it was trained at")
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Look at slides, their tiles and what a model sees.

    Serves a page on 127.0.0.1 to those who have its address, and changes nothing. Ctrl-C ends it.
    """
    log_to(None, is_quiet=quiet)
    announce(f"reading {store}")
    if model is None and features is not None:
        raise ConfigError("--features", "no model is given.", "Features belong to a model.", "Add --model.")
    if slide and export is None:
        raise ConfigError("--slide", "--export is not given.", "It selects slides to export.", "Add --export DIR.")
    if export is not None:
        refuse_unwritable(export)
    if features is not None:
        refuse_unwritable(features)
    if model is not None:
        check_models([model])
        _check_mpp(store, model, allow_other_mpp=allow_other_mpp)
    from dino_path.viewing.viewer import Viewer

    viewer = Viewer(store, overlay or ())
    numbers = _numbers_of(viewer, slide or ())
    if export is not None:
        from dino_path.viewing.export import export_overlays

        _show_model(viewer, model, features, clusters, device, allow_other_mpp=allow_other_mpp)
        files = export_overlays(viewer, numbers, export)
        if as_json:
            say_json({"files": files})
        else:
            say("\n".join(map(str, files)))
        return
    _serve(
        viewer,
        port,
        as_json=as_json,
        opens_browser=browser,
        show_model=partial(_show_model, viewer, model, features, clusters, device, allow_other_mpp=allow_other_mpp),
    )


def _serve(viewer: Viewer, port: int, *, as_json: bool, opens_browser: bool, show_model: Callable[[], None]) -> None:
    """Serve until Ctrl-C. The page opens at once; the model's layers appear as soon as they are ready."""
    from dino_path.viewing.server import ViewerServer

    with ViewerServer(viewer.answer, port) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        if as_json:
            say_json({"address": server.address})
        else:
            say(f"open {server.address}\nCtrl-C ends it")
        if opens_browser:
            webbrowser.open(server.address)
        try:
            show_model()
            if viewer.model is not None:
                announce("the page now shows the model's layers")
            thread.join()
        except KeyboardInterrupt:
            announce("ended")
        finally:
            server.shutdown()
            viewer.close()


def _show_model(
    viewer: Viewer,
    model: str | None,
    features: Path | None,
    num_clusters: int,
    device: Literal["auto", "cpu", "cuda"],
    *,
    allow_other_mpp: bool,
) -> None:
    if model is None:
        return
    from dino_path.tiles.store import TileStore

    viewer.stage = "loading the model"
    tiles = TileStore.open(viewer.folder.path)
    loading()
    from dino_path.distributed import choose_device
    from dino_path.viewing.model_overlays import load_model_overlays

    viewer.stage = f"reading or computing features of {len(tiles):,} tiles"
    viewer.show_model(
        load_model_overlays(
            model, tiles, features, num_clusters=num_clusters, device=choose_device(device, 0),
            allow_other_mpp=allow_other_mpp,
        )
    )  # fmt: skip


def _check_mpp(store: Path, model: str, *, allow_other_mpp: bool) -> None:
    from dino_path.features.specs import look_at_model, refuse_other_mpp
    from dino_path.tiles.layout import StoreFolder

    folder = look_at_model(model)
    if folder is not None and not allow_other_mpp:
        mpp = StoreFolder(store).read_config().mpp
        refuse_other_mpp(Path(model).name, folder.preprocessing.mpp, mpp, str(store))


def _numbers_of(viewer: Viewer, slide_ids: Sequence[str]) -> list[int]:
    """The numbers of these slides, or of all readable ones."""
    numbers = {record.slide_id: number for number, record in enumerate(viewer.records) if record.status != "failed"}
    for slide_id in slide_ids:
        if slide_id not in numbers:
            raise ConfigError(
                f"--slide {slide_id}",
                f"{viewer.folder.path} has no such readable slide.",
                f"One of its slide ids is needed, such as {next(iter(numbers), 'none')}.",
                "Look at its slides.csv.",
            )
    return [numbers[slide_id] for slide_id in slide_ids] if slide_ids else [*numbers.values()]
