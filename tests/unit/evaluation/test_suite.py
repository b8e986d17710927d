"""A suite of small made-up sets: one table, features once, resumed after a kill, refused as a whole."""

import json
import logging
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dino_path.cli import app
from dino_path.config import BaselineConfig, EvaluationConfig, SuiteConfig
from dino_path.config.suite import PRIMARY_METRICS, TABLE_METRICS
from dino_path.errors import ConfigError, DataError
from dino_path.evaluation.baseline.training import train_baseline
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.evaluation.measures.metrics import METRICS
from dino_path.evaluation.protocols import cache, clustering
from dino_path.evaluation.results import suite as suite_module
from dino_path.evaluation.results.suite import compared, evaluate_suite
from dino_path.evaluation.results.suite_kinds import KINDS
from dino_path.evaluation.results.suite_plan import plan_suite, resolved
from dino_path.records.suite import num_open, read_suite
from dino_path.reporting.suite_page import write_suite_page

SPECS = ["untrained:timm:resnet10t", "colour-statistics", "mean-colour"]
EVALUATION = {"num_bootstrap": 100, "input_px": 32, "num_episodes": 100, "shots": [1]}
KNN = {"protocol": "knn"}


@pytest.fixture(autouse=True)
def quiet():
    """The command line configures logging; afterwards it is as it was."""
    logger = logging.getLogger("dino_path")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


@pytest.fixture
def root(class_folders, tmp_path):
    """`data`, three classes by colour, and `patients`, the same with four patients of each class."""
    shutil.copytree(class_folders, tmp_path / "patients")
    rows = [
        f"{image.relative_to(tmp_path / 'patients')},{image.parent.name}-{int(image.stem) % 4}"
        for image in sorted((tmp_path / "patients").rglob("*.png"))
    ]
    (tmp_path / "patients/groups.csv").write_text("path,patient_id\n" + "\n".join(rows) + "\n")
    return tmp_path


def suite_of(**sets):
    return SuiteConfig.model_validate({"title": "Made up", "evaluation": EVALUATION, "sets": sets})


ONE = {"data": "data", "protocols": ["knn", "fewshot"], "primary": KNN}
TWO = {
    "data": "patients",
    "about": "Four patients of each class.",
    "protocols": ["knn", "logistic", "fewshot", "fractions"],
    "primary": {"protocol": "logistic", "metric": "auroc"},
    "fractions": [1, 0.5],
    "evaluation": {"cross_validation": 2, "cross_validation_repeats": 2},
}


def run(suite, root, out, *, specs=SPECS, baselines=None, skip_missing=False):
    plan = plan_suite(suite, specs, root=root, baselines=baselines, out=out, skip_missing=skip_missing)
    return evaluate_suite(suite, plan, specs, device=torch.device("cpu"), out=out, num_workers=0)


def without_environment(file):
    return {key: value for key, value in json.loads(file.read_text()).items() if key != "environment"}


def test_one_call_gives_every_set_its_files_and_one_table_of_all(root, monkeypatch):
    extracted = []
    extract = cache.iterate_features
    monkeypatch.setattr(
        cache, "iterate_features", lambda one, *rest, **more: extracted.append(one.name) or extract(one, *rest, **more)
    )
    out = root / "out"
    record = run(suite_of(one=ONE, two=TWO), root, out)
    assert sorted(extracted) == sorted(2 * ["untrained-resnet10t", "colour-statistics", "mean-colour"])
    assert {file.name for file in (out / "one").iterdir() if file.suffix == ".json"} == {
        "results.json", "fewshot.json", "examples.json",
    }  # fmt: skip
    assert (out / "two/folds.csv").is_file()
    assert (out / "two/fractions.json").is_file()

    for one, protocol in ((record.sets[0], "knn"), (record.sets[1], "logistic")):
        rows = json.loads((out / one.name / "results.json").read_text())["rows"]
        alone = {row["model"]: row["metrics"][one.metric]["value"] for row in rows if row["protocol"] == protocol}
        assert {name: score.value for name, score in one.scores.items()} == alone
    for name, model in record.models.items():
        assert model.mean.value == pytest.approx(np.mean([one.scores[name].value for one in record.sets]))
    assert {name: model.role for name, model in record.models.items()} == {
        "untrained-resnet10t": "null", "colour-statistics": "null", "mean-colour": "null",
    }  # fmt: skip
    assert sum(model.rank.value for model in record.models.values()) == pytest.approx(6)
    assert "12 test patients" in record.sets[1].interval
    assert read_suite(out).sets == record.sets

    warnings = " ".join(record.warnings)
    assert "one: patients are unknown" in warnings
    assert "supervised ResNet-50 is missing for one, two" in warnings
    assert "`dino-path baseline --data data --out baselines/one " in warnings
    assert "evaluation.input_px=32" in warnings
    assert "colour" not in warnings
    text = (out / "suite.md").read_text()
    assert "| set | number | untrained-resnet10t (null) |" in text
    assert "the mean is over different metrics" in text
    page = write_suite_page(out).read_text()
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "Four patients of each class." in page
    assert str(root) not in page + text + (out / "suite.json").read_text()


