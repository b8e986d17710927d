"""Each kind of file has a version: earlier ones are lifted, later ones are refused, and a change makes a new one."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from dino_path.errors import DinoPathError, NewerFormat, TileStoreError
from dino_path.records.baseline import BASELINE, POOLED_BASELINE, counted_from_1
from dino_path.records.best import BEST
from dino_path.records.embedding import EMBEDDING
from dino_path.records.environment import ENVIRONMENT
from dino_path.records.evaluation import FEWSHOT, FRACTIONS, RESULTS, version_2_from_1
from dino_path.records.examples import EXAMPLES
from dino_path.records.feature_map import FEATURE_MAP
from dino_path.records.format import Format, Record, Tree
from dino_path.records.guide import GUIDE, GUIDE_FEATURES
from dino_path.records.labelled import ScoreRecord
from dino_path.records.metrics import METRICS
from dino_path.records.model_folder import MODEL
from dino_path.records.pseudonyms import PSEUDONYMS
from dino_path.records.retrieval import RETRIEVAL
from dino_path.records.robustness import ROBUSTNESS
from dino_path.records.segmentation import SEGMENTATION
from dino_path.records.slide import SLIDE, SlideRecord, read_slide_record, write_slide_record
from dino_path.records.slide_evaluation import SLIDES_EVALUATION
from dino_path.records.start import START
from dino_path.records.store import EXPECTED, STORE, read_expected
from dino_path.records.suite import SUITE
from dino_path.records.verdict import VERDICT

FORMATS: list[Format[Any]] = [
    SLIDE, STORE, EXPECTED, RESULTS, FRACTIONS, FEWSHOT, BASELINE, POOLED_BASELINE, ENVIRONMENT, EMBEDDING,
    START, METRICS, MODEL, BEST, VERDICT, GUIDE, GUIDE_FEATURES, RETRIEVAL, ROBUSTNESS,
    FEATURE_MAP, SLIDES_EVALUATION, SEGMENTATION, EXAMPLES, SUITE, PSEUDONYMS,
]  # fmt: skip


class Cup(Record):
    """A format of this test."""

    colour: str
    volume_ml: int


def _in_ml(tree: Tree) -> Tree:
    return {"volume_ml": round(10 * tree["volume_cl"]), **{k: v for k, v in tree.items() if k != "volume_cl"}}


def _with_colour(tree: Tree) -> Tree:
    return {"colour": "white", **tree}


CUP = Format("cup", Cup, TileStoreError, "A cup is needed.", "Make one.", (_with_colour, _in_ml))


@pytest.mark.parametrize(
    "tree",
    [
        {"volume_cl": 20},
        {"format_version": 1, "volume_cl": 20},
        {"format_version": 2, "volume_cl": 20, "colour": "white"},
        {"format_version": 3, "volume_ml": 200, "colour": "white"},
    ],
)
def test_every_version_is_read_as_the_present_one_has_it(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "cup.json").write_text(json.dumps(tree))
    assert CUP.read(tmp_path / "cup.json") == Cup(colour="white", volume_ml=200)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"format_version": 3, "volume_ml": 200}', "colour: Field required"),
        ('{"format_version": 3, "volume_ml": 200, "colour": "white", "ear": 1}', "ear: Extra inputs"),
        ('{"format_version": 1}', "KeyError: 'volume_cl'"),
        ('{"format_version": "3"}', "format_version '3'"),
        ('{"format_version": 0}', "format_version 0"),
        ('{"format_version": true}', "format_version True"),
        ("[]", "no JSON object"),
        ("{", "Expecting property name"),
    ],
)
def test_what_is_no_such_file_is_refused_by_what_is_wrong(content: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "cup.json").write_text(content)
    with pytest.raises(TileStoreError) as refusal:
        CUP.read(tmp_path / "cup.json")
    assert f"is damaged ({found}" in refusal.value.found
    assert (refusal.value.needed, refusal.value.remedy) == ("A cup is needed.", "Make one.")


@pytest.mark.parametrize("each", FORMATS, ids=lambda one: one.name)
def test_a_file_of_a_newer_version_is_refused_by_name(each: Format[Any], tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(json.dumps({"format_version": each.version + 1, "invented": 1}))
    with pytest.raises(NewerFormat) as refusal:
        each.read(tmp_path / "file.json")
    assert refusal.value.found == f"was written by a newer dino_path ({each.name}, format {each.version + 1})."
    assert refusal.value.needed == f"This one reads formats up to {each.version}."
    with pytest.raises(DinoPathError) as missing:
        each.read(tmp_path / "nowhere.json")
    assert type(missing.value) is each.error


def test_a_slide_record_comes_back_as_it_went_and_without_a_version_is_of_the_first(tmp_path: Path) -> None:
    record = SlideRecord("a", "a.svs", "done", bounds_origin=(3, 4), pictured=(0, 0, 5, 6), flags=("odd",), num_tiles=7)
    write_slide_record(tmp_path / "a.json", record)
    written = json.loads((tmp_path / "a.json").read_text())
    assert (written.pop("format_version"), read_slide_record(tmp_path / "a.json")) == (2, record)
    of_version_1 = {name: value for name, value in written.items() if name not in ("centre", "scanner")}
    (tmp_path / "a.json").write_text(json.dumps(of_version_1))
    assert read_slide_record(tmp_path / "a.json") == record


def test_the_expected_slides_of_version_1_are_a_bare_table(tmp_path: Path) -> None:
    (tmp_path / "expected.json").write_text('{"a": "a.svs"}')
    assert read_expected(tmp_path / "expected.json") == {"a": "a.svs"}
    assert read_expected(tmp_path / "nowhere.json") == {}


def row_of_version_1(model: str, **differences: float) -> Tree:
    scores = {other: {"accuracy": {"value": by, "low": by - 0.1, "high": None}} for other, by in differences.items()}
    return {"model": model, "protocol": "knn", "metrics": {}, "differences": scores}


def test_differences_of_version_1_become_those_of_mine_to_the_others() -> None:
    """There every model but the first was compared with the first."""
    specs = {"mine": "model", "second": "other model", "untrained": "untrained:model"}
    rows = [
        row_of_version_1("mine", supervised=0.05),
        row_of_version_1("second", mine=-0.02),
        row_of_version_1("untrained", mine=-0.2),
        row_of_version_1("supervised"),
    ]
    tree = {
        "format": "dino_path evaluation, 1",
        "rows": rows,
        "models": {name: {"spec": specs[name]} for name in specs},
    }
    lifted = version_2_from_1("dino_path evaluation")(tree)
    assert lifted["format"] == "dino_path evaluation"
    turned = {
        row["model"]: {other: one["accuracy"] for other, one in row["differences"].items()} for row in lifted["rows"]
    }
    assert turned == {
        "mine": {
            "supervised": {"value": 0.05, "low": 0.05 - 0.1, "high": None},
            "second": {"value": 0.02, "low": None, "high": 0.02 + 0.1},
            "untrained": {"value": 0.2, "low": None, "high": 0.2 + 0.1},
        },
        "second": {}, "untrained": {}, "supervised": {},
    }  # fmt: skip
    assert rows[2]["differences"], "the tree that was given is as it was"


def test_no_difference_is_the_same_taken_the_other_way_round() -> None:
    assert str(ScoreRecord(value=0.0, low=0.0, high=0.1).negated()) == "value=0.0 low=-0.1 high=0.0"


def test_a_control_that_came_first_stays_what_mine_is_compared_with() -> None:
    rows = [row_of_version_1("untrained"), row_of_version_1("mine", untrained=0.2)]
    models = {"untrained": {"spec": "untrained:model"}, "mine": {"spec": "model"}}
    tree = {"format": "dino_path evaluation, 1", "rows": rows, "models": models}
    assert version_2_from_1("dino_path evaluation")(tree)["rows"] == rows


def test_epochs_of_a_baseline_count_from_1_whichever_way_version_1_counted() -> None:
    from_0, from_1 = ([{"epoch": number + start, "loss": 1.0} for number in range(2)] for start in (0, 1))
    assert counted_from_1(from_0, 0) == (from_1, 1)
    assert counted_from_1(from_1, 1) == (from_1, 1)


# A change of what a file holds is a new version with a lift, and then a new line here.
FIELDS = {
    "best checkpoint": (1, "62f727af"),
    "verdict": (1, "87f3f471"),
    "embedding": (2, "3b893a31"),
    "start of a run": (1, "8d64cea7"),
    "slide record": (2, "30a911a5"),
    "robustness": (1, "ee85780a"),
    "tile store": (2, "c42a2f80"),
    "list of expected slides": (2, "fd2c8f1d"),
    "retrieval": (1, "130db7c8"),
    "results": (4, "71c0e6d9"),
    "label fractions": (3, "0c1c51d0"),
    "few-shot episodes": (3, "f9c0397a"),
    "slide evaluation": (1, "0a0ebc44"),
    "baseline": (3, "6c5e2969"),
    "cross-validated baseline": (3, "ec3e95ac"),
    "metrics": (1, "5978ed96"),
    "config.json of a model folder": (2, "a9a6478a"),
    "environment": (1, "e7952035"),
    "guide.json": (1, "a62ca6e0"),
    "features.json": (1, "a1b84862"),
    "feature map": (1, "0b871a8d"),
    "segmentation": (1, "6eb463d4"),
    "examples": (1, "aeb033b0"),
    "suite": (1, "7bc3e4bb"),
    "note of pseudonyms": (1, "e1b1a693"),
}


def fields_of(each: Format[Any]) -> str:
    """A digest of the names of the schema's fields, those of its parts too."""
    schema = TypeAdapter(each.schema).json_schema()
    names = [name for part in (schema, *schema.get("$defs", {}).values()) for name in part.get("properties", {})]
    return hashlib.sha256(" ".join(sorted(names)).encode()).hexdigest()[:8]


@pytest.mark.parametrize("each", FORMATS, ids=lambda one: one.name)
def test_a_change_of_the_schema_is_a_change_of_the_version(each: Format[Any]) -> None:
    assert FIELDS[each.name] == (each.version, fields_of(each))


def test_a_slide_record_of_another_slide_is_refused_for_its_id_names_files(tmp_path: Path) -> None:
    file = tmp_path / "slides" / "a.json"
    write_slide_record(file, SlideRecord("../../ESCAPED", "a.svs", "empty", "no tissue"))
    with pytest.raises(TileStoreError, match="ESCAPED"):
        read_slide_record(file)
