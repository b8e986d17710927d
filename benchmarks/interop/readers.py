"""Read our files with other tools: TRIDENT's, CLAM's and WebDataset's own classes, and the structure of the GeoJSON.

    uv run python benchmarks/interop/readers.py --trident CHECKOUT --clam CHECKOUT --python PATH

The readers are fetched outside the tree, and run in a Python of their own (`--python`), TRIDENT's, which
benchmarks/tiling/peers.py says how to make; `uv pip install --python PATH webdataset` adds the fourth. Two slides are
painted (one with the 4 : 1 pyramid, 0.5 um/px, tiled at 1.0 um/px, so that the readers must find the size of a tile on
their own), tiled, embedded, and read back. `pixels` is the mean absolute difference, in grey levels, between the tiles
that the reader's own code cuts out and ours.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

NUM_TILES_COMPARED = 24
JOB = "10x_224px_0px_overlap"
ENCODER = "untrained-resnet18"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trident", type=Path, required=True, help="checkout of mahmoodlab/TRIDENT")
    parser.add_argument("--clam", type=Path, required=True, help="checkout of mahmoodlab/CLAM")
    parser.add_argument("--python", type=Path, required=True, help="the readers' Python")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)  # in the readers' Python: read what lies here
    arguments = parser.parse_args()
    if arguments.read is not None:
        print(json.dumps(list(read_all(arguments.read, arguments.trident, arguments.clam))))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_files(work)
        command = [str(arguments.python), str(Path(__file__).resolve()), "--read", str(work)]
        for name in ("trident", "clam", "python"):
            command += [f"--{name}", str(getattr(arguments, name))]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            sys.exit(answer.stderr)
        rows = json.loads(answer.stdout.splitlines()[-1])
    commits = {name: _commit(getattr(arguments, name)) for name in ("trident", "clam")}
    print(f"dino_path {version('dino-path')}, TRIDENT {commits['trident']}, CLAM {commits['clam']}")
    print("| reader | reads | result |\n|---|---|---|")
    for reader, what, result in rows:
        print(f"| {reader} | {what} | {result} |")
    sys.exit(any(result.startswith("FAILED") for _, _, result in rows))


def make_files(work: Path) -> None:
    """Slides, a tile store, coordinate files and features below `work`, made with the commands of a user."""
    from dino_path.slides.synthetic import SyntheticSlide, make_slides
    from dino_path.tiles.store import TileStore

    make_slides(work / "slides", [SyntheticSlide(f"s.{i}", "train", i, 4096) for i in (1, 2)], num_workers=0)
    tiles = ("tiles.mpp=1.0", "tiles.size_px=224")
    _dino_path("tile", work / "slides", "--out", work / "store", "--layout", "trident,clam", "--workers", 1, *tiles)
    _dino_path(
        "embed", f"untrained:timm:{ENCODER.removeprefix('untrained-')}", work / "slides", "--out", work / "features",
        "--layout", "trident,clam", "--workers", 0, "--device", "cpu", *tiles,
    )  # fmt: skip
    store = TileStore.open(work / "store")
    for record, first in zip(store.slides, store.starts, strict=False):
        name, count = Path(record.path).stem, min(record.num_tiles, NUM_TILES_COMPARED)
        np.save(work / f"{name}.npy", np.stack([store.read_image(int(first) + i) for i in range(count)]))
    record_of = {Path(record.path).stem: record.num_tiles for record in store.slides}
    (work / "counts.json").write_text(json.dumps(record_of))
    with (work / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case_id", "slide_id", "label"])
        writer.writerows([name, name, number % 2] for number, name in enumerate(record_of))


def _dino_path(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "dino_path", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def read_all(work: Path, trident: Path, clam: Path) -> Iterator[tuple[str, str, str]]:
    """One row per reader: its name, what it reads, and the result. Runs in the readers' Python."""
    counts: dict[str, int] = json.loads((work / "counts.json").read_text())
    checks: list[tuple[str, str, Callable[[], str]]] = [
        ("TRIDENT `WSIPatcherDataset`", "`patches/*_patches.h5`, slide", lambda: trident_tiles(work, counts)),
        ("TRIDENT `extract_slide_features`", "`features_*/*.h5`", lambda: trident_features(work, counts)),
        ("CLAM `Whole_Slide_Bag_FP`", "`clam/patches/*.h5`, slide", lambda: clam_tiles(work, counts)),
        ("CLAM `Generic_MIL_Dataset`", "`pt_files`, `h5_files`, labels CSV", lambda: clam_features(work, counts)),
        ("webdataset `WebDataset`", "`tiles/*.tar`", lambda: webdataset_samples(work, counts)),
        ("shapely, QuPath's rules", "`contours/*.geojson`", lambda: geojson_structure(work, counts)),
    ]
    sys.path[:0] = [str(trident), str(clam)]
    for reader, what, check in checks:
        with contextlib.redirect_stdout(sys.stderr):
            try:
                result = check()
            except Exception as error:  # noqa: BLE001 (a reader that fails is a row)
                result = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        yield reader, what, result


