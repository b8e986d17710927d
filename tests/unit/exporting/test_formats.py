"""ONNX and torch.export files beside the model folder: what they give, what is refused, and the upload."""

import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from test_model_folder import ARGUMENTS, RESULTS, RESULTS_RECORD, source

from dino_path.errors import CheckpointError, ConfigError, DataError, LaunchError
from dino_path.exporting import formats, hub
from dino_path.exporting.format_names import NAMES, read_formats, refuse_impossible
from dino_path.exporting.model_folder import ExportResult, ExportSource, export_model, write_card
from dino_path.features.extractor import load_extractor
from dino_path.model.backbone import build_backbone
from dino_path.model.locality import ATTENTION, TOKENIZATION
from dino_path.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def every_format(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return export_model(source(), tmp_path_factory.mktemp("export") / "tiny", formats=("timm", "onnx", "pt2"))


@pytest.mark.slow
def test_onnx_and_pt2_give_the_features_of_the_training_graph_for_any_batch(every_format: ExportResult) -> None:
    assert every_format.graphs.keys() == {"onnx", "pt2"}
    assert max(every_format.graphs.values()) <= 1e-4
    assert f"{NAMES['onnx']}: reloaded, largest relative difference" in every_format.text()
    names = sorted(file.name for file in every_format.folder.iterdir())
    assert names == ["README.md", "config.json", "model.onnx", "model.pt2", "model.safetensors"]

    import onnxruntime

    backbone = build_backbone("vit_tiny_patch16_224", ARGUMENTS).eval()
    backbone.load_state_dict(dict(source().state_dict))
    session = onnxruntime.InferenceSession(every_format.folder / "model.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(every_format.folder / "model.pt2").module()
    for batch_size in (1, 5):
        images = torch.randn(batch_size, 3, 40, 40, generator=torch.Generator().manual_seed(batch_size))
        with torch.inference_mode():
            expected = backbone(images).numpy()
            np.testing.assert_allclose(program(images).numpy(), expected, rtol=1e-4, atol=1e-5)
        (found,) = session.run(["features"], {"images": images.numpy()})
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_no_graph_names_a_source_file_or_folder_of_the_machine_that_wrote_it(every_format: ExportResult) -> None:
    contents = [(every_format.folder / "model.onnx").read_bytes()]
    with zipfile.ZipFile(every_format.folder / "model.pt2") as archive:
        contents += [archive.read(name) for name in archive.namelist()]
    for content in contents:
        assert b".py" not in content
        assert str(Path(torch.__file__).parents[1]).encode() not in content


@pytest.mark.slow
def test_the_card_tells_how_to_use_each_file_and_its_snippets_work(every_format: ExportResult) -> None:
    snippets = re.findall(r"```python\n(.*?)```", (every_format.folder / "README.md").read_text(), flags=re.DOTALL)
    by_file = {name: snippet for snippet in snippets for name in NAMES.values() if name in snippet}
    assert by_file.keys() == {*NAMES.values()}
    for name, snippet in by_file.items():
        images = torch.zeros(2, 3, 40, 40)
        names: dict[str, object] = {"images": images.numpy() if name.endswith("onnx") else images}
        exec(snippet.replace("FOLDER", str(every_format.folder)), names)
        assert names["features"].shape == (2, 24)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
@pytest.mark.parametrize("kind", ["cnn", "locality"])
def test_cnns_and_vits_that_timm_cannot_build_are_graphs_too(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    name, arguments = "resnet10t", {}
    if kind == "locality":
        name, arguments = "vit_tiny_patch16_224", {**ARGUMENTS, TOKENIZATION: True, ATTENTION: True}
    weights = build_backbone(name, arguments).state_dict()
    state = ExportSource(name, arguments, weights, Preprocessing((0.7, 0.5, 0.6), (0.2, 0.25, 0.3), 64, mpp=0.5))
    result = export_model(state, tmp_path / "model", formats=("timm", "onnx", "pt2"))
    assert result.reload.loader == ("timm" if kind == "cnn" else "dino_path")
    assert max(result.graphs.values()) <= 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
@pytest.mark.parametrize(("precision", "other_formats"), [("fp16", ("onnx", "pt2")), ("bf16", ("pt2",))])
def test_half_precision_halves_the_files_and_keeps_the_features_within_its_tolerance(
    every_format: ExportResult, tmp_path: Path, precision: formats.Precision, other_formats: tuple[formats.Format, ...]
) -> None:
    result = export_model(source(), tmp_path / "half", formats=("timm", *other_formats), precision=precision)
    differences = [result.reload.relative_difference, *result.graphs.values()]
    assert 0 < min(differences) <= max(differences) <= formats.TOLERANCES[precision]
    weights = "model.safetensors"
    assert (result.folder / weights).stat().st_size < 0.7 * (every_format.folder / weights).stat().st_size
    extractor = load_extractor(str(result.folder), device=torch.device("cpu"))
    assert {parameter.dtype for parameter in extractor.module.parameters()} == {torch.float32}


@pytest.mark.usefixtures("reload_here")
def test_a_graph_that_differs_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_write", lambda *arguments: None)
    monkeypatch.setattr(formats, "ask_fresh_process", lambda *arguments: np.zeros((3, 24)).tolist())
    with pytest.raises(CheckpointError, match=r"model\.pt2: .*features that differ by 1\.0e\+00"):
        export_model(source(), tmp_path / "model", formats=("timm", "pt2"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("reload_here")
def test_the_graph_of_an_older_model_does_not_stay_beside_a_new_one(tmp_path: Path) -> None:
    export_model(source(), tmp_path / "model")
    (tmp_path / "model" / "model.onnx").write_bytes(b"of the older model")
    result = export_model(source(seed=1), tmp_path / "model")
    assert not (tmp_path / "model" / "model.onnx").exists()
    assert "held another model (vit_tiny_patch16_224, weights after 1,200 steps): it was replaced" in result.text()
    assert "model.onnx of that model was deleted; --format onnx writes it of this one" in result.text()


@pytest.mark.usefixtures("reload_here")
def test_the_graph_of_the_same_weights_stays_when_others_are_written(tmp_path: Path) -> None:
    export_model(source(), tmp_path / "model")
    (tmp_path / "model" / "model.onnx").write_bytes(b"of these weights")
    result = export_model(replace(source(), license="mit"), tmp_path / "model", formats=("timm",))
    assert (tmp_path / "model" / "model.onnx").read_bytes() == b"of these weights"
    assert "model.onnx, of the same weights, stays" in result.text()
    assert "model.onnx" in (tmp_path / "model" / "README.md").read_text()
    larger = replace(source(), preprocessing=replace(source().preprocessing, input_px=64))
    other_size = export_model(larger, tmp_path / "model")
    assert "model.onnx of that model was deleted" in other_size.text()


@pytest.mark.usefixtures("reload_here")
def test_a_model_folder_of_others_is_not_replaced(tmp_path: Path) -> None:
    folder = export_model(source(), tmp_path / "model").folder
    config = json.loads((folder / "config.json").read_text())
    del config["dino_path"]  # as downloaded from the Hub
    (folder / "config.json").write_text(json.dumps(config))
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(DataError, match="that was not written by `dino-path export`"):
        export_model(source(seed=1), folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_formats_are_read_from_text() -> None:
    assert read_formats("timm") == ("timm",)
    assert read_formats(" ONNX,pt2,onnx") == ("timm", "onnx", "pt2")
    with pytest.raises(ConfigError, match=r"tflite is not a known format"):
        read_formats("tflite")


def test_what_cannot_be_written_here_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no bf16 convolution"):
        refuse_impossible(("timm", "onnx"), "bf16")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refuse_impossible(("timm", "pt2"), "bf16")
    with pytest.raises(ConfigError, match=r"onnx, onnxscript, onnxruntime cannot be imported"):
        refuse_impossible(("timm", "onnx"), "fp32")


@pytest.mark.usefixtures("reload_here")
def test_a_licence_stands_in_the_card_and_in_the_config(tmp_path: Path) -> None:
    folder = export_model(replace(source(), license="cc-by-nc-4.0"), tmp_path / "model").folder
    write_card(folder, [RESULTS.plain(RESULTS_RECORD)])
    card = ModelCard((folder / "README.md").read_text())
    assert (card.data.license, card.data.library_name) == ("cc-by-nc-4.0", "timm")
    assert "No licence was chosen" not in str(card)
    assert "`cc-by-nc-4.0`. The weights derive from the training slides" in card.text
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["license"] == "cc-by-nc-4.0"
    header = yaml.safe_load(str(card).split("---\n")[1])
    assert header["tags"] == ["histology", "pathology", "vision", "self-supervised", "dino"]


class Hub:
    """What the upload asks of the Hub's client, noted down."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.private: bool | None = None
        self.uploaded: set[str] = set()

    def create_repo(self, repository: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        assert (repo_type, exist_ok) == ("model", True)
        self.calls.append(("create", repository))
        self.private = private

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> str:
        self.calls.append(("upload", repo_id))
        self.uploaded = {file.name for file in folder_path.iterdir() if file.name in allow_patterns}
        return f"https://hub/{repo_id}/commit/1"


def test_the_hub_gets_the_models_files_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.json", "model.safetensors", "README.md", "model.onnx", "patients.csv"):
        (tmp_path / name).write_text("")
    client = Hub()
    monkeypatch.setattr(hub, "HfApi", lambda: client)
    assert hub.push_to_hub(tmp_path, "lab/vit") == "https://hub/lab/vit/commit/1"
    assert client.calls == [("create", "lab/vit"), ("upload", "lab/vit")]
    assert client.private is True
    assert client.uploaded == {"config.json", "model.safetensors", "README.md", "model.onnx"}


def test_a_hub_that_cannot_be_reached_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **keywords: object) -> None:
        raise hub.HTTP_ERROR("no route to the Hub")

    monkeypatch.setattr(HfApi, "create_repo", unreachable)
    with pytest.raises(LaunchError, match=r"the Hub did not accept it \(no route to the Hub\)"):
        hub.push_to_hub(tmp_path, "lab/vit")