def test_a_suite_that_was_killed_goes_on_and_leaves_the_same_files(root, monkeypatch):
    suite = suite_of(one=ONE, two={**TWO, "protocols": ["logistic"]})
    whole = root / "whole"
    run(suite, root, whole)
    evaluated = []
    real = suite_module._evaluate_set

    def killed_at_two(folder, planned, *rest):
        if planned.name == "two" and not evaluated.count("two"):
            evaluated.append("two")
            raise KeyboardInterrupt
        evaluated.append(planned.name)
        return real(folder, planned, *rest)

    monkeypatch.setattr(suite_module, "_evaluate_set", killed_at_two)
    with pytest.raises(KeyboardInterrupt):
        run(suite, root, root / "out")
    run(suite, root, root / "out")
    assert evaluated == ["one", "two", "two"]
    for name in ("suite.md", "suite.csv", "one/primary.npz", "two/primary.npz", "one/results.md", "one/fewshot.csv"):
        assert (whole / name).read_bytes() == (root / "out" / name).read_bytes(), name
    for name in ("suite.json", "one/results.json", "two/results.json"):
        assert without_environment(whole / name) == without_environment(root / "out" / name), name

    run(suite, root, root / "out", specs=[*SPECS, "untrained:timm:resnet18"])  # another model: both sets again
    (root / "out/one/primary.npz").write_bytes(b"PK damaged")
    run(suite, root, root / "out", specs=[*SPECS, "untrained:timm:resnet18"])
    kept = bytearray((root / "out/two/primary.npz").read_bytes())
    kept[len(kept) // 2] ^= 1
    (root / "out/two/primary.npz").write_bytes(kept)
    run(suite, root, root / "out", specs=[*SPECS, "untrained:timm:resnet18"])
    assert evaluated[3:] == ["one", "two", "one", "two"]
    (root / "data/sea/11.png").unlink()
    with pytest.raises(DataError, match=r"one: .*holds results that would be lost: they belong to other images"):
        run(suite, root, root / "out")


def test_the_supervised_network_of_each_set_stands_in_one_column(root):
    suite = suite_of(one={**ONE, "protocols": ["knn"]}, two={"data": "patients", "protocols": ["knn"], "primary": KNN})
    config = BaselineConfig(backbone="resnet10t", num_epochs=1, batch_size=8, input_px=32)
    for name in ("one", "two"):
        labelled = load_labelled(resolved(suite.sets[name].data, root)[0], suite.evaluation_of(name))
        train_baseline(
            labelled, config, num_bootstrap=100, seed=0, out=root / "baselines" / name, device=torch.device("cpu"),
            num_workers=0,
        )  # fmt: skip
        record = run(suite, root, root / "out", specs=["mean-colour"], baselines=root / "baselines")
        title = "supervised resnet10t (from scratch, undertrained)"
        assert record.models[title].role == "supervised"
        is_whole = name == "two"
        assert (record.models[title].rank is not None) == is_whole
        assert bool(record.differences) == is_whole
        assert record.sets[1].supervised_missing is None or not is_whole
    assert [(one.model, one.other) for one in record.differences] == [("mean-colour", title)]
    assert record.differences[0].num_above + record.differences[0].num_below <= 2
    near = {"data": "patients", "protocols": ["retrieval"], "primary": {"protocol": "retrieval", "metric": "mMV@1"}}
    with_near = suite_of(one={**ONE, "protocols": ["knn"]}, near=near)
    beside = run(with_near, root, root / "beside", specs=["mean-colour"], baselines=root / "baselines")
    assert beside.models[title].mean is None
    assert beside.differences[0].mean.value == pytest.approx(beside.sets[0].differences["mean-colour"][title].value)
    assert num_open(beside, beside.differences[0]) <= 1
    assert "| none |" in (root / "beside/suite.md").read_text()
    assert f"{title}: on 1 of 2 sets" in " ".join(beside.notes)
    other = suite_of(one={**ONE, "protocols": ["knn"], "evaluation": {"seed": 5}})
    with pytest.raises(DataError, match=r"one: .*tested on another split"):
        run(other, root, root / "other", specs=["mean-colour"], baselines=root / "baselines")


def test_all_that_is_wrong_is_refused_at_once_and_what_is_missing_can_be_left_out(root):
    (root / "one_class/A").mkdir(parents=True)
    shutil.copy(root / "data/sea/00.png", root / "one_class/A")
    sets = {"gone": {**ONE, "data": "mhist:nowhere"}, "bad": {**ONE, "data": "one_class"}, "good": ONE}
    with pytest.raises(DataError) as refusal:
        run(suite_of(**sets), root, root / "out")
    assert "2 of 3 sets cannot be evaluated" in refusal.value.found
    assert "- gone: mhist:nowhere does not exist" in refusal.value.found
    assert "it has only one class (A)" in refusal.value.found
    with pytest.raises(DataError, match="1 of 3 sets cannot be evaluated"):
        run(suite_of(**sets), root, root / "out", skip_missing=True)
    del sets["bad"]
    record = run(suite_of(**sets), root, root / "out", specs=["mean-colour"], skip_missing=True)
    assert record.left_out == {"gone": "mhist:nowhere does not exist"}
    assert "gone is left out: mhist:nowhere does not exist" in record.warnings
    with pytest.raises(DataError, match="none of its 1 sets exists"):
        run(suite_of(gone=sets["gone"]), root, root / "out", skip_missing=True)


@pytest.fixture
def centres(root, write_image):
    """Two classes of six patients each with both, from two centres."""
    rows = []
    for number in range(48):
        label, patient = number % 2, number // 8
        file = f"centres/{number}.png"
        write_image(root / file, number, (150 + 12 * label, 110 + 25 * (patient % 2), 150))
        rows.append(f"{number}.png,class{label},p{patient},centre{patient % 2}")
    (root / "centres/table.csv").write_text("\n".join(["path,label,patient_id,centre", *rows, ""]))
    return root


@pytest.fixture
def masks(root):
    """Halves of 32 px, red and blue: colour tells the mask."""
    (root / "masks").mkdir()
    for number in range(8):
        line = 16 if number % 2 else 8
        mask = np.zeros((32, 32), np.uint8)
        mask[:, line:] = 255
        pixels = np.random.default_rng(number).integers(90, 110, (32, 32, 3), np.uint8)
        pixels[..., 0] += mask // 3
        Image.fromarray(pixels).save(root / f"masks/{number}.png")
        Image.fromarray(mask).save(root / f"masks/{number}_mask.png")
    rows = [f"{number}.png,{number}_mask.png,{'test' if number > 4 else 'train'}" for number in range(8)]
    (root / "masks/table.csv").write_text("\n".join(["path,mask,split", *rows, ""]))
    return root


def test_retrieval_centres_shifts_and_masks_can_lead_a_set(centres, masks, monkeypatch):
    monkeypatch.setattr(clustering, "RUNS", 1)
    monkeypatch.setattr(clustering, "MAX_CLUSTERS", 3)
    table = "centres/table.csv"
    suite = suite_of(
        near={"data": table, "protocols": ["knn", "retrieval"],
              "primary": {"protocol": "retrieval", "metric": "mMV@5"}},
        new={"data": table, "protocols": ["robustness"],
             "primary": {"protocol": "robustness", "metric": "accuracy_new"}},
        shifted={"data": "patients", "protocols": ["robustness"], "evaluation": {"shifts": ["gamma"]},
                 "primary": {"protocol": "robustness", "metric": "accuracy_shifted"}},
        masks={"data": "masks/table.csv", "protocols": ["segmentation"],
               "primary": {"protocol": "segmentation", "metric": "dice"}},
    )  # fmt: skip
    specs, out = ["colour-statistics", "mean-colour"], centres / "out"
    record = run(suite, centres, out, specs=specs)
    scores = {one.name: {name: score.value for name, score in one.scores.items()} for one in record.sets}

    def rows(name):
        return json.loads((out / f"{name}.json").read_text())

    assert scores["near"] == {row["model"]: row["balanced"]["mMV@5"]["value"] for row in rows("near/retrieval")["rows"]}
    assert scores["new"] == {
        row["model"]: row["figures"]["accuracy_new"]["value"] for row in rows("new/robustness")["makers"][0]["rows"]
    }
    at_last = [row for row in rows("shifted/robustness")["shifts"]["summary"] if row["level"] == 3]
    assert scores["shifted"] == {row["model"]: row["balanced_accuracy"]["value"] for row in at_last}
    assert scores["masks"] == {
        row["model"]: row["overlap"]["mean"]["image"]["dice"]["value"]
        for row in rows("masks/segmentation")["rows"] if row["protocol"] == "linear"
    }  # fmt: skip
    assert scores["masks"]["mean-colour"] > 0.8
    assert (out / "near/results.json").is_file()
    assert record.sets[0].interval == rows("near/results")["rows"][0]["metrics"]["interval"]
    assert all(one.supervised_missing is None for one in record.sets)
    assert not any("supervised ResNet-50 is missing" in one for one in record.warnings)
    assert len(record.differences) == 1

    done = {file: file.stat().st_mtime_ns for file in out.glob("*/*.json")}
    assert run(suite, centres, out, specs=specs).sets == record.sets
    assert {file: file.stat().st_mtime_ns for file in out.glob("*/*.json")} == done
    text = write_suite_page(out).read_text()
    assert "mMV@5" in text
    mask = Image.open(masks / "masks/0_mask.png")
    mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(masks / "masks/0_mask.png")
    with pytest.raises(DataError, match=r"masks: .*they belong to other images, masks or another split"):
        run(suite, centres, out, specs=specs)


def test_a_metric_that_the_data_do_not_give_is_refused_before_anything_is_extracted(centres):
    def planned(data, metric):
        primary = {"protocol": "robustness", "metric": metric}
        suite = suite_of(one={"data": data, "protocols": ["robustness"], "primary": primary})
        plan_suite(suite, SPECS, root=centres, baselines=None, out=centres / "out", skip_missing=False)

    with pytest.raises(DataError, match=r"no two centres or scanners, and the primary metric is accuracy_new.*shifted"):
        planned("patients", "accuracy_new")
    with pytest.raises(DataError, match=r"the data name centres or scanners, .*Set primary.metric to accuracy_new"):
        planned("centres/table.csv", "accuracy_shifted")
    table = centres / "centres/table.csv"
    table.write_text(re.sub("(class)(.)(,p.,centre).", r"\1\2\3\2", table.read_text()))
    with pytest.raises(DataError, match="fewer than two classes are found in two centres"):
        planned("centres/table.csv", "accuracy_new")


def test_a_control_at_chance_is_named(root, write_image):
    for label in "ab":
        for number in range(10):
            write_image(root / "grey" / label / f"{number}.png", 2 * number + (label == "b"))
    record = run(suite_of(grey={"data": "grey", "protocols": ["knn"], "primary": KNN}), root, root / "out",
                 specs=["mean-colour"])  # fmt: skip
    assert any(
        "mean-colour by knn: no better than always predicting one class (0.500)" in one for one in record.warnings
    )


def test_mine_less_the_controls_and_less_mine_after_it():
    roles = {"a": "own", "untrained": "null", "b": "own", "imagenet": "other", "resnet": "supervised"}
    assert compared(roles) == [
        ("a", "untrained"), ("a", "b"), ("a", "imagenet"), ("a", "resnet"),
        ("b", "untrained"), ("b", "imagenet"), ("b", "resnet"),
    ]  # fmt: skip
    assert compared({"mean-colour": "null", "untrained": "null"}) == [("mean-colour", "untrained")]


def test_every_protocol_of_a_suite_has_its_line_in_each_table():
    assert set(KINDS) == set(PRIMARY_METRICS)
    assert TABLE_METRICS[0] == "balanced_accuracy"
    assert set(TABLE_METRICS) == {*METRICS} - {"ece", "brier"}, "of those a lower one is better"


def test_own_settings_of_a_set_stand_over_the_suites():
    suite = suite_of(one=ONE, two={**TWO, "evaluation": {"num_bootstrap": 200}})
    assert suite.evaluation_of("one") == EvaluationConfig.model_validate(EVALUATION)
    assert (suite.evaluation_of("two").num_bootstrap, suite.evaluation_of("two").input_px) == (200, 32)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("sets.one.protocol=knn", "unknown key 'sets.one.protocol'. Did you mean 'protocols'?"),
        ("sets.one.evaluation.knn_kk=3", "unknown key 'sets.one.evaluation.knn_kk'. Did you mean 'knn_k'?"),
        ("sets.one.protocols=[knn, knnn]", "'sets.one.protocols.1': Input should be 'knn'"),
        ("sets.one.protocols=[linear]", "its primary protocol knn is not among its protocols"),
        ("sets.one.protocols=[knn, knn]", "one is given twice"),
        ("sets.one.primary.metric=dice", "knn gives balanced_accuracy, accuracy, macro_f1, kappa, auroc, not dice"),
        ("sets.one.primary.protocol=fewshot", "fewshot gives no single number with an interval"),
        ("sets.one.protocols=[knn, segmentation]", "segmentation reads masks, the other protocols labels"),
        (
            "sets.one.primary={protocol: retrieval}",
            "retrieval gives mMV@1, mMV@3, mMV@5, mMV@10, not balanced_accuracy",
        ),
        ("sets.one.fractions=[1, 0]", "'sets.one.fractions.1': Input should be greater than 0"),
        ("evaluation.protocols=[knn]", "evaluation.protocols has no meaning in a suite"),
        ("sets.two.data=x", "missing key 'sets.two.protocols'"),
        ("title=null", "'title': Input should be a valid string"),
    ],
)
def test_a_wrong_key_is_named_by_its_place(root, override, part):
    (root / "suite.yaml").write_text(
        "title: T\nsets:\n  one: {data: data, protocols: [knn], primary: {protocol: knn}}\n"
    )
    answer = CliRunner().invoke(
        app, ["evaluate", "suite", "mean-colour", "--suite", str(root / "suite.yaml"), override]
    )
    assert isinstance(answer.exception, ConfigError)
    assert part in str(answer.exception)


def test_the_command_prints_the_table_or_json_and_writes_the_page(root):
    (root / "suite.yaml").write_text(
        "title: T\nsets:\n  one: {data: data, protocols: [knn], primary: {protocol: knn}}\n"
    )
    words = ["evaluate", "suite", "mean-colour", "colour-statistics", "--suite", str(root / "suite.yaml")]
    words += ["--root", str(root), "--out", str(root / "out"), "--workers", "0", "--device", "cpu"]
    words += ["evaluation.num_bootstrap=100"]
    answer = CliRunner().invoke(app, words, catch_exceptions=False)
    assert answer.exit_code == 0
    assert "mean rank" in answer.output
    assert f"page: {root / 'out/suite.html'}" in answer.output
    as_json = CliRunner().invoke(app, [*words, "--json", "--quiet"], catch_exceptions=False)
    assert json.loads(as_json.stdout)["sets"][0]["name"] == "one"
    with pytest.raises(ConfigError, match="no such file"):
        CliRunner().invoke(app, [*words[:-1], "--suite", "nowhere"], catch_exceptions=False)