def trident_tiles(work: Path, counts: dict[str, int]) -> str:
    from trident import OpenSlideWSI, WSIPatcherDataset  # type: ignore[import-not-found]
    from trident.IO import read_coords  # type: ignore[import-not-found]

    differences = []
    for name, count in counts.items():
        slide = OpenSlideWSI(slide_path=str(work / "slides" / f"{name}.tif"), lazy_init=False)
        assert slide.name == name, f"{slide.name} is not {name}"
        told, corners = read_coords(str(work / "store" / "trident" / JOB / "patches" / f"{name}_patches.h5"))
        patcher = slide.create_patcher(
            patch_size=told["patch_size"], src_mag=told["level0_magnification"], dst_mag=told["target_magnification"],
            custom_coords=corners, coords_only=False, pil=True,
        )  # fmt: skip
        tiles = WSIPatcherDataset(patcher, np.asarray)
        assert len(tiles) == count, f"{len(tiles)} tiles instead of {count}"
        differences.append(_difference(work, name, [tiles[i][0] for i in range(min(count, NUM_TILES_COMPARED))]))
    return f"{sum(counts.values())} tiles of {len(counts)} slides; pixels {max(differences):.1f}"


def trident_features(work: Path, counts: dict[str, int]) -> str:
    import h5py
    import torch
    from trident import OpenSlideWSI

    class Mean(torch.nn.Module):
        """A minimal slide encoder with the interface that TRIDENT calls."""

        enc_name, precision = "mean", torch.float32

        def forward(self, batch: dict[str, Any], device: str) -> Any:
            return batch["features"].mean(dim=1)

    for name, count in counts.items():
        slide = OpenSlideWSI(slide_path=str(work / "slides" / f"{name}.tif"), lazy_init=False)
        file = work / "features" / JOB / f"features_{ENCODER}" / f"{slide.name}.h5"
        out = slide.extract_slide_features(str(file), Mean(), str(work / "slide_features"), device="cpu")
        with h5py.File(file) as ours, h5py.File(out) as theirs:
            assert len(ours["features"]) == len(ours["coords"]) == count
            assert np.allclose(ours["features"][:].mean(axis=0), theirs["features"][:], atol=1e-4)
    return f"mean over tiles of {len(counts)} slides, equal to ours"


def clam_tiles(work: Path, counts: dict[str, int]) -> str:
    import openslide
    from dataset_modules.dataset_h5 import Whole_Slide_Bag_FP  # type: ignore[import-not-found]

    differences = []
    for name, count in counts.items():
        slide = openslide.OpenSlide(work / "slides" / f"{name}.tif")

        def resized(image: Any) -> Any:
            return np.asarray(image.resize((224, 224)))

        tiles = Whole_Slide_Bag_FP(str(work / "store" / "clam" / "patches" / f"{name}.h5"), slide, resized)
        assert len(tiles) == count, f"{len(tiles)} tiles instead of {count}"
        images = [tiles[i]["img"] for i in range(min(count, NUM_TILES_COMPARED))]
        differences.append(_difference(work, name, images))
    return f"{sum(counts.values())} tiles of {len(counts)} slides; pixels {max(differences):.1f}"


def clam_features(work: Path, counts: dict[str, int]) -> str:
    from dataset_modules.dataset_generic import Generic_MIL_Dataset  # type: ignore[import-not-found]

    bags = Generic_MIL_Dataset(
        data_dir=str(work / "features" / f"clam_{ENCODER}"), csv_path=str(work / "labels.csv"), shuffle=False, seed=1,
        print_info=False, label_dict={0: 0, 1: 1}, patient_strat=False, ignore=[],
    )  # fmt: skip
    for number, count in enumerate(counts.values()):
        bags.load_from_h5(False)
        tensor, _ = bags[number]
        bags.load_from_h5(True)
        array, _, corners = bags[number]
        assert len(tensor) == len(array) == len(corners) == count
        assert bool((tensor == array).all())
    return f"{len(counts)} bags, tensors equal to h5"


def webdataset_samples(work: Path, counts: dict[str, int]) -> str:
    import webdataset  # type: ignore[import-not-found]

    for name, count in counts.items():
        tar = work / "store" / "tiles" / f"{name.replace('.', '_')}.tar"
        samples = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode("rgb8").to_tuple("jpg", "__key__"))
        assert len({key for _, key in samples}) == len(samples) >= count, f"{len(samples)} samples for {count} tiles"
        assert all(image.shape == (224, 224, 3) for image, _ in samples)
    return f"all candidate tiles of {len(counts)} slides, keys unique ({webdataset.__version__})"


def geojson_structure(work: Path, counts: dict[str, int]) -> str:
    import uuid

    from shapely.geometry import shape

    num_pieces = 0
    for name in counts:
        collection = json.loads((work / "store" / "contours" / f"{name.replace('.', '_')}.geojson").read_text())
        assert collection["type"] == "FeatureCollection"
        for feature in collection["features"]:
            uuid.UUID(feature["id"])
            assert feature["type"] == "Feature"
            assert feature["properties"]["objectType"] == "annotation"
            assert isinstance(feature["properties"]["classification"]["name"], str)
            assert all(0 <= value <= 255 for value in feature["properties"]["classification"]["color"])
            assert all(ring[0] == ring[-1] and len(ring) >= 4 for ring in feature["geometry"]["coordinates"])
            polygon = shape(feature["geometry"])
            assert polygon.is_valid
            assert polygon.area > 0
            num_pieces += 1
    return f"{num_pieces} annotations: valid polygons, closed rings, ids, classes"


def _difference(work: Path, name: str, theirs: list[Any]) -> float:
    ours = np.load(work / f"{name}.npy").astype(int)
    return float(np.abs(ours - np.stack(theirs).astype(int)).mean())


def _commit(checkout: Path) -> str:
    answer = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "(no commit)"


if __name__ == "__main__":
    main()
