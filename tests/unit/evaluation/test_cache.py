import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from dino_path.config import EvaluationConfig
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.evaluation.protocols import cache as cache_module
from dino_path.evaluation.protocols.cache import FeatureCache, Images
from dino_path.features.extractor import extract_features, load_extractor

CPU = torch.device("cpu")
CONFIG = EvaluationConfig(batch_size=4)


class Dies(Exception):
    pass


class Mortal(torch.nn.Module):
    """A network that notes how many images it saw, and is killed when it has seen `until`."""

    def __init__(self, module, until):
        super().__init__()
        self.module, self.until, self.seen = module, until, 0

    def forward(self, images):
        self.seen += len(images)
        if self.seen > self.until:
            raise Dies
        return self.module(images)


@pytest.fixture
def images(class_folders, monkeypatch):
    """36 images in pieces of 10."""
    monkeypatch.setattr(cache_module, "PIECE", 10)
    return Images.of(load_labelled(str(class_folders), CONFIG))


@pytest.fixture
def extractor():
    return load_extractor("mean-colour", device=CPU)


@pytest.fixture
def cache(tmp_path):
    return FeatureCache.create(tmp_path / "out", CONFIG, CPU, 0)


def mortal(extractor, until=10**6):
    return dataclasses.replace(extractor, module=Mortal(extractor.module, until))


def test_pieces_and_batches_of_other_sizes_give_the_features_in_order(cache, extractor, images):
    features = cache.features(extractor, images)
    assert np.array_equal(features, extract_features(extractor, images.source, batch_size=36, device=CPU))
    assert [path.name for path in cache.folder.iterdir()] == [cache._file(extractor, images).name]


def test_a_killed_extraction_goes_on_after_its_last_whole_piece(cache, extractor, images):
    with pytest.raises(Dies):
        cache.features(mortal(extractor, until=25), images)  # batches of 4: two pieces of 10 were whole
    again = mortal(extractor)
    features = cache.features(again, images)
    assert again.module.seen == 16
    assert np.array_equal(features, extract_features(extractor, images.source, batch_size=36, device=CPU))


def test_what_a_killed_process_left_beside_complete_features_is_removed(cache, extractor, images):
    cache.features(extractor, images)
    file = cache._file(extractor, images)
    file.with_suffix("").mkdir()
    (file.with_suffix("") / "000000.npy").touch()
    file.with_suffix(".lock").touch()
    cache.features(mortal(extractor, until=0), images)
    assert [path.name for path in cache.folder.iterdir()] == [file.name]


def test_of_two_evaluations_at_once_that_share_the_folder_one_waits_for_the_features_of_the_other(
    cache, extractor, images
):
    both = [mortal(extractor) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = [*pool.map(lambda one: cache.features(one, images), both)]
    assert sorted(one.module.seen for one in both) == [0, 36]
    assert np.array_equal(*found)
    assert [path.name for path in cache.folder.iterdir()] == [cache._file(extractor, images).name]


def test_a_piece_that_was_damaged_is_made_again(cache, extractor, images):
    cache.extract_share(extractor, images, rank=0, size=1)
    piece = cache._piece(extractor, images, 1)
    piece.write_bytes(piece.read_bytes()[:100])
    again = mortal(extractor)
    cache.features(again, images)
    assert again.module.seen == 10


def test_processes_share_the_pieces_and_none_is_made_twice(cache, extractor, images):
    shares = [mortal(extractor) for _ in range(3)]
    for rank, share in enumerate(shares):
        cache.extract_share(share, images, rank=rank, size=3)
    assert [share.module.seen for share in shares] == [16, 10, 10]  # pieces 0 and 3 (of 6 images), 1, 2
    last = mortal(extractor, until=0)
    assert np.array_equal(
        cache.features(last, images), extract_features(extractor, images.source, batch_size=36, device=CPU)
    )


def test_other_images_weights_or_sizes_are_other_files(cache, extractor, images):
    names = {
        cache._file(extractor, images),
        cache._file(dataclasses.replace(extractor, digest="other"), images),
        cache._file(extractor, dataclasses.replace(images, content="other")),
        dataclasses.replace(cache, input_px=32)._file(extractor, images),
    }
    assert len(names) == 4
