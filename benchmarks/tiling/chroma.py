"""The cost of halving the colour resolution of stored tiles: mean error, bytes, and k-NN on two kinds of features.

    python benchmarks/tiling/chroma.py IMAGES

IMAGES is a folder of class folders with groups.csv (path,label,patient_id), such as LC25000's lung part. Each image is
shrunk by 2 first, which gives it whole colours, then encoded. Features: colour statistics, and a frozen ViT-Ti/16
that was never trained; 5-NN with cosine similarity, split by group.
"""

import csv
import sys
from pathlib import Path

import cv2
import numpy as np
import timm
import torch

from dino_path.slides.images.jpeg import decode_jpeg
from dino_path.tiles.images import decode_tile
from dino_path.tiles.writing import encode_jpeg

PER_CLASS = 200


def main(folder: Path) -> None:
    rows = list(csv.DictReader((folder / "groups.csv").open()))
    labels = sorted({row["label"] for row in rows})
    chosen = [row for label in labels for row in [one for one in rows if one["label"] == label][:: 1000 // PER_CLASS]]
    images = []
    for row in chosen:
        image = decode_tile((folder / row["path"]).read_bytes(), row["path"])
        images.append(cv2.resize(image, (112, 112), interpolation=cv2.INTER_AREA))
    y = np.array([labels.index(row["label"]) for row in chosen])
    groups = sorted({row["patient_id"] for row in chosen})
    is_test = np.array([groups.index(row["patient_id"]) % 3 == 0 for row in chosen])
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=112, num_classes=0).eval()
    print(f"{len(images)} images, {is_test.sum()} of them tests")
    print("quality sampling  error  bytes  colour k-NN  ViT k-NN  ViT cosine")
    pure = features(vit, images)
    accuracies = knn(colours(images), y, is_test), knn(pure, y, is_test)
    print(f"{'lossless':16} {0:6.2f} {112 * 112 * 3:6d}  {accuracies[0]:11.3f} {accuracies[1]:9.3f}")
    for quality in (90, 100):
        for sampling in ("420", "444"):
            stored = [encode_jpeg(image, quality, sampling) for image in images]
            decoded = [decode_jpeg(one, shrink=1) for one in stored]
            error = np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(decoded, images, strict=True)])
            found, num_bytes = features(vit, decoded), np.mean([len(one) for one in stored])
            accuracies = knn(colours(decoded), y, is_test), knn(found, y, is_test)
            print(
                f"{quality:7} {sampling:8} {error:6.2f} {num_bytes:6.0f}  {accuracies[0]:11.3f} {accuracies[1]:9.3f}"
                f" {(found * pure).sum(1).mean():11.5f}",
                flush=True,
            )


def colours(images: list[np.ndarray]) -> np.ndarray:
    found = np.array([[*image.mean((0, 1)), *image.std((0, 1))] for image in images])
    return (found - found.mean(0)) / found.std(0)


@torch.inference_mode()
def features(vit: torch.nn.Module, images: list[np.ndarray]) -> np.ndarray:
    batch = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    found = torch.cat([vit(part) for part in batch.split(64)])
    return torch.nn.functional.normalize(found, dim=1).numpy()


def knn(found: np.ndarray, y: np.ndarray, is_test: np.ndarray) -> float:
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    nearest = np.argsort(-found[is_test] @ found[~is_test].T, axis=1)[:, :5]
    votes = np.array([np.bincount(y[~is_test][row], minlength=3).argmax() for row in nearest])
    return float((votes == y[is_test]).mean())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
