"""How a tile becomes views: `views`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from dino_path.config.section import Fraction, FractionRange, PositiveRange, Range, Section


class ViewsConfig(Section):
    """One tile -> 2 global and `num_local` local views. Probabilities are per view."""

    recipe: Literal["histology", "dino", "virchow2"] = Field(
        "histology",
        description="defaults of the settings below; `dino` is the paper's augmentation, `virchow2` cuts views from"
        " tiles of 392 px almost without resizing them",
    )
    global_px: int = Field(224, ge=16, description="edge of a global view")
    local_px: int = Field(96, ge=8, description="edge of a local view")
    num_local: int = Field(8, ge=0, description="local views per tile")
    global_scale: FractionRange = Field((0.4, 1.0), description="area of a global crop, as a share of the tile")
    local_scale: FractionRange = Field((0.05, 0.4), description="area of a local crop, as a share of the tile")
    global_um: PositiveRange | None = Field(
        None,
        description="size of a global crop in microns (square root of its area, which is uniform), instead of"
        " `global_scale`: views at many magnifications, from tiles cut larger than views. The tiles' mpp must be"
        " known",
    )
    local_um: PositiveRange | None = Field(None, description="size of a local crop in microns, likewise")
    aspect: Range = Field((3 / 4, 4 / 3), description="aspect ratio of the crops")
    flip_prob: Fraction = Field(0.5, description="horizontal flip (`dino`); see `dihedral`")
    dihedral: bool = Field(
        True, description="all eight flips and quarter turns, uniformly, because tissue has no orientation"
    )
    stain_normalisation: Literal["reinhard", "macenko"] | None = Field(
        None,
        description="first normalise each tile's colours to a fixed target, estimated on the tile alone (noisy if"
        " the tile has little of a stain). The model folder records it, and features are computed from the same"
        " colours",
    )
    stain_prob: Fraction = Field(
        0.8, description="probability of jitter of the haematoxylin, eosin and residual densities"
    )
    stain_sigma: float = Field(0.2, ge=0, lt=1, description="each stain's density is scaled by U(1 - sigma, 1 + sigma)")
    stain_bias: float = Field(0.02, ge=0, description="and shifted by U(-bias, bias), in optical density")
    colour_prob: Fraction = Field(0.8, description="probability of brightness, contrast, saturation and hue jitter")
    brightness: float = Field(0.2, ge=0, description="strength: a factor from U(1 - s, 1 + s)")
    contrast: float = Field(0.2, ge=0, description="strength, likewise")
    saturation: float = Field(0.1, ge=0, description="strength, likewise")
    hue: float = Field(0.02, ge=0, le=0.5, description="largest shift, as a share of the colour circle")
    grey_prob: Fraction = Field(0.0, description="probability of conversion to grey")
    blur_prob: tuple[Fraction, Fraction, Fraction] = Field(
        (0.5, 0.1, 0.5), description="Gaussian blur: first global, second global, local views"
    )
    blur_sigma: Range = Field((0.1, 2.0), description="standard deviation of the blur, in pixels of the view")
    solarize_prob: Fraction = Field(0.0, description="solarisation at 128, second global view only")
    colour_on_device: bool = Field(
        False,
        description="workers only decode, crop and resize; flips, stain, colour, blur and solarisation are computed"
        " on the training device, for whole batches. The same views up to rounding; useful with a GPU and few cores",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_recipe(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("recipe"), str):
            return {**RECIPES.get(given["recipe"], {}), **given}
        return given


# The augmentation of the DINO paper, main_dino.py (facebookresearch/dino 7c446df), as differences to `histology`.
DINO_RECIPE: dict[str, Any] = {
    "dihedral": False, "flip_prob": 0.5, "stain_prob": 0.0, "colour_prob": 0.8, "brightness": 0.4, "contrast": 0.4,
    "saturation": 0.2, "hue": 0.1, "grey_prob": 0.2, "blur_prob": (1.0, 0.1, 0.5), "solarize_prob": 0.2,
}  # fmt: skip
# Extended-context translation (Zimmermann et al. 2024, arXiv:2408.00738): views are cut from tiles of 392 px and moved
# about in them, and hardly resized: 0.9 to 1.1 of the area of 224 or 98 px. No stain jitter there; no solarisation, as
# in Virchow2G; turns by quarters beside the paper's flips.
_WHOLE_PX2 = 392**2
VIRCHOW2_RECIPE: dict[str, Any] = {
    "global_px": 224, "local_px": 98, "num_local": 8, "aspect": (0.95, 1.05),
    "global_scale": (round(0.9 * 224**2 / _WHOLE_PX2, 4), round(1.1 * 224**2 / _WHOLE_PX2, 4)),
    "local_scale": (round(0.9 * 98**2 / _WHOLE_PX2, 4), round(1.1 * 98**2 / _WHOLE_PX2, 4)),
    "stain_prob": 0.0, "colour_prob": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1,
    "grey_prob": 0.2, "blur_prob": (1.0, 0.1, 0.5), "solarize_prob": 0.0,
}  # fmt: skip
RECIPES = {"dino": DINO_RECIPE, "virchow2": VIRCHOW2_RECIPE}
