"""The attention networks of all folds, saved as soon as they are finished, so that a killed evaluation resumes.

Shape suffixes: R repeats, N cases, M tested cases, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dino_path.atomic import atomic_write
from dino_path.config import CohortConfig
from dino_path.evaluation.cohorts.attention_mil import Answer, GatedAttention, answer, train_attention
from dino_path.evaluation.cohorts.cohort import Cohort, Source
from dino_path.evaluation.cohorts.folds import Fold, Folds
from dino_path.evaluation.cohorts.scan import Scan
from dino_path.evaluation.measures.confusion import Floats
from dino_path.features.bags import Features
from dino_path.progress import meter

VERSION = 1  # of what is computed; another one is computed again
SCORES = "test_scores"  # (M, C), beside the weights
CHECKSUM = "checksum"  # of all tensors, in the file's metadata


def safe_name(name: str) -> str:
    """The name as part of a path."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)


@dataclass(frozen=True)
class Networks:
    """The networks of one extractor, below `folder`: `repeat_<r>_fold_<f>.safetensors`, weights and test answers.

    Attributes:
        digest: of cases, folds, feature files and settings; a file of another is trained again.
    """

    folder: Path
    digest: str
    cohort: Cohort
    source: Source
    config: CohortConfig
    device: torch.device

    @classmethod
    def of(cls, out: Path, cohort: Cohort, source: Source, folds: Folds, config: CohortConfig, device: torch.device
           ) -> Networks:  # fmt: skip
        settings = {name: value for name, value in config.model_dump().items() if name.startswith("abmil")}
        content = repr([VERSION, cohort.digest(), folds.fold_of.tolist(), source.digest(), config.seed, settings])
        return cls(
            out / "networks" / safe_name(source.name),
            hashlib.sha256(content.encode()).hexdigest(),
            cohort,
            source,
            config,
            device,
        )

    def are_finished(self, folds: Folds) -> bool:
        """Whether nothing needs to be trained."""
        return all(self._scores(fold) is not None for fold in folds)

    def scores(self, folds: Folds, scan: Scan | None) -> Floats:
        """Class probabilities (R, N, C) of the tested cases; networks that are not there are trained.

        Args:
            scan: None: all are finished.
        """
        scores_RNC = np.zeros((folds.num_repeats, len(self.cohort.cases), len(self.cohort.classes)))
        with meter(f"attention-MIL on {self.source.name}", len(folds), "folds") as counter:
            for fold in folds:
                known = self._scores(fold)
                if known is None:
                    assert scan is not None
                    known = self._train(fold, scan)
                scores_RNC[fold.repeat - 1, fold.test] = known
                counter.advance()
        return scores_RNC

    def answers(self, folds: Folds, case: int) -> list[Answer]:
        """The predictions for a case by the networks that have not seen it, one for each repeat."""
        unseen = [fold for fold in folds if case in fold.test]
        return [answer(self._network(fold), self.source.pieces(case), self.device) for fold in unseen]

    def _file(self, fold: Fold) -> Path:
        return self.folder / f"repeat_{fold.repeat}_fold_{fold.fold}.safetensors"

    def _scores(self, fold: Fold) -> Floats | None:
        """Those of a finished network; None: it is missing, damaged, or of another digest."""
        try:
            with safe_open(self._file(fold), "np") as stored:
                told = stored.metadata() or {}
                if told.get("digest") != self.digest:
                    return None
                tensors: dict[str, Floats] = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        if CHECKSUM in told and told[CHECKSUM] != _checksum(tensors):  # earlier versions wrote none
            return None
        return tensors.get(SCORES)

    def _network(self, fold: Fold) -> GatedAttention:
        with safe_open(self._file(fold), "pt") as stored:
            state = {name: stored.get_tensor(name) for name in stored.keys() if name != SCORES}  # noqa: SIM118
        network = GatedAttention(self.source.num_features, len(self.cohort.classes), self.config)
        network.load_state_dict(state)
        return network.to(self.device).eval()

    def _train(self, fold: Fold, scan: Scan) -> Floats:
        network = train_attention(
            [scan.samples[case] for case in fold.train],
            self.cohort.labels[fold.train],
            scan.standard(fold.train),
            num_classes=len(self.cohort.classes),
            config=self.config,
            seed=[self.config.seed, fold.repeat, fold.fold],
            device=self.device,
        )
        scores_MC = np.stack(
            [answer(network, self._pieces(case, scan), self.device).probabilities for case in fold.test]
        )
        tensors = {**network.state_dict(), SCORES: torch.from_numpy(scores_MC)}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        checksum = _checksum({name: tensor.numpy() for name, tensor in tensors.items()})
        content = save(tensors, {"digest": self.digest, CHECKSUM: checksum})
        with atomic_write(self._file(fold), "wb") as stream:
            stream.write(content)
        return scores_MC

    def _pieces(self, case: int, scan: Scan) -> Iterator[Features]:
        """All tiles of a case: from memory where all are there, else from its files."""
        sample = scan.samples[case]
        return iter([sample]) if len(sample) == self.source.num_tiles[case] else self.source.pieces(case)


def _checksum(tensors: Mapping[str, Floats]) -> str:
    content = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        content.update(name.encode())
        content.update(np.ascontiguousarray(tensors[name]).tobytes())
    return content.hexdigest()
