"""The picture of the running k-NN: the nearest by cosine, never the same patient, nothing that names anyone."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tiny import write_tiles

from dino_path.evaluation.protocols.running import running_test
from dino_path.evaluation.results import running_sheet
from dino_path.evaluation.results.running_sheet import knn_with_sheet
from dino_path.features.extractor import MeanColour
from dino_path.run import RunFolder
from dino_path.settings import load_config


def test_each_row_holds_the_nearest_of_other_patients_and_of_the_part_to_learn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiles(tmp_path / "tiles", 48)
    rows = [
        f"tiles/{number:03d}.png,{'AB'[number % 2]},p{number // 4}-{number % 2},{'train' if number < 36 else 'test'}"
        for number in range(48)
    ]
    (tmp_path / "data.csv").write_text("\n".join(["path,label,patient_id,split", *rows]))
    config = load_config(
        None, [f"monitor.knn_data={tmp_path / 'data.csv'}", "views.global_px=16", "evaluation.knn_k=5"]
    )
    test = running_test(config, device=torch.device("cpu"))
    drawn: list[tuple[int, bool | None, str]] = []
    draw = running_sheet.neighbour_card

    def draw_and_note(labelled: Any, image: int, colour: Any, is_right: bool | None, said: str, **more: Any) -> Any:
        assert more == {"is_named": False}
        drawn.append((image, is_right, said))
        return draw(labelled, image, colour, is_right, said, **more)

    monkeypatch.setattr(running_sheet, "neighbour_card", draw_and_note)
    run = RunFolder(tmp_path / "run")
    assert knn_with_sheet(run, test, MeanColour()) == test.knn(MeanColour())

    train_ND, query_QD = test.features(MeanColour())
    cosine = (query_QD / np.linalg.norm(query_QD, axis=1, keepdims=True)) @ (
        train_ND / np.linalg.norm(train_ND, axis=1, keepdims=True)
    ).T
    groups, labels = test.labelled.groups, test.labelled.labels
    assert groups is not None
    queries = [place for place, (_, is_right, _) in enumerate(drawn) if is_right is None]
    assert queries == [*range(0, 6 * len(queries), 6)]
    assert {labels[drawn[place][0]] for place in queries} == {0, 1}
    for place in queries:
        query = drawn[place][0]
        row = cosine[test.validation.tolist().index(query)]
        others = [(-row[at], image) for at, image in enumerate(test.fit) if groups[image] != groups[query]]
        expected = [(image, bool(labels[image] == labels[query]), f"{-less:.3f}") for less, image in sorted(others)[:5]]
        assert drawn[place + 1 : place + 6] == expected
    sheet = cv2.imread(str(run.neighbours_file))
    assert sheet is not None
    assert sheet.shape[1] < 1000
