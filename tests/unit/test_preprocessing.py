"""What is done to a tile, as one value and as a sentence."""

from dataclasses import replace

import pytest

from dino_path.config import Config
from dino_path.preprocessing import Preprocessing, training_preprocessing

DEMO = Preprocessing((0.7, 0.5, 0.6), (0.2, 0.2, 0.2), 48, mpp=1.0, tile_px=96)


@pytest.mark.parametrize(
    ("changes", "text", "seen_mpp"),
    [
        ({}, "tiles of 96 px at 1 um/px, resized to 48 px: the network sees 2 um/px", 2.0),
        ({"tile_px": 48}, "tiles of 48 px at 1 um/px", 1.0),
        ({"input_px": None}, "tiles of 96 px at 1 um/px", 1.0),
        (
            {"tile_px": None},
            "tiles at 1 um/px, resized to 48 px (the original edge is not recorded, so the um/px that the network sees"
            " is unknown)",
            None,
        ),
        ({"mpp": None}, "tiles of 96 px of unknown um/px, resized to 48 px", None),
        (
            {"stain_normalisation": "macenko", "tile_px": 48},
            "tiles of 48 px at 1 um/px; macenko stain normalisation",
            1.0,
        ),
    ],
)
def test_the_sentence_names_tile_resize_and_what_the_network_sees(
    changes: dict[str, object], text: str, seen_mpp: float | None
) -> None:
    preprocessing = replace(DEMO, **changes)  # type: ignore[arg-type]
    assert preprocessing.text() == text
    assert preprocessing.seen_mpp == seen_mpp


def test_a_training_hands_on_all_of_its_preprocessing() -> None:
    config = Config.model_validate({
        "model": {"backbone": "resnet10t", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
        "views": {"global_px": 64, "local_px": 32, "stain_normalisation": "reinhard"},
    })  # fmt: skip
    found = training_preprocessing(config, tile_px=256, mpp=0.5)
    assert found == Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 64, 0.5, 256, "reinhard")
