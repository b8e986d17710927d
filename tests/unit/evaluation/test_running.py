"""k-NN of a network in training: on images that no test uses, with the numbers of `evaluate knn`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WriteImage  # type: ignore[attr-defined]
from runs import metrics_of

from dino_path.cli import main
from dino_path.config import Config
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.evaluation.protocols.running import running_test
from dino_path.features.extractor import MeanColour
from dino_path.run import RunFolder
from dino_path.settings import load_config

CPU = torch.device("cpu")


class Lightness(torch.nn.Module):
    """One feature that is the same for every image: k-NN can only guess."""

    num_features = 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(images), 1)


class Counting(MeanColour):
    """Mean colour that counts the images it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.num_images = 0

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        self.num_images += len(images_BCHW)
        return super().forward(images_BCHW)


def config_for(data: Path, *settings: str) -> Config:
    return load_config(None, [f"monitor.knn_data={data}", "views.global_px=16", "evaluation.knn_k=5", *settings])


def test_colours_tell_coloured_classes_apart_and_a_constant_does_not(class_folders: Path) -> None:
    measure = running_test(config_for(class_folders), device=CPU).knn
    assert measure(MeanColour()) == 1.0
    assert measure(Lightness()) == pytest.approx(1 / 3, abs=0.35)
    assert measure(MeanColour()) == 1.0, "it may be asked again"


def test_the_test_part_is_never_looked_at(class_folders: Path) -> None:
    config, network = config_for(class_folders), Counting()
    running_test(config, device=CPU).knn(network)
    assert network.num_images == len(load_labelled(str(class_folders), config.evaluation).part("train"))


def test_of_many_images_a_part_is_taken(class_folders: Path) -> None:
    network = Counting()
    accuracy = running_test(config_for(class_folders, "monitor.knn_images=12"), device=CPU).knn(network)
    assert network.num_images == 12
    assert 0 <= accuracy <= 1


def test_the_command_watches_its_teacher(
    class_folders: Path, tmp_path: Path, write_image: WriteImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (
        f"store={class_folders}", f"out={tmp_path / 'run'}", f"monitor.knn_data={class_folders}",
        "monitor.knn_every_steps=2", "monitor.log_every_steps=2", "training.num_steps=4",
        "training.batch_size_per_gpu=4", "training.num_workers=0", "training.device=cpu", "wandb.mode=disabled",
        "views.global_px=32", "views.local_px=16", "views.num_local=1", "model.backbone=vit_tiny_patch16_224",
        "model.arguments={img_size: 32, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}",
        "objective.dino.num_prototypes=64", "objective.dino.head_hidden=32", "objective.dino.head_bottleneck=16",
    )  # fmt: skip
    monkeypatch.setattr("sys.argv", ["dino-path", "pretrain", *settings])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (None, 0)
    accuracies = [record["knn_accuracy"] for record in metrics_of(RunFolder(tmp_path / "run"))]
    assert len(accuracies) == 2
    assert np.all((np.array(accuracies) >= 0) & (np.array(accuracies) <= 1))
    log = (tmp_path / "run/log.txt").read_text()
    assert "k-NN every 2 steps on data:" in log
    assert "(contents " in log  # a set that was replaced shows in the log of a resume
    assert f"k-NN {accuracies[-1]:.3f}" in log
