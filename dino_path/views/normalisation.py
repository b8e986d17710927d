"""Stain normalisation: a tile's colours are mapped to fixed targets before views are drawn.

Stains are estimated on each tile alone, which is noisy where a tile shows little of one of them: a tile of pure stroma
gets its faint nuclei stretched to the target's. Jitter (`stain.py`) is the safer choice; this one is for comparisons.
"""

from __future__ import annotations

from typing import Literal, assert_never

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Matrix = NDArray[np.float64]

GLASS = 240.0  # grey level of light that met no tissue
MIN_DENSITY = 0.15  # natural logarithm: less is glass (Macenko et al. 2009, beta)
DARKEST_GLASS = GLASS * np.exp(-MIN_DENSITY)
EXTREME_PERCENT = 1.0  # of the angles, and of the concentrations, are taken for noise (alpha)
MIN_TISSUE_PIXELS = 100  # of every fourth row and column
STEP = 4
_DENSITY_OF_LEVEL = -np.log(np.maximum(np.arange(256), 1) / GLASS).astype(np.float32)

# Haematoxylin and eosin in R, G, B, and their largest concentrations: Veta's published implementation of Macenko's
# method (mitkovetta/staining-normalization), with GLASS and MIN_DENSITY as there.
TARGET_STAINS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
TARGET_CONCENTRATIONS = np.array([1.9705, 1.0308])

# Reinhard et al. 2001, equations 4 to 6: RGB to cones, and their logarithms (natural here) to l, alpha, beta.
LMS_FROM_RGB = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
LAB_FROM_LMS = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])
# Mean and deviation of TCGA-A2-A3XS-DX1 (Amgad et al. 2019), the standard of HistomicsTK's documentation.
TARGET_MEAN = np.array([8.74108109, -0.12440419, 0.0444982])
TARGET_STD = np.array([0.6135447, 0.10989545, 0.0286032])


def normalise_stain(image: Image, method: Literal["reinhard", "macenko"] | None) -> Image:
    """The (H, W, 3) uint8 RGB image in the target's colours; an image with almost no tissue is unchanged."""
    match method:
        case None:
            return image
        case "reinhard":
            return normalise_reinhard(image)
        case "macenko":
            return normalise_macenko(image)
    assert_never(method)


def normalise_reinhard(image: Image) -> Image:
    """Set mean and deviation of l, alpha, beta over the tissue to the target's; glass is unchanged."""
    is_tissue = (image <= DARKEST_GLASS).any(-1)
    logarithm = cv2.log(cv2.transform(np.maximum(image, 1).astype(np.float32), LMS_FROM_RGB))
    some = logarithm[::STEP, ::STEP][is_tissue[::STEP, ::STEP]]
    if len(some) < MIN_TISSUE_PIXELS:
        return image
    lab = some @ LAB_FROM_LMS.T
    stretch = TARGET_STD / np.maximum(lab.std(0), 1e-6)
    offset = TARGET_MEAN - stretch * lab.mean(0)
    # To l, alpha, beta, stretched, and back: one affine map of the logarithms.
    back = np.linalg.inv(LAB_FROM_LMS)
    affine = np.column_stack([back @ np.diag(stretch) @ LAB_FROM_LMS, back @ offset])
    colours = cv2.transform(cv2.exp(cv2.transform(logarithm, affine)), np.linalg.inv(LMS_FROM_RGB))
    return np.where(is_tissue[..., None], np.rint(colours.clip(0, 255)).astype(np.uint8), image)


def normalise_macenko(image: Image) -> Image:
    """Stains of this tile replaced by the target's, and their concentrations scaled to the target's largest."""
    some = image[::STEP, ::STEP]
    tissue = some[(some <= DARKEST_GLASS).all(-1)]
    density = _DENSITY_OF_LEVEL[tissue].astype(np.float64)
    if len(density) < MIN_TISSUE_PIXELS:
        return image
    stains = stain_vectors(density)
    from_density = np.linalg.pinv(stains.T)  # (2, 3)
    largest = np.percentile(density @ from_density.T, 100 - EXTREME_PERCENT, axis=0)
    scale = TARGET_CONCENTRATIONS / np.maximum(largest, 1e-6)
    matrix = TARGET_STAINS.T @ np.diag(scale) @ from_density
    transmitted = cv2.exp(cv2.transform(cv2.LUT(image, _DENSITY_OF_LEVEL), -matrix))
    return np.asarray(cv2.convertScaleAbs(transmitted, alpha=GLASS), dtype=np.uint8)


def stain_vectors(density: Matrix) -> Matrix:
    """(2, 3): haematoxylin and eosin, of unit length, from the (N, 3) densities of tissue pixels.

    The pixels' plane of largest variance holds both; the outermost directions in it are the stains.
    """
    plane = np.linalg.eigh(np.cov(density.T))[1][:, :0:-1]  # (3, 2), the largest variance first
    plane = plane * np.where(plane.sum(0) < 0, -1.0, 1.0)  # the sign of an eigenvector is arbitrary
    on_plane = density @ plane
    angles = np.arctan2(on_plane[:, 1], on_plane[:, 0])
    extremes = np.percentile(angles, [EXTREME_PERCENT, 100 - EXTREME_PERCENT])
    found = np.stack([np.cos(extremes), np.sin(extremes)], axis=1) @ plane.T
    order = np.argsort(-found[:, 0])
    return np.asarray(found[order])  # haematoxylin takes away more red than eosin
