"""The second half of view making on the training device: flips, stain, colour, blur and solarisation of whole batches.

The same operations with the same parameters as `rendering.py`, in fp32 and without rounding to grey levels between
them. Nothing here draws a number or waits for the device: what differs from view to view is worked out on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dino_path.views.parameters import ViewParameters
from dino_path.views.rendering import LUMA, TRANSPOSE_AND_FLIP, blur_radius_px
from dino_path.views.stain import JITTER_BASIS

# Columns of the packed parameters.
_TURNS, _STAIN, _ORDER, _FACTORS, _HUE = slice(0, 3), slice(3, 9), slice(9, 13), slice(13, 16), 16
_HAS_STAIN, _HAS_COLOUR, _IS_GREY, _SIGMA, _IS_SOLARIZED = 17, 18, 19, 20, 21
NUM_COLUMNS = 22
_NONE = (0.0, 0.0, 0.0)
_JITTER_BASIS = torch.from_numpy(JITTER_BASIS).float()
_RED, _GREEN, _BLUE = LUMA.tolist()


def pack(view: ViewParameters) -> list[float]:
    """What `finish_views` needs to know of a view that is cropped and resized: NUM_COLUMNS numbers."""
    transposes, flip = TRANSPOSE_AND_FLIP[view.dihedral]
    return [
        transposes, flip in (1, -1), flip in (0, -1), *(view.stain_scale or _NONE), *(view.stain_bias or _NONE),
        *(view.colour_order or (0, 1, 2, 3)), view.brightness, view.contrast, view.saturation, view.hue,
        view.stain_scale is not None, view.colour_order is not None, view.is_grey, view.blur_sigma_px or 0.0,
        view.is_solarized,
    ]  # fmt: skip


def finish_views(views: Tensor, parameters: Tensor, device: torch.device) -> Tensor:
    """(N, H, H, 3) uint8 -> (N, 3, H, H) float in 0 to 1 on the device.

    Args:
        views: on the host, or on the device already.
        parameters: (N, NUM_COLUMNS) on the host, packed, of views that are cropped and resized only; (N, 0): the views
            are finished.
    """
    pixels = views.to(device, non_blocking=True).permute(0, 3, 1, 2)
    if parameters.shape[1] == 0:
        return pixels.float() / 255
    on_device = _send(parameters, device)
    images = _turn_and_flip(pixels, on_device[:, _TURNS].bool()).float() / 255
    for column, change in (
        (_HAS_STAIN, _jitter_stain),
        (_HAS_COLOUR, _jitter_colour),
        (_IS_GREY, _to_grey),
        (_SIGMA, _blur),
        (_IS_SOLARIZED, _solarize),
    ):
        rows = parameters[:, column].nonzero().flatten()
        if len(rows) > 0:
            at = _send(rows, device)
            images[at] = change(images[at], on_device[at], parameters[rows])
    return images


def _send(numbers: Tensor, device: torch.device) -> Tensor:
    """From the host to the device. A copy to a GPU from memory that is not page-locked may wait for all before it."""
    if device.type == "cuda" and not numbers.is_cuda:
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)


def _turn_and_flip(images: Tensor, turns: Tensor) -> Tensor:
    """`turns`: (N, 3), whether to transpose, then to flip left-right, then up-down."""
    transposes, left_right, up_down = turns[:, :, None, None, None].unbind(1)
    images = torch.where(transposes, images.transpose(2, 3), images)
    images = torch.where(left_right, images.flip(3), images)
    return torch.where(up_down, images.flip(2), images)


def _jitter_stain(images: Tensor, _: Tensor, on_host: Tensor) -> Tensor:
    matrix = _send(on_host[:, _STAIN] @ _JITTER_BASIS, images.device).reshape(-1, 3, 4, 1, 1)
    density = images.clamp(min=1 / 255).log()  # negative
    new = -matrix[:, :, 3]
    for channel in range(3):  # not a product of matrices: those may be computed in TF32
        new = torch.addcmul(new, matrix[:, :, channel], density[:, channel : channel + 1])
    return new.exp().clamp(max=1)


def _jitter_colour(images: Tensor, parameters: Tensor, on_host: Tensor) -> Tensor:
    """Four rounds. Brightness, contrast and saturation are one formula: mix the image with black, grey mean or grey."""
    order = parameters[:, _ORDER].long()
    factors = functional.pad(parameters[:, _FACTORS], (0, 1), value=1.0).gather(1, order)  # hue's round mixes nothing
    for number in range(4):
        factor, operation = factors[:, number, None, None, None], order[:, number, None, None, None]
        grey = _luma(images)
        target = torch.where(operation == 1, grey.mean((2, 3), keepdim=True), grey * (operation == 2))
        images = torch.lerp(target, images, factor).clamp(0, 1)
        rows = (on_host[:, _ORDER][:, number] == 3).nonzero().flatten()
        if len(rows) > 0:
            at = _send(rows, images.device)
            images[at] = _shift_hue(images[at], parameters[at, _HUE])
    return images


def _shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Hue turned by `shift` (N,), a share of the circle, at the same value and chroma of HSV."""
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    sixths = torch.where(
        value == red, green - blue, torch.where(value == green, 2 * chroma + blue - red, 4 * chroma + red - green)
    ) / chroma.clamp(min=1e-6)
    sixths = sixths + 6 * shift[:, None, None]
    channel = torch.arange(5, 0, -2, device=images.device)[None, :, None, None]  # red 5, green 3, blue 1
    place = torch.remainder(sixths[:, None] + channel, 6)
    return value[:, None] - chroma[:, None] * torch.minimum(place, 4 - place).clamp(0, 1)


def _blur(images: Tensor, parameters: Tensor, on_host: Tensor) -> Tensor:
    """Gaussian blur, each image by its own sigma, across and then down."""
    num_images, _, height, width = images.shape
    widest = min(blur_radius_px(float(on_host[:, _SIGMA].max())), min(height, width) - 1)
    sigma = parameters[:, _SIGMA, None]
    distance = torch.arange(-widest, widest + 1, device=images.device)
    kernel = torch.exp(-(distance**2) / (2 * sigma**2)) * (distance.abs() <= (3 * sigma).round().clamp(min=1))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, dim=0)[:, None, None]  # one for each channel
    channels = images.reshape(1, 3 * num_images, height, width)
    across = functional.pad(channels, (widest, widest, 0, 0), mode="reflect")
    channels = functional.conv2d(across, kernel, groups=3 * num_images)
    down = functional.pad(channels, (0, 0, widest, widest), mode="reflect")
    return functional.conv2d(down, kernel.transpose(2, 3), groups=3 * num_images).reshape_as(images)


def _to_grey(images: Tensor, *_: Tensor) -> Tensor:
    return _luma(images).expand_as(images)


def _solarize(images: Tensor, *_: Tensor) -> Tensor:
    return torch.where(images >= 128 / 255, 1 - images, images)


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    luma: Tensor = _RED * red + _GREEN * green + _BLUE * blue
    return luma
