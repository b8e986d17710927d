"""STYLE's table of rooms and doors: who may import whom. Imports inside functions count too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "dino_path"
FLOOR = {
    "config", "disk", "settings", "moved_settings", "preprocessing", "errors", "identity", "walk", "table_file", "run",
    "atomic", "sharing", "checksum", "lock", "launch", "distributed", "rank_watch", "rendezvous", "processes",
    "progress", "records", "shipped", "journal",
}  # fmt: skip
# They tie rooms together, or look at the whole installation.
ABOVE_THE_ROOMS = {
    "api", "cli", "__main__", "demo", "doctor", "verify", "licences", "config_docs", "api_docs",
    "shipped_docs", "plan",
}  # fmt: skip
ROOMS: dict[str, set[str]] = {
    "slides": set(),
    "tiles": {"slides"},
    "views": set(),
    "model": set(),
    "training": {"tiles", "views", "model"},
    "features": {"slides", "tiles", "views", "model"},
    "evaluation": {"features", "model", "tiles"},
    "exporting": {"model"},
    "viewing": {"slides", "tiles", "features", "model"},
    "reporting": set(),
    "cluster": set(),
}
# The folders of a room, in the order in which they may import from one another.
FOLDERS = {"evaluation": ("measures", "labelled", "protocols", "baseline", "results", "cohorts")}
DOORS: dict[str, set[str]] = {
    "openslide": {"slides"},
    "tifffile": {"slides"},
    "pydicom": {"slides"},
    "slideio": {"slides"},
    "wsidicom": {"slides"},
    "simplejpeg": {"slides"},
    "imagecodecs": {"slides"},
    "pyarrow": {"tiles", "api"},
    "albumentations": {"views"},
    "timm": {"model"},
    "wandb": {"training"},
    "tensorboard": {"training"},
    "h5py": {"features"},
    "faiss": {"evaluation", "viewing"},
    "sklearn": {"evaluation"},
    "openTSNE": {"evaluation"},
    "lifelines": {"evaluation"},
    "pandas": {"evaluation", "api"},
    "safetensors": {"exporting"},
    "onnx": {"exporting"},
    "onnxruntime": {"exporting"},
    "huggingface_hub": {"exporting"},
    "matplotlib": {"reporting"},
    "jinja2": {"reporting"},
    "plotly": {"reporting"},
    "typer": {"cli"},
    "rich": {"cli"},
}
# (who, whom): why the table does not hold there.
EXCEPTIONS = {
    ("views", "tiles"): "a batch of views is made from tiles that it reads: a view without a tile is nothing",
    ("model", "safetensors"): "model folders are read back by features and evaluation, which may not import exporting",
    (
        "evaluation",
        "slides",
    ): "regions drawn in QuPath and tissue masks are one GeoJSON: the house has one parser of it",
    ("evaluation", "h5py"): "PatchCamelyon is published as HDF5: labelled images, which features have no part in",
    ("evaluation", "safetensors"): "the supervised baseline keeps its own weights; it is no exported extractor",
    ("reporting", "slides"): "the pictures of a run are decoded as every image is: the house has one decoder",
    ("reporting", "tiles"): "the tiles of skipped steps are shown: a store has one reader",
    ("__init__", "api"): "`import dino_path` is the Python interface",
    ("__init__", "exporting"): "the result of its export()",
    ("progress", "rich"): "the bar that every room shows stands on the floor",
    ("demo", "rich"): "the demo prints its table",
    ("doctor", "openslide"): "it asks each library whether it works",
    ("doctor", "faiss"): "it asks each library whether it works",
    ("verify", "h5py"): "HDF5 looks at the checksums of feature files itself",
}


def owner_of(file: Path) -> str:
    """The room, or the module of the floor, that a file belongs to."""
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports_of(file: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide which room is meant"
            assert node.module is not None
            names = [f"dino_path.{alias.name}" for alias in node.names]
            yield from names if node.module == "dino_path" else [node.module]


def pairs() -> dict[tuple[str, str], list[str]]:
    """(importing room, imported room or package) -> files."""
    found: dict[tuple[str, str], list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        who = owner_of(file)
        for name in imports_of(file):
            root, _, rest = name.partition(".")
            whom = rest.partition(".")[0] if root == "dino_path" else root
            if whom and whom != who:
                found.setdefault((who, whom), []).append(file.relative_to(PACKAGE.parent).as_posix())
    return found


PAIRS = pairs()


def is_allowed(who: str, whom: str) -> bool:
    if whom in DOORS:
        return who in DOORS[whom]
    if whom in ROOMS or whom in ABOVE_THE_ROOMS:
        return who in ABOVE_THE_ROOMS or whom in ROOMS.get(who, set())
    return True  # the floor, and packages without a door


def test_every_module_has_its_place_in_the_table() -> None:
    owners = {owner_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__"}
    assert owners == {*ROOMS} | FLOOR | ABOVE_THE_ROOMS


def test_rooms_import_only_what_the_table_allows() -> None:
    forbidden = {pair: files for pair, files in PAIRS.items() if not is_allowed(*pair) and pair not in EXCEPTIONS}
    assert forbidden == {}


def test_no_exception_outlives_its_reason() -> None:
    assert {pair for pair in EXCEPTIONS if pair not in PAIRS or is_allowed(*pair)} == set()


def test_the_floor_imports_no_room() -> None:
    assert [pair for pair in PAIRS if pair[0] in FLOOR and pair[1] not in FLOOR and pair[1] in ROOMS] == []


@pytest.mark.parametrize("room", sorted(FOLDERS))
def test_the_folders_of_a_room_import_only_folders_before_them(room: str) -> None:
    order = FOLDERS[room]
    assert {item.stem for item in (PACKAGE / room).iterdir()} - {"__init__", "__pycache__"} == {*order}
    whom = {
        (folder, name.split(".")[2])
        for folder in order
        for file in (PACKAGE / room / folder).rglob("*.py")
        for name in imports_of(file)
        if name.startswith(f"dino_path.{room}.")
    }
    assert [(who, other) for who, other in whom if order.index(other) > order.index(who)] == []


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_rooms_door_plate_is_one_docstring(room: str) -> None:
    body = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


def test_the_python_interface_stands_below_the_command_line() -> None:
    assert [pair for pair in PAIRS if pair[0] == "api" and pair[1] in ABOVE_THE_ROOMS] == []


def test_only_the_command_line_ends_the_process() -> None:
    calls = {
        owner_of(file)
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "exit" and ast.unparse(node.value) in {"sys", "os"}
    }
    assert calls <= {"cli"}


def test_only_launch_and_distributed_read_ranks() -> None:
    names = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_ID"}
    readers = {
        owner_of(file)
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert readers == {"launch", "distributed"}
