"""From slides to features and their neighbours, cell by cell.

    python examples/first_features.py OUT [MODEL]

An editor that knows `# %%` (VS Code, Spyder, Jupyter with jupytext) runs it as a notebook. It paints synthetic slides;
for your own set SLIDES, and REGIONS to the folder of their annotations.
"""

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import dino_path
from dino_path.slides.synthetic import SyntheticSlide, make_slides

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "first_features")
# A model folder that dino_path.export() has written. Colour statistics need no training: your model must beat them.
MODEL = sys.argv[2] if len(sys.argv) > 2 else "colour-statistics"

# %% Slides: three small ones for training, three for testing, each with its own stain, and a table of them.
painted = [SyntheticSlide(f"train_{number}", "train", 10 + number, 1280) for number in range(3)]
painted += [SyntheticSlide(f"test_{number}", "test", 20 + number, 1280) for number in range(3)]
SLIDES = make_slides(OUT / "slides", painted, num_workers=1)
REGIONS = OUT / "slides/regions"

# %% Tiles. Run again, this cell tiles only what is missing.
tiling = dino_path.tile(SLIDES, out=OUT / "tiles", tiles={"mpp": 1.0, "size_px": 64}, workers=1)
print(tiling)
store = tiling.tiles()
print(store)

# %% A store is a sequence of images, with a table.
print(store[0].shape, store[0].dtype)
print(store.table.select(["slide_id", "x_level0", "y_level0", "sharpness"]).slice(0, 3).to_pylist())

# %% Labels from the annotations. Tiles of one slide must not be on both sides of a test: its id tells the side.
labelled = store.dataset(REGIONS)
print(labelled)
is_test = np.char.startswith(labelled.groups, "test")

# %% Features: one row per tile.
extractor = dino_path.load(MODEL)
print(extractor)
features = extractor.embed(labelled)
print(features)

# %% k nearest neighbours by cosine, among the tiles of the training slides.
K = 10
directions = features.values - features.values[~is_test].mean(axis=0)
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
similarity = directions[is_test] @ directions[~is_test].T
neighbours = np.argsort(-similarity, axis=1)[:, :K]
votes = np.apply_along_axis(np.bincount, 1, labelled.labels[~is_test][neighbours], minlength=len(labelled.classes))
is_right = votes.argmax(axis=1) == labelled.labels[is_test]
chance = np.bincount(labelled.labels[is_test]).max() / is_test.sum()
print(f"{K}-NN: {is_right.mean():.2f} of {len(is_right)} test tiles right (the commonest class: {chance:.2f})")

# %% The same question with a confidence interval over patients, and the settings noted beside the answer.
answer = dino_path.evaluate(
    "knn",
    MODEL,
    data=f"store:{OUT / 'tiles'}",
    out=OUT / "eval",
    workers=0,
    evaluation={"regions": REGIONS, "knn_k": K, "num_bootstrap": 200},
)
print(answer)

# %% A picture: one test tile of each class, and the training tiles that are most like it.
numbers, training = np.flatnonzero(is_test), np.flatnonzero(~is_test)
queries = [int(np.flatnonzero(labelled.labels[is_test] == label)[0]) for label in np.unique(labelled.labels[is_test])]
figure, axes = plt.subplots(len(queries), 7, figsize=(9, 1.5 * len(queries)), squeeze=False)
for row, query in zip(axes, queries, strict=True):
    wanted = labelled.labels[numbers[query]]
    for axis, number in zip(row, [numbers[query], *training[neighbours[query, :6]]], strict=True):
        image, label = labelled[int(number)]
        axis.imshow(image.permute(1, 2, 0).numpy())
        axis.set_title(labelled.classes[label], fontsize=8, color="black" if label == wanted else "red")
        axis.axis("off")
figure.suptitle("test tile, and its nearest training tiles (red: another class)", fontsize=9)
figure.tight_layout()
figure.savefig(OUT / "neighbours.png", dpi=120)
print(f"picture: {OUT / 'neighbours.png'}")
