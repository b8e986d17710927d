"""The undamaged files that `fuzz.py` damages copies of: made by the program's own commands from synthetic slides."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import h5py
import numpy as np
import tifffile

TINY = (
    "views.global_px=32", "views.local_px=16", "views.num_local=2", "model.backbone=vit_tiny_patch16_224",
    "model.arguments={img_size: 32, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}",
    "objective.dino.num_prototypes=64", "objective.dino.head_hidden=32", "objective.dino.head_bottleneck=16",
    "training.num_steps=4", "training.batch_size_per_gpu=4", "training.num_workers=0", "training.device=cpu",
    "training.checkpoint_every_steps=2", "monitor.log_every_steps=1", "wandb.mode=disabled",
    "evaluation.num_bootstrap=100",
)  # fmt: skip
IMAGES_PER_CLASS = 12
# What takes seconds to import; inputs run in processes that are forked after it.
NEEDED = (
    "faiss", "sklearn.linear_model", "timm", "imagecodecs", "pyarrow.parquet", "pydicom", "openslide", "plotly.io",
    "matplotlib.figure", "dino_path.cli", "dino_path.evaluation.results.table", "dino_path.evaluation.cohorts.slides",
    "dino_path.evaluation.labelled.regions", "dino_path.evaluation.labelled.published_masks",
    "dino_path.exporting.checkpoint", "dino_path.features.embed", "dino_path.reporting.report",
    "dino_path.training.loop", "dino_path.tiles.tiling",
    "dino_path.viewing.viewer", "dino_path.slides.readers.wsidicom_reader", "dino_path.features.attention",
)  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """Where the undamaged files lie, all below one folder."""

    path: Path

    def __getattr__(self, name: str) -> Path:
        return self.path / name

    def warm_up(self) -> None:
        """Import what takes seconds before the processes are forked that need it."""
        import torch

        for name in NEEDED:
            importlib.import_module(name)

        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        _without_fresh_processes()


def _without_fresh_processes() -> None:
    """Do here what the program does in processes of its own, each of which takes seconds to import what it needs.

    `tile` reads slides in a worker, so that a crash in a C library costs one slide; here it ends the input's process,
    which counts as a find all the same. `export` loads its files back in a fresh process.
    """
    import contextlib
    import functools
    import io

    from dino_path.exporting import formats, reload
    from dino_path.features import from_slides
    from dino_path.tiles import tiling, workers

    def work_here(function: object, items: object, *, num_workers: int) -> object:
        return workers.work_in_processes(function, items, num_workers=0)  # type: ignore[arg-type, type-var]

    @functools.wraps(reload.ask_fresh_process)
    def answer_here(script: str, path: Path, *arguments: str) -> object:
        printed, before = io.StringIO(), sys.argv
        sys.argv = ["-c", str(path.resolve()), *arguments]
        try:
            with contextlib.redirect_stdout(printed):
                exec(script, {})
        finally:
            sys.argv = before
        return json.loads(printed.getvalue().strip().splitlines()[-1])

    for module in (tiling, from_slides):
        if hasattr(module, "work_in_processes"):
            module.work_in_processes = work_here  # type: ignore[attr-defined]
    for module in (reload, formats):
        module.ask_fresh_process = answer_here  # type: ignore[attr-defined]


def build_corpus(path: Path) -> Corpus:
    """The corpus at `path`; made there where it is not complete."""
    corpus = Corpus(path)
    if not (path / "complete").exists():
        write_inputs(corpus)
        _call("tile", corpus.slides / "a.tif", corpus.slides / "b.tif", "--out", corpus.store, "tiles.mpp=0.5",
              "tiles.size_px=64", "tiles.min_tissue_fraction=0.2", "--workers", "0")  # fmt: skip
        knn = f"monitor.knn_data={corpus.path / 'manifest.csv'}"
        _call("pretrain", f"store={corpus.store}", f"out={corpus.run}", *TINY, knn, "monitor.knn_every_steps=2")
        _call("export", corpus.run, "--out", corpus.model, "--best")
        _call("pretrain", f"store={corpus.store}", f"out={corpus.second}", *TINY, f"model.weights={corpus.run}",
              "objective.distill.weight=1", f"objective.distill.teacher={corpus.model}", knn,
              "monitor.knn_every_steps=2")  # fmt: skip
        _call("evaluate", "knn", corpus.model, "--data", corpus.path / "manifest.csv", "--out", corpus.evaluation,
              "evaluation.num_bootstrap=100")  # fmt: skip
        _call("embed", corpus.model, corpus.store, "--out", corpus.features, "--workers", "0", "--allow-other-mpp")
        (corpus.path / "complete").touch()
    return corpus


def write_inputs(corpus: Corpus) -> None:
    """Slides, annotations, labelled images and tables: what needs no command of the program."""
    corpus.path.mkdir(parents=True, exist_ok=True)
    _write_slides(corpus)
    _write_images(corpus)
    _write_tables(corpus)


def _call(*words: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dino_path", *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"the corpus cannot be made: {' '.join(map(str, words))}\n{done.stderr}")


@cache
def tissue(seed: int, edge_px: int) -> np.ndarray:
    """(edge_px, edge_px, 3) uint8 RGB: pink tissue with purple dots on white glass."""
    rng = np.random.default_rng(seed)
    image = np.full((edge_px, edge_px, 3), 243, np.uint8)
    margin = edge_px // 16
    image[margin:-margin, margin:-margin] = rng.integers((195, 110, 150), (235, 160, 200))
    for _ in range(edge_px):
        centre = rng.integers(margin, edge_px - margin, 2).tolist()
        cv2.circle(image, centre, int(rng.integers(1, 5)), rng.integers((70, 30, 110), (130, 80, 170)).tolist(), -1)
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def _write_slides(corpus: Corpus) -> None:
    """Pyramids of JPEG tiles: plain TIFF, SVS, OME-TIFF, strips; DICOM; a folder with annotations of each kind."""
    folder = corpus.slides
    folder.mkdir(exist_ok=True)
    for name, seed in (("a.tif", 1), ("b.tif", 2), ("c.svs", 3)):
        levels = [tissue(seed, 512)]
        levels.append(cv2.resize(levels[0], (128, 128), interpolation=cv2.INTER_AREA))
        aperio = "Aperio Image Library v11.2.1\n512x512 [0,0 512x512] (256x256) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5"
        with tifffile.TiffWriter(folder / name) as file:
            for number, level in enumerate(levels):
                file.write(
                    level, tile=(128, 128), photometric="rgb", compression="jpeg", subfiletype=int(number > 0),
                    metadata=None, resolution=(20_000 / 4**number,) * 2, resolutionunit="CENTIMETER",
                    description=aperio if name.endswith(".svs") else None,
                )  # fmt: skip
    tifffile.imwrite(
        folder / "d.ome.tif", tissue(4, 256), ome=True, photometric="rgb", tile=(128, 128), compression="zlib",
        metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "axes": "YXS"},
    )  # fmt: skip
    tifffile.imwrite(folder / "e.tif", tissue(5, 256), photometric="rgb", rowsperstrip=16, compression="lzw",
                     resolution=(20_000, 20_000), resolutionunit="CENTIMETER")  # fmt: skip
    for ending in (".png", ".jpg", ".bmp", ".webp"):
        cv2.imwrite(str(folder / f"f{ending}"), tissue(6, 256)[..., ::-1])
    _write_dicom(folder / "g.dcm", tissue(7, 256))
    square = [[[100, 100], [400, 100], [400, 400], [100, 400], [100, 100]]]
    features = [
        {"type": "Feature", "id": f"id{number}", "geometry": {"type": "Polygon", "coordinates": square},
         "properties": {"objectType": "annotation", "classification": {"name": name, "color": [200, 0, 0]}}}
        for number, name in enumerate(("tumour", "stroma"))
    ]  # fmt: skip
    annotations = corpus.path / "annotations"
    annotations.mkdir(exist_ok=True)
    (annotations / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    points = "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(square[0]))
    (annotations / "a.xml").write_text(
        '<?xml version="1.0"?><ASAP_Annotations><Annotations><Annotation Name="1" Type="Polygon" PartOfGroup="tumour">'
        f"<Coordinates>{points}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in square[0])
    (annotations / "a.annotations").write_text(
        '<Annotations><Annotation Id="1" Name="tumour"><Regions><Region Id="1" Type="0" NegativeROA="0">'
        f"<Vertices>{vertices}</Vertices></Region></Regions></Annotation></Annotations>"
    )
    cv2.imwrite(str(annotations / "a.png"), (tissue(1, 128)[..., 1] < 200).astype(np.uint8) * 255)


def _write_dicom(file: Path, image: np.ndarray) -> None:
    """A tiled whole-slide image of one level, 128 px JPEG frames."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    frames = [
        cv2.imencode(".jpg", image[y : y + 128, x : x + 128, ::-1])[1].tobytes() for y in (0, 128) for x in (0, 128)
    ]
    content = Dataset()
    content.file_meta = FileMetaDataset()
    content.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    slide_class = "1.2.840.10008.5.1.4.1.1.77.1.6"
    content.file_meta.MediaStorageSOPClassUID, content.file_meta.MediaStorageSOPInstanceUID = slide_class, "1.2.3.4"
    content.SOPClassUID, content.SOPInstanceUID, content.SeriesInstanceUID = slide_class, "1.2.3.4", "1.2.3"
    content.StudyInstanceUID, content.FrameOfReferenceUID, content.Modality = "1.2", "1.2.9", "SM"
    content.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    content.TotalPixelMatrixColumns = content.TotalPixelMatrixRows = 256
    content.Rows = content.Columns = 128
    content.NumberOfFrames, content.SamplesPerPixel, content.PhotometricInterpretation = 4, 3, "YBR_FULL_422"
    content.BitsAllocated = content.BitsStored = 8
    content.HighBit, content.PixelRepresentation, content.PlanarConfiguration = 7, 0, 0
    content.DimensionOrganizationType = "TILED_FULL"
    content.ImagedVolumeWidth = content.ImagedVolumeHeight = 0.128
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.0005, 0.0005], 0.001
    shared.PixelMeasuresSequence = [measures]
    content.SharedFunctionalGroupsSequence = [shared]
    content.PixelData = encapsulate(frames)
    content["PixelData"].is_undefined_length = True
    content.save_as(file, enforce_file_format=True)


