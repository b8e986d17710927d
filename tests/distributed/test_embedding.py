"""Two gloo processes share the slides: together they write what one writes alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import ONE_THREAD, free_port
from safetensors.torch import save_file
from slide_files import tissue_image, write_slide_file

from dino_path.features.files import read_feature_file
from dino_path.model.backbone import build_backbone

pytestmark = pytest.mark.slow
JOB = "20x_64px_0px_overlap"
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model`, and `slides` with three slides and a torn one."""
    folder = tmp_path_factory.mktemp("embedding")
    torch.manual_seed(0)
    weights = build_backbone("vit_tiny_patch16_224", VIT).state_dict()
    (folder / "vit").mkdir()
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / "vit" / "model.safetensors")
    preprocessing = {"input_size": [3, 32, 32], "mean": [0.7, 0.5, 0.6], "std": [0.2, 0.2, 0.2], "num_classes": 0}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": VIT, "pretrained_cfg": preprocessing, "mpp": 0.5}
    (folder / "vit" / "config.json").write_text(json.dumps(config))
    for name, width in (("a", 1024), ("b", 800), ("c", 900)):
        write_slide_file(folder / "slides" / f"{name}.tif", [tissue_image(width)])
    (folder / "slides" / "torn.svs").write_bytes(b"no slide")
    return folder


def embed(inputs: Path, out: Path, *, num_processes: int) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each process."""
    port = free_port()
    processes = []
    for rank in range(num_processes):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
        ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(
            subprocess.Popen(
                [
                    sys.executable, "-m", "dino_path", "embed", str(inputs / "vit"), str(inputs / "slides"),
                    "--out", str(out), "--workers", "1", "--device", "cpu", "tiles.size_px=64", "tiles.mask_mpp=4",
                ],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env={**ONE_THREAD, **(ranks if num_processes > 1 else {})}, cwd=Path(__file__).parents[2],
            )
        )  # fmt: skip
    answers = [process.communicate(timeout=240) for process in processes]
    return [(process.returncode, *answer) for process, answer in zip(processes, answers, strict=True)]


def test_two_processes_write_what_one_writes_and_the_first_speaks_for_both(inputs: Path, tmp_path: Path) -> None:
    (code, said, log), other = embed(inputs, tmp_path / "two", num_processes=2)
    assert (code, other[0]) == (3, 0), other[2]
    assert "3 slides embedded, 0 already there, 0 without tiles, 1 failed" in said, log
    assert "failed   torn: " in said
    assert other[1] == ""
    (alone,) = embed(inputs, tmp_path / "one", num_processes=1)
    assert alone[0] == 3
    assert alone[1].replace(str(tmp_path / "one"), "") == said.replace(str(tmp_path / "two"), "")
    for name in ("a", "b", "c"):
        files = [tmp_path / out / JOB / "features_vit" / f"{name}.h5" for out in ("one", "two")]
        one, two = (read_feature_file(file) for file in files)
        assert np.array_equal(one.features, two.features)
        assert one.coords is not None
        assert np.array_equal(one.coords, two.coords)
        assert one.origin == two.origin
    summary = json.loads((tmp_path / "two" / "embed_vit.json").read_text())
    assert summary["written"] == ["a", "b", "c"]
