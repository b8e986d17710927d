"""A trained backbone -> the model folder that timm loads, checked by loading it in a fresh process."""

from __future__ import annotations

import copy
import filecmp
import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dino_path.atomic import atomic_write, whole_folder
from dino_path.errors import CheckpointError
from dino_path.exporting.card import UNKNOWN_LICENSE, ModelFacts, model_card
from dino_path.exporting.format_names import NAMES, Format, Precision, refuse_impossible
from dino_path.exporting.formats import DTYPES, TOLERANCES, write_graph
from dino_path.exporting.overwriting import refuse_to_overwrite
from dino_path.exporting.reload import TOLERANCE, Loader, ReloadCheck, check_reload
from dino_path.model.backbone import Argument, backbone_arguments, build_backbone, count_parameters
from dino_path.model.folder import read_model_folder
from dino_path.model.folder_weights import build_untrained
from dino_path.model.locality import is_plain
from dino_path.model.names import architecture
from dino_path.model.tokens import features_text, kind_of, own_kind, timm_arguments, timm_lines, with_features
from dino_path.model.weights import load_weights
from dino_path.preprocessing import Preprocessing
from dino_path.records.feature_kinds import KIND_TITLES, FeatureKind
from dino_path.records.model_folder import (
    CARD_NAME,
    CONFIG_NAME,
    WEIGHTS_DIGEST,
    WEIGHTS_NAME,
    read_model_record,
    write_model_record,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportSource:
    """A backbone with everything that must be exported with it.

    Attributes:
        backbone: timm model name.
        arguments: further arguments of timm.create_model.
        state_dict: weights under timm's own key names.
        preprocessing: of the training tiles; `input_px` is not None.
        provenance: what made it, as plain values (network, steps, tiles seen, config digest, commit, versions).
        results: contents of the evaluations' `results.json`, for the card.
        features: kind of features that the folder gives; None: as timm pools them.
        license: the Hub's name of a licence, such as `cc-by-nc-4.0`.
        source: the file of the weights, for messages.
    """

    backbone: str
    arguments: Mapping[str, Argument]
    state_dict: Mapping[str, Tensor]
    preprocessing: Preprocessing
    provenance: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[Mapping[str, Any]] = ()
    features: FeatureKind | None = None
    license: str = UNKNOWN_LICENSE
    source: str = ""


@dataclass(frozen=True, repr=False)
class ExportResult:
    """The written folder and the result of the reload check.

    Attributes:
        features: their kind; None: as the network pools them.
        preprocessing: what the model expects of its images.
        graphs: largest relative difference of each graph that was written.
        notes: what became of a model that was there before, as sentences.
        uploaded: address of the commit on the Hub; None: it was not uploaded.
    """

    folder: Path
    num_features: int
    features: FeatureKind | None
    num_parameters: int
    reload: ReloadCheck
    preprocessing: Preprocessing
    graphs: Mapping[Format, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    uploaded: str | None = None

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def text(self) -> str:
        """For people: the model, what it expects, and a line for each graph and note."""
        lines = [
            f"{self.folder}: {self.num_parameters / 1e6:.2f} M parameters, {self.num_features} features"
            f" ({KIND_TITLES[self.features]}); reloaded by {self.reload.loader}, largest relative difference"
            f" {self.reload.relative_difference:.1e}",
            f"it expects {self.preprocessing.text()}",
        ]
        for kind, difference in self.graphs.items():
            lines.append(f"{self.folder / NAMES[kind]}: reloaded, largest relative difference {difference:.1e}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines if self.uploaded is None else [*lines, f"uploaded: {self.uploaded}"])


def export_model(
    state: ExportSource, out: Path, *, formats: tuple[Format, ...] = ("timm",), precision: Precision = "fp32"
) -> ExportResult:
    """Write `config.json`, `model.safetensors` and `README.md` to `out`, after a check by reloading in a fresh process.

    The same source gives the same bytes. An older export is replaced completely, with a message; its other files stay.
    Graphs that are not written now stay where the weights are the same, and are deleted where they are not.

    Args:
        formats: graphs to write beside them; see `formats`.
        precision: of the stored weights. timm and dino_path load them into fp32 networks all the same.

    Raises:
        CheckpointError: the weights do not fit the backbone, it has no features of the kind, or what was reloaded
            differs from it.
        ConfigError: a format cannot be written here.
        DataError: `out` exists and is not a model folder of ours.
    """
    refuse_to_overwrite(out)
    refuse_impossible(formats, precision)
    logger.info("building %s with its weights", state.backbone)
    backbone = _backbone_with_weights(state)
    by_timm = timm_arguments(backbone, state.features)
    if by_timm:
        state = replace(state, arguments={**state.arguments, **by_timm})
        backbone = _backbone_with_weights(state)
    extractor = with_features(backbone, state.features, name=state.source or state.backbone)
    with whole_folder(out, replaced=(CONFIG_NAME, WEIGHTS_NAME, CARD_NAME, *NAMES.values())) as building:
        digest = _write_weights(building / WEIGHTS_NAME, backbone, DTYPES[precision])
        _write_config(building / CONFIG_NAME, state, backbone, extractor, weights_sha256=digest)
        loader: Loader = "timm" if is_plain(state.arguments) else "dino_path"
        tolerance = TOLERANCE if precision == "fp32" else TOLERANCES[precision]
        logger.info("reloading it in a fresh process, which imports torch again")
        check = check_reload(building, extractor, state.preprocessing, loader=loader, tolerance=tolerance)
        input_px = state.preprocessing.input_px
        assert input_px is not None
        graphs: dict[Format, float] = {}
        for kind in formats:
            if kind == "timm":  # written above
                continue
            logger.info("writing %s, and reloading it in a fresh process", NAMES[kind])
            graphs[kind] = write_graph(kind, building, copy.deepcopy(extractor), input_px, precision=precision)
        notes = (*_keep_or_give_up_graphs(out, building, own_kind(backbone)), *_left_to_the_user(state, formats))
        write_card(building, state.results)
    return ExportResult(
        out,
        num_features=int(extractor.num_features),  # type: ignore[arg-type]
        features=kind_of(extractor),
        num_parameters=count_parameters(backbone),
        reload=check,
        preprocessing=state.preprocessing,
        graphs=graphs,
        notes=notes,
    )


def write_card(folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write the model card of an exported model folder, again when there are new evaluation results.

    Args:
        results: contents of the `results.json` that `dino-path evaluate table` writes.

    Raises:
        CheckpointError: not a model folder.
    """
    found, record = read_model_folder(folder), read_model_record(folder / CONFIG_NAME)
    backbone = with_features(build_untrained(found, seed=0), found.features, name=str(folder))
    facts = ModelFacts(
        architecture=found.architecture,
        model_args=found.arguments,
        features=features_text(backbone),
        num_features=int(backbone.num_features),  # type: ignore[arg-type]
        timm_lines=timm_lines(backbone, "transform(tile)[None]"),
        num_parameters=count_parameters(backbone),
        preprocessing=found.preprocessing,
        license=record.pretrained_cfg.license or UNKNOWN_LICENSE,
        graphs=tuple(name for name in NAMES.values() if (folder / name).exists()),
    )
    with atomic_write(folder / CARD_NAME) as stream:
        stream.write(model_card(facts, record.dino_path or {}, results))


def _write_config(
    file: Path, state: ExportSource, backbone: nn.Module, extractor: nn.Module, *, weights_sha256: str
) -> None:
    registered: Mapping[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    arguments: dict[str, Any] = {**backbone_arguments(state.backbone), **state.arguments}
    is_fixed = bool(registered.get("fixed_input_size")) and not arguments.get("dynamic_img_size", False)
    if is_fixed:
        arguments.setdefault("img_size", registered["input_size"][-1])
    write_model_record(
        file,
        architecture(state.backbone),
        arguments,
        state.preprocessing,
        num_features=int(extractor.num_features),  # type: ignore[arg-type]
        features=kind_of(extractor),
        tag="dino_path",
        timm_keys={
            "fixed_input_size": is_fixed,
            "license": state.license,
            **{name: registered.get(name) for name in ("pool_size", "first_conv", "classifier")},
        },
        made={**state.provenance, WEIGHTS_DIGEST: weights_sha256},
    )


def _left_to_the_user(state: ExportSource, formats: Sequence[Format]) -> tuple[str, ...]:
    """What is missing when the files are loaded without dino_path."""
    method = state.preprocessing.stain_normalisation
    if method is None:
        return ()
    return (
        f"{', '.join(formats)}: none of them contains the {method} stain normalisation of the training. dino_path's"
        f" commands apply it; elsewhere, apply it to every tile first ({CARD_NAME} says how)",
    )


def _backbone_with_weights(state: ExportSource) -> nn.Module:
    backbone = build_backbone(state.backbone, state.arguments)
    load_weights(backbone, state.state_dict, source=state.source or state.backbone)
    broken = [key for key, tensor in backbone.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            state.backbone,
            f"{len(broken)} of its tensors hold non-finite numbers (first: {broken[0]}).",
            "Finite weights are needed.",
            "Export an earlier checkpoint of the run.",
        )
    return backbone.float().eval()


def _write_weights(file: Path, backbone: nn.Module, dtype: torch.dtype) -> str:
    """Write them, and return their SHA-256."""
    weights = {
        key: tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous().clone()
        for key, tensor in backbone.state_dict().items()
    }
    content = save(weights, metadata={"format": "pt"})
    file.write_bytes(content)  # `save_file` leaves a file that only its owner may read
    return hashlib.sha256(content).hexdigest()


def _keep_or_give_up_graphs(out: Path, building: Path, own: FeatureKind | None) -> tuple[str, ...]:
    """Keep the graphs of an older export that have exactly these weights; report what is replaced or deleted.

    Args:
        own: kind of features that timm's own pooling gives, which folders of version 1 do not name.
    """
    if not (out / CONFIG_NAME).is_file():
        return ()
    left = [name for name in NAMES.values() if (out / name).is_file() and not (building / name).exists()]
    if _is_same_network(out, building, own):
        for name in left:
            shutil.copy2(out / name, building / name)
        return tuple(f"{out / name}, of the same weights, stays" for name in left)
    notes = [f"{out} held another model ({_described(out)}): it was replaced"]
    if left:
        formats = [kind for kind, name in NAMES.items() if name in left]
        notes.append(
            f"{', '.join(left)} of that model {'was' if len(left) == 1 else 'were'} deleted; --format"
            f" {','.join(formats)} writes {'it' if len(left) == 1 else 'them'} of this one"
        )
    return tuple(notes)


def _is_same_network(out: Path, building: Path, own: FeatureKind | None) -> bool:
    """Whether two folders hold the same weights and give the same features: graphs of one are graphs of the other."""
    old, new = (read_model_record(folder / CONFIG_NAME) for folder in (out, building))
    keys = ("architecture", "model_args", "num_features")
    if any(getattr(old, key) != getattr(new, key) for key in keys):
        return False
    if (old.features or own) != (new.features or own):
        return False
    if old.pretrained_cfg.input_size != new.pretrained_cfg.input_size:
        return False
    return filecmp.cmp(out / WEIGHTS_NAME, building / WEIGHTS_NAME, shallow=False)


def _described(folder: Path) -> str:
    """What a model of ours says it is, in a few words."""
    record = read_model_record(folder / CONFIG_NAME)
    provenance = record.dino_path or {}
    steps = provenance.get("steps")
    trained = provenance.get("file") or (
        "" if steps is None else f"{provenance.get('network', 'weights')} after {steps:,} steps"
    )
    return ", ".join(str(part) for part in (record.architecture, trained) if part)
