import pytest

from dino_path.sharing import shared_name, shared_settings, without_folders


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/data/Doe John/slide 1.svs", "slide 1.svs"),
        ("pcam:/data/Doe", "pcam:Doe"),
        ("untrained:../Doe/model", "untrained:model"),
        ("/data/Doe John/x.svs: cannot be read at 0.5 um/px.", "x.svs: cannot be read at 0.5 um/px."),
        ("see '/data/Doe/x.svs' and /data/y.svs, both", "see 'x.svs' and y.svs, both"),
        ("https://example.org/data/x", "https://example.org/data/x"),
        ("2 tiles/s at 0.25 um/px, k/n, Ti/16 and 1/2", "2 tiles/s at 0.25 um/px, k/n, Ti/16 and 1/2"),
        ("hf-hub:owner/model", "hf-hub:owner/model"),
        ("", ""),
    ],
)
def test_absolute_paths_lose_their_folders_and_other_text_stays(text: str, left: str) -> None:
    assert without_folders(text) == left
    assert without_folders({text: [text, (text, 1, None)]}) == {left: [left, (left, 1, None)]}


def test_names_keep_the_last_parts_of_a_path() -> None:
    assert shared_name("untrained:/data/runs/vits16/model", num_parts=2) == "untrained:vits16/model"
    assert shared_name("runs/vits16/model") == "model"
    for spec in ("mean-colour", "hf-hub:MahmoodLab/UNI", "vit_small_patch16_224.dino"):
        assert shared_name(spec, num_parts=2) == spec


def test_settings_lose_where_a_run_was_made() -> None:
    tree = {
        "store": "stores/Doe/tiles", "out": "/scratch/Doe/run", "cluster": {"account": "Doe"},
        "wandb": {"project": "dino", "entity": "Doe"}, "model": {"weights": "hf-hub:a/b", "arguments": {}},
        "monitor": {"knn_data": "pcam:/Doe/pcam"}, "slides": {"exclude": ["/Doe/x.svs"], "masks": None},
    }  # fmt: skip
    assert shared_settings(tree) == {
        "store": "tiles", "out": "run",
        "wandb": {"project": "dino"}, "model": {"weights": "hf-hub:a/b", "arguments": {}},
        "monitor": {"knn_data": "pcam:pcam"}, "slides": {"exclude": ["x.svs"], "masks": None},
    }  # fmt: skip
