"""Slides with a secret in every possible place: metadata, comments, what follows the pixels, label, macro, names."""

import io
from pathlib import Path

import cv2
import numpy as np
import pydicom
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit, generate_uid

WORD = "KRAKENWALD"  # no part of any other word
TILE_PX = 256
LABEL_COLOUR = (255, 0, 255)  # of label and macro pictures: no tissue has it
WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"


def planted_jpeg(rgb: NDArray[np.uint8], place: str) -> bytes:
    """A JPEG with the word in its comment, EXIF, another application segment, and after its end, before another end."""
    stream = io.BytesIO()
    word = f"{WORD}-{place}".encode()
    Image.fromarray(rgb).save(stream, "jpeg", quality=90, subsampling="4:2:0", comment=word, exif=b"Exif\0\0" + word)
    jpeg = stream.getvalue()
    segment = b"\xff\xed" + (len(word) + 2).to_bytes(2, "big") + word
    return jpeg[:2] + segment + jpeg[2:] + word + b"\xff\xd9"


def tiles_of(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    height, width = image.shape[:2]
    return [
        image[y : y + TILE_PX, x : x + TILE_PX] for y in range(0, height, TILE_PX) for x in range(0, width, TILE_PX)
    ]


def write_planted_svs(file: Path, image: NDArray[np.uint8]) -> Path:
    """An Aperio slide of whole 256 px tiles at 0.5 um/px, with thumbnail, label and macro."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fields = "|".join(f"{name} = {WORD}-{name}" for name in ("Title", "User", "Filename", "ImageID", "Originator"))
    about = f"Aperio Image Library v12\r\n{image.shape[1]}x{image.shape[0]}|AppMag = 20|MPP = 0.5|{fields}"
    small = cv2.resize(image, None, fx=0.25, fy=0.25)
    label = np.full((64, 128, 3), LABEL_COLOUR, np.uint8)
    with tifffile.TiffWriter(file) as tiff:
        tiff.write(
            (planted_jpeg(tile, f"tile{number}") for number, tile in enumerate(tiles_of(image))),
            shape=image.shape, dtype=np.uint8, tile=(TILE_PX, TILE_PX), photometric="ycbcr", subsampling=(2, 2),
            compression="jpeg", description=about, software=f"{WORD}-software", metadata=None,
            extratags=[(315, "s", 0, f"{WORD}-artist", True), (316, "s", 0, f"{WORD}-host", True)],
        )  # fmt: skip
        common = {"photometric": "rgb", "metadata": None, "rowsperstrip": 4096}
        tiff.write(small, description=f"Aperio thumbnail {WORD}-thumbnail", **common)
        tiff.write(label, description=f"Aperio label {WORD}-label", subfiletype=1, **common)
        tiff.write(label, description=f"Aperio macro {WORD}-macro", subfiletype=9, **common)
    return file


def write_planted_dicom(file: Path, image: NDArray[np.uint8]) -> Path:
    """A DICOM slide of one level at 0.5 um/px, with the word in every text."""
    file.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = WHOLE_SLIDE, generate_uid()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = WHOLE_SLIDE, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    for name in (
        "PatientName", "PatientID", "AccessionNumber", "InstitutionName", "InstitutionAddress", "StationName",
        "OperatorsName", "ReferringPhysicianName", "StudyDescription", "SeriesDescription", "ContainerIdentifier",
        "ImageComments", "StudyID", "DeviceSerialNumber", "PatientComments", "ProtocolName",
    ):  # fmt: skip
        setattr(data, name, f"{WORD}{name}"[:16] if name in ("AccessionNumber", "StationName", "StudyID") else WORD)
    specimen = Dataset()
    specimen.SpecimenIdentifier, specimen.SpecimenUID = WORD, generate_uid()
    data.SpecimenDescriptionSequence = Sequence([specimen])
    data.Modality, data.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.Rows = data.Columns = TILE_PX
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = image.shape[:2]
    data.ImagedVolumeWidth, data.ImagedVolumeHeight = image.shape[1] * 0.0005, image.shape[0] * 0.0005
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "YBR_FULL_422", 0
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.DimensionOrganizationType = "TILED_FULL"
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.0005, 0.0005], 0.001
    shared.PixelMeasuresSequence = Sequence([measures])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    optical = Dataset()
    optical.OpticalPathIdentifier = "1"
    data.OpticalPathSequence = Sequence([optical])
    frames = [planted_jpeg(tile, f"frame{number}") for number, tile in enumerate(tiles_of(image))]
    data.NumberOfFrames = len(frames)
    data.PixelData = encapsulate([frame + b"\0" * (len(frame) % 2) for frame in frames])
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file
