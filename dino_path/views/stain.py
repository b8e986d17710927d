"""Stain jitter: haematoxylin, eosin and residual densities scaled and shifted one by one.

Source: Ruifrok & Johnston 2001 (colour deconvolution); Tellez et al. 2018 (jitter of the separated densities).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# Optical density of the three stains in R, G, B (Ruifrok & Johnston 2001, table 1; the third is the residual).
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAIN_RGB = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
STAIN_FROM_RGB = np.linalg.inv(STAIN_RGB)

# Density to stains, their jitter, and back: one affine map, a (3, 4) matrix, and linear in scales and biases.
# Here is what each scale and then each bias adds to it.
JITTER_BASIS = np.concatenate(
    [
        np.pad(np.einsum("rs,sq->sqr", STAIN_FROM_RGB, STAIN_RGB), ((0, 0), (0, 0), (0, 1))),
        np.pad(STAIN_RGB[..., None], ((0, 0), (0, 0), (3, 0))),
    ]
).reshape(6, 12)

# Grey level -> optical density, natural logarithm; level 0 is counted as 1 to stay finite.
_DENSITY_OF_LEVEL = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)


def jitter_stain(
    image: NDArray[np.uint8], scale: tuple[float, float, float], bias: tuple[float, float, float]
) -> NDArray[np.uint8]:
    """The (H, W, 3) uint8 RGB image with each stain's density d replaced by `scale * d + bias`."""
    density = cv2.LUT(image, _DENSITY_OF_LEVEL)
    matrix = (np.array((*scale, *bias)) @ JITTER_BASIS).reshape(3, 4)
    transmitted = cv2.exp(cv2.transform(density, -matrix))
    return cv2.convertScaleAbs(transmitted, alpha=255.0)  # type: ignore[return-value]