def _write_images(corpus: Corpus) -> None:
    """Two classes of 64 px tiles as folders, and PatchCamelyon's HDF5."""
    images = []
    for number, name in enumerate(("normal", "tumour")):
        (corpus.images / name).mkdir(parents=True, exist_ok=True)
        for index in range(IMAGES_PER_CLASS):
            tile = tissue(100 * number + index, 64).copy()
            tile[..., 0] = np.clip(tile[..., 0].astype(int) - 40 * number, 0, 255)
            ending = ".jpg" if index % 2 else ".png"
            cv2.imwrite(str(corpus.images / name / f"{index:02d}{ending}"), tile[..., ::-1])
            images.append(cv2.resize(tile, (96, 96)))
    corpus.pcam.mkdir(exist_ok=True)
    for part in ("train", "valid", "test"):
        with h5py.File(corpus.pcam / f"camelyonpatch_level_2_split_{part}_x.h5", "w") as file:
            file["x"] = np.stack(images)
        with h5py.File(corpus.pcam / f"camelyonpatch_level_2_split_{part}_y.h5", "w") as file:
            file["y"] = np.repeat([0, 1], IMAGES_PER_CLASS).reshape(-1, 1, 1, 1).astype(np.uint8)


def _write_tables(corpus: Corpus) -> None:
    """A manifest in three formats, a CSV of slides, labels of slides, configs and a suite."""
    import pyarrow
    import pyarrow.parquet

    rows = [
        (str(file), file.parent.name, f"P{index % 6}-{file.parent.name}", ("train", "val", "test")[index % 3])
        for name in ("normal", "tumour")
        for index, file in enumerate(sorted((corpus.images / name).iterdir()))
    ]
    header = ("path", "label", "patient_id", "split")
    for ending, separator in (("csv", ","), ("tsv", "\t")):
        with (corpus.path / f"manifest.{ending}").open("w", newline="") as stream:
            csv.writer(stream, delimiter=separator).writerows([header, *rows])
    columns = {name: list(column) for name, column in zip(header, zip(*rows, strict=True), strict=True)}
    pyarrow.parquet.write_table(pyarrow.table(columns), corpus.path / "manifest.parquet")
    slides = [
        (corpus.slides / name, name, f"P{number}", "0.5", ("train", "test")[number % 2])
        for number, name in enumerate(("a.tif", "b.tif", "c.svs"))
    ]
    with (corpus.path / "slides.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "slide_id", "patient_id", "mpp", "split"), *slides])
    rng = np.random.default_rng(0)
    bags = corpus.bags
    bags.mkdir(exist_ok=True)
    labels = []
    for number in range(16):
        name, label = f"S{number:02d}", number % 2
        features = rng.normal(size=(6, 4)).astype(np.float32)
        features[:, 0] += 2 * label
        with h5py.File(bags / f"{name}.h5", "w") as file:
            file["features"] = features
            file["features"].attrs.update(encoder="model", encoder_digest="0")
            file["coords"] = np.stack([np.arange(6) * 256, np.zeros(6)], axis=1).astype(np.int64)
            file["coords"].attrs.update(patch_size=256, patch_size_level0=256)
        labels.append((name, f"P{number:02d}", ("normal", "tumour")[label]))
    with (corpus.path / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("slide_id", "patient_id", "label"), *labels])
