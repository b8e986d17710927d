"""The report: one file that needs nothing else, from whole, unfinished and damaged run folders."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
import yaml
from made_up import score, write_evaluation, write_examples, write_fewshot, write_fractions, write_run, write_store
from made_up_map import made_up_map

from dino_path.config import FrozenProtocol
from dino_path.errors import CheckpointError, DataError, TileStoreError
from dino_path.records.best import BestRecord, write_best
from dino_path.records.labelled import ScoreRecord
from dino_path.records.slide import SlideRecord, write_slide_record
from dino_path.records.verdict import JudgedRecord, VerdictRecord, write_verdict
from dino_path.reporting import sources
from dino_path.reporting.evaluation_sections import PROTOCOL_TITLES
from dino_path.reporting.feature_map import write_page
from dino_path.reporting.images import inline_picture
from dino_path.reporting.report import write_report
from dino_path.reporting.sources import read_run
from dino_path.reporting.troubles import troubles_of
from dino_path.run import RunFolder

VOID = {"meta", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags close in order; keeps the text and every address."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.html = html
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "title", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def charts(self) -> list[dict[str, Any]]:
        """The numbers of all charts, in the order of their places."""
        [data] = re.findall(r'id="chart-data">(.*?)</script>', self.html, re.DOTALL)
        charts: list[dict[str, Any]] = json.loads(data)
        assert self.html.count('<div class="plot ') == len(charts)
        return charts

    def curves(self) -> list[dict[str, Any]]:
        return [chart for chart in self.charts if chart["kind"] == "lines"]


def report(*runs: Path, out: Path, **more: object) -> Page:
    return Page(write_report(runs, out / "report.html", **more).read_text(encoding="utf-8"))  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "vits16")


def test_the_page_loads_nothing_from_elsewhere(run: Path, tmp_path: Path) -> None:
    write_evaluation(run / "eval" / "results.json")
    page = report(run, out=tmp_path, store=write_store(tmp_path / "store"))
    assert page.addresses
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not {"link", "iframe", "object"}.intersection(page.tags)
    html = (tmp_path / "report.html").read_text()
    assert "url(" not in html
    assert "@import" not in html
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy.startswith("default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'sha256-")
    [script] = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    assert len(html) < 3_000_000


def test_maps_of_features_are_sections_whose_script_alone_is_allowed_too(run: Path, tmp_path: Path) -> None:
    maps = [write_page(made_up_map(seed=seed), tmp_path / f"map-{seed}.html") for seed in (0, 1)]
    page = report(run, out=tmp_path, maps=maps)
    assert {"#map-1", "#map-2"} <= set(page.addresses)
    assert page.tags.count("canvas") == 4
    html = (tmp_path / "report.html").read_text()
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(hashes) == 2
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert all(f"'sha256-{one}'" in policy for one in hashes)
    with pytest.raises(DataError, match="dino-path map"):
        report(run, out=tmp_path, maps=[tmp_path / "report.json"])


def test_it_tells_the_facts_of_the_run(run: Path, tmp_path: Path) -> None:
    page = report(run, out=tmp_path)
    for text in ("vit_small_patch16_224", "1,200 of 1,200 steps", "76,800 tiles seen", "Effective rank", "ln K"):
        assert text in page.text
    assert "unfinished" not in page.text
    assert "4f9a52e" in page.text
    assert "num_prototypes: 4096" in page.text


def test_every_field_of_the_metrics_has_its_chart(run: Path, tmp_path: Path) -> None:
    assert len(report(run, out=tmp_path).curves()) == 14


def test_an_evaluation_is_shown_with_intervals_beside_the_baseline(run: Path, tmp_path: Path) -> None:
    write_evaluation(run / "eval" / "results.json")
    page = report(run, out=tmp_path)
    assert (
        "On polyps (41 test patients), the frozen features of vits16 reach a balanced accuracy of 0.900 (0.870 to "
        "0.930, chance 0.500) by linear probe: not compared with the same network untrained ( untrained:MODEL ), "
        "not compared with colour alone ( mean-colour ), better than a network trained with these labels (+0.080)."
        in page.text
    )
    first, *charts = [chart for chart in page.charts if chart["kind"] == "intervals"]
    assert first["rows"][0]["label"] == "vits16"
    assert len(charts) == 2
    assert len({(*chart["axis"], chart["chance"]) for chart in (first, *charts)}) == 1, "one axis, with chance"
    assert "−0.110 (−0.140 to −0.080)" in page.text
    assert "0.710 0.680–0.740" in page.text
    assert "41 test patients" in page.text
    assert "features of untrained-vits16 reach" not in page.text, "comparisons make no headline"


def test_the_verdict_compares_with_untrained_colour_and_supervised_in_this_order(run: Path, tmp_path: Path) -> None:
    file = write_evaluation(run / "eval" / "results.json")
    record = json.loads(file.read_text())
    record["data"]["cross_validation"] = {"folds": 5, "repeats": 1, "splits": []}
    record["rows"][1]["differences"] |= {
        "mean-colour": {"balanced_accuracy": {"value": 0.24, "low": None, "high": None}},
        "colour-statistics": {"balanced_accuracy": {"value": 0.02, "low": -0.1, "high": 0.1}},
        "untrained-vits16": {"balanced_accuracy": {"value": -0.1, "low": -0.2, "high": -0.01}},
    }
    file.write_text(json.dumps(record))
    page = report(run, out=tmp_path)
    assert (
        "by linear probe: worse than the same network untrained (−0.100), no clear difference from colour alone "
        "(+0.020), better than a network trained with these labels (+0.080)." in page.text
    ), "of two controls of colour the stronger one counts"
    assert '<p class="verdict bad' in page.html


def test_the_linear_probe_speaks_where_the_neighbours_do_better(run: Path, tmp_path: Path) -> None:
    file = write_evaluation(run / "eval" / "results.json")
    record = json.loads(file.read_text())
    record["rows"][0]["metrics"]["balanced_accuracy"] = score(0.99)
    file.write_text(json.dumps(record))
    text = report(run, out=tmp_path).text
    assert "reach a balanced accuracy of 0.900 (0.870 to 0.930, chance 0.500) by linear probe" in text
    assert "reach a balanced accuracy of 0.990" not in text


def test_without_an_evaluation_the_first_sentence_says_how_to_make_one(run: Path, tmp_path: Path) -> None:
    assert "The quality of the features is unknown: no evaluation was found." in report(run, out=tmp_path).text


def test_a_missing_baseline_is_said_and_not_hidden(run: Path, tmp_path: Path) -> None:
    write_evaluation(run / "eval" / "results.json", has_baseline=False)
    page = report(run, out=tmp_path)
    assert "supervised ResNet-50 not measured" in page.text
    assert "minus the supervised baseline" not in page.text


def test_few_labels_have_a_chart_per_protocol_and_say_where_the_baseline_is_missing(run: Path, tmp_path: Path) -> None:
    write_fractions(run / "eval" / "fractions.json")
    page = report(run, out=tmp_path)
    assert "logistic regression as in UNI" in page.text
    assert "100 % 0.900 0.870–0.930 0.700 0.670–0.730 0.860 0.830–0.890" in page.text
    assert "10 % 0.720 0.690–0.750 0.520 0.490–0.550 missing, run `dino-path baseline --fraction 0.1`" in page.text
    assert "−0.200 (−0.230 to −0.170)" in page.text
    charts = [chart for chart in page.charts if chart["kind"] == "fractions"]
    assert len(charts) == 2
    for chart in charts:
        assert sum(point is not None for one in chart["series"] for point in one["points"]) == 5
        assert "vits16, 10 %: 0.720 (0.690 to 0.750)" in chart["summary"]  # two models twice, the baseline once


def test_few_shot_episodes_are_shown_beside_the_supervised_network(run: Path, tmp_path: Path) -> None:
    write_fewshot(run / "eval" / "fewshot.json")
    page = report(run, out=tmp_path)
    assert "labelled images per class 1 5 vits16 0.550 0.450–0.650 0.710 0.610–0.810" in page.text
    assert "all labels, supervised resnet50 (from scratch): balanced accuracy 0.820" in page.text


def test_what_features_tell_about_the_slide_is_shown_with_chance(run: Path, tmp_path: Path) -> None:
    write_evaluation(run / "eval" / "results.json")
    page = report(run, out=tmp_path)
    assert "patient found within its class (lower is better)" in page.text
    assert "vits16 0.310 0.280–0.340 0.620 0.590–0.650 chance 0.050 0.440" in page.text


def test_every_protocol_has_a_title() -> None:
    protocols = [name for part in get_args(FrozenProtocol) for name in (get_args(part) or (part,))]
    assert {*protocols, "end-to-end"} == {*PROTOCOL_TITLES}


def test_evaluations_in_subfolders_and_elsewhere_are_found(run: Path, tmp_path: Path) -> None:
    write_evaluation(run / "eval" / "crc" / "results.json")
    other = write_evaluation(tmp_path / "elsewhere" / "results.json")
    page = report(run, out=tmp_path, evaluations=[tmp_path / "elsewhere"])
    assert page.text.count("On polyps (41 test patients), the frozen features of vits16") == 1  # the same data: one

    tree = json.loads(other.read_text())
    tree["data"]["content_digest"] = "of other images"
    other.write_text(json.dumps(tree))
    page = report(run, out=tmp_path, evaluations=[tmp_path / "elsewhere"])
    for origin in ("eval/crc", f"{tmp_path.name}/elsewhere"):
        assert page.text.count(f"On polyps ({origin}) (41 test patients), the frozen features of vits16") == 1
    with pytest.raises(DataError, match="no nowhere here"):
        report(run, out=tmp_path, evaluations=[tmp_path / "nowhere"])


def test_slides_are_listed_with_the_troubled_ones_first_and_without_paths_or_patients(
    run: Path, tmp_path: Path
) -> None:
    page = report(run, out=tmp_path, store=write_store(tmp_path / "store"))
    order = [page.text.index(f"{slide} {status}") for slide, status in
             (("case-090", "failed"), ("case-091", "empty"), ("case-001", "done"), ("case-000", "done"))]  # fmt: skip
    assert order == sorted(order)
    assert "no mpp in the file" in page.text
    assert "1,203 tiles of 256 px at 0.5 µm/px" in page.text
    html = (tmp_path / "report.html").read_text()
    assert "/secret/place" not in html
    assert "P-77" not in html


def test_runs_are_drawn_together_and_differing_settings_are_marked(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "lower", seed=1, momentum=0.99)
    page = report(run, other, out=tmp_path)
    assert page.text.count("vits16") > 2
    html = (tmp_path / "report.html").read_text()
    [row] = re.findall(r'<tr class="differs"><td title="([^"]*)">', html)
    assert row == "training.momentum"
    assert [len(chart["lines"]) for chart in page.curves()] == [2] * 14


def test_a_run_with_settings_of_an_earlier_version_shows_them_and_ln_k_as_before(run: Path, tmp_path: Path) -> None:
    pages = []
    for number in range(2):
        if number == 1:
            tree = yaml.safe_load((run / "config.yaml").read_text())
            tree["model"]["num_prototypes"] = tree.pop("objective")["dino"]["num_prototypes"]
            (run / "config.yaml").write_text(yaml.safe_dump(tree))
        pages.append(report(run, out=tmp_path))
    rows = [re.findall(r'<td title="objective.dino.num_prototypes">.*?</tr>', each.html, re.DOTALL) for each in pages]
    assert "4096" in rows[0][0]
    assert [chart["reference"]["label"] for chart in pages[0].curves() if chart["reference"]] == ["ln K"] * 2
    assert (rows[0], pages[0].charts) == (rows[1], pages[1].charts)


def test_numbers_that_have_no_words_here_have_a_chart_each(run: Path, tmp_path: Path) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record |= {"toy_loss": 0.3, "grad_norm_backbone": 1.0, "epoch": 0.1, "eta_s": 5.0, "loss_minus_ln_k": -1.0}
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    page = report(run, out=tmp_path)
    assert "Toy loss" in page.text
    assert len(page.curves()) == 15


def test_two_runs_of_one_name_get_their_parents_name_too(tmp_path: Path) -> None:
    page = report(write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run"), out=tmp_path)
    assert "a/run" in page.text
    assert "b/run" in page.text


def test_an_unfinished_run_without_some_numbers_is_shown_as_far_as_it_goes(run: Path, tmp_path: Path) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:50]]
    for record in records:
        del record["prototypes_used"]
        record |= {"rankme": None, "kl": None}
    records[-1]["collapse"] = "uniform"
    records[-1]["num_skipped"] = 2
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + '\n{"step": 51, "lo')
    (run / "environment.json").unlink()
    page = report(run, out=tmp_path)
    assert "500 of 1,200 steps, unfinished" in page.text
    assert len(page.curves()) == 11 + 3, "and three that show the collapse"
    assert (
        "vits16: the teacher collapsed (uniform) The monitor named it first at step 499, last at step 499" in page.text
    )
    assert "2 step(s) had a non-finite loss" in page.text


def test_a_run_before_its_first_record_can_be_reported(run: Path, tmp_path: Path) -> None:
    (run / "metrics.jsonl").unlink()
    assert "0 of 1,200 steps, unfinished" in report(run, out=tmp_path).text


def test_what_cannot_be_read_is_said_on_the_page(run: Path, tmp_path: Path) -> None:
    (run / "figures" / "broken.png").write_bytes(b"no picture")
    (run / "config.yaml").write_text("a: [")
    (run / "environment.json").write_text("{")
    (run / "eval").mkdir()
    (run / "eval" / "results.json").write_text("{}")
    (run / "metrics.jsonl").write_text("not json\n" + (run / "metrics.jsonl").read_text())
    page = report(run, out=tmp_path)
    for text in (
        "figures/broken.png cannot be read", "config.yaml cannot", "environment.json cannot be used: it is damaged",
        "eval/results.json: is damaged", "metrics.jsonl cannot be read completely: line 1 is not JSON",
    ):  # fmt: skip
        assert text in page.text
    assert len(page.curves()) == 14, "the other lines are drawn"


def test_names_from_files_cannot_bring_markup(run: Path, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store")
    name = "<img onerror=alert(1) src=x>"
    write_slide_record(
        store / "slides" / f"{name}.json", SlideRecord(name, "bad.svs", "failed", "<script>alert(1)</script>")
    )
    page = report(run, out=tmp_path, store=store, title="<b>title</b>")
    assert page.tags.count("script") == 4, "the page's own"
    assert "<script>alert(1)</script>" in page.text


def test_captions_come_from_text_files_or_file_names(run: Path, tmp_path: Path) -> None:
    (run / "figures" / "views.jpg").write_bytes(
        cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8))[1].tobytes()
    )
    (run / "figures" / "views.txt").write_text("Two global and eight local views of six tiles.\n")
    page = report(run, out=tmp_path)
    assert "attention of a gland" in page.text
    assert "Two global and eight local views of six tiles." in page.text


def test_pictures_become_smaller_and_lose_transparency(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    clear = np.zeros((500, 2000, 4), np.uint8)
    cv2.imwrite(str(file), clear)
    picture = inline_picture(file, caption="", max_edge_px=800)
    assert picture is not None
    assert (picture.width, picture.height) == (800, 200)
    encoded = np.frombuffer(base64.b64decode(picture.address.split(",")[1]), np.uint8)
    assert (cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) == 255).all()


def test_a_model_folder_is_described_with_its_resolution(run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    preprocessing = {"input_size": [3, 224, 224], "mean": [0.7, 0.5, 0.6], "std": [0.2, 0.2, 0.2]}
    config = {"architecture": "vit_small_patch16_224", "num_features": 384, "mpp": 0.5, "pretrained_cfg": preprocessing}
    (model / "config.json").write_text(json.dumps(config))
    (model / "model.safetensors").write_bytes(bytes(2_000_000))
    page = report(run, out=tmp_path, models=[model])
    assert "weights 2.0 MB" in page.text
    assert "It expects tiles at 0.5 µm/px, resized to 224 px (the original edge is not recorded" in page.text
    (model / "config.json").write_text(json.dumps({**config, "tile_px": 448}))
    page = report(run, out=tmp_path, models=[model])
    assert "It expects tiles of 448 px at 0.5 µm/px, resized to 224 px: the network sees 1 µm/px" in page.text
    with pytest.raises(CheckpointError, match="model folder"):
        report(run, out=tmp_path, models=[tmp_path])


def test_folders_that_are_no_runs_or_stores_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        report(tmp_path / "nothing", out=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"neither config\.yaml nor metrics"):
        report(tmp_path / "empty", out=tmp_path)
    with pytest.raises(TileStoreError):
        report(run, out=tmp_path, store=tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no run folder was given"):
        report(out=tmp_path)


def test_the_same_files_give_the_same_page(run: Path, tmp_path: Path) -> None:
    write_evaluation(run / "eval" / "results.json")
    report(run, out=tmp_path / "one")
    report(run, out=tmp_path / "two")
    assert (tmp_path / "one" / "report.html").read_bytes() == (tmp_path / "two" / "report.html").read_bytes()


def test_the_same_data_in_two_runs_are_one_section_and_other_data_of_that_name_another(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("first", "second")]
    for run, digest, by in ((runs[0], "a", 0.0), (runs[1], "a", 0.02)):
        file = write_evaluation(run / "eval" / "results.json")
        record = json.loads(file.read_text())
        record["data"] |= {"content_digest": digest, "split_digest": "s"}
        record["rows"][1]["metrics"]["balanced_accuracy"]["value"] += by
        file.write_text(json.dumps(record))
    other = json.loads((runs[1] / "eval" / "results.json").read_text())
    other["data"]["content_digest"] = "b"
    (runs[1] / "eval" / "other").mkdir()
    (runs[1] / "eval" / "other" / "results.json").write_text(json.dumps(other))
    page = report(*runs, out=tmp_path)
    assert page.text.count("Balanced accuracy, linear probe") == 2, "one axis for both runs, one for the other data"
    for text in ("On polyps (first/eval) (41 test patients), the frozen features of vits16 (first/eval) reach",
                 "the frozen features of vits16 (second/eval) reach a balanced accuracy of 0.920",
                 "On polyps (eval/other) (41 test patients), the frozen features of vits16 reach",
                 "None of 3 results is better than both the same network untrained and colour alone."):  # fmt: skip
        assert text in page.text
    table = re.findall(r"<tr class=\"other\"><td>mean-colour</td>", page.html)
    assert len(table) == 2, "what both found alike stands once in each table"


@pytest.mark.parametrize("share_of_ln_k", [1.0, 0.97])
def test_a_run_that_learned_nothing_is_said_first_with_its_advice(
    run: Path, tmp_path: Path, share_of_ln_k: float
) -> None:
    write_evaluation(run / "eval" / "results.json")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    flat = [{**line, "loss": share_of_ln_k * float(np.log(4096))} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in flat))
    (run / "log.txt").write_text(2 * "2026-01-01 INFO advice: 4096 prototypes are many for 60 tiles\n")
    page = report(run, out=tmp_path)
    assert page.text.count("advice at its start: 4096 prototypes are many for 60 tiles") == 1
    sentence = "vits16 has learned nothing: at its end DINO's loss is 8.318, which is ln K (8.318) within 1 %"
    assert (sentence in page.text) == (share_of_ln_k == 1)
    if share_of_ln_k == 1:
        assert page.text.index(sentence) < page.text.index("reach a balanced accuracy")
        assert "Advised at its start: 4096 prototypes are many for 60 tiles." in page.text


@pytest.mark.parametrize(("gain", "is_said"), [(0.01, True), (0.2, False), (-0.2, True)])
def test_features_as_good_as_untrained_are_said_first(run: Path, tmp_path: Path, gain: float, is_said: bool) -> None:
    file = write_evaluation(run / "eval" / "results.json")
    record = json.loads(file.read_text())
    record["rows"][1]["differences"]["untrained-vits16"] = {"balanced_accuracy": score(gain)}
    file.write_text(json.dumps(record))
    text = report(run, out=tmp_path).text
    sentence = "polyps: in this test, training did not improve vits16: it is not better than untrained-vits16"
    assert (sentence in text) == is_said
    if is_said:
        assert text.index(sentence) < text.index("reach a balanced accuracy")


def test_the_best_checkpoint_and_the_verdict_on_a_run_are_shown(tmp_path: Path) -> None:
    run = RunFolder(write_run(tmp_path / "run"))
    write_best(run, BestRecord(measure="knn_accuracy", data="x", step=400, value=0.83, last_step=1200,
                               num_without_gain=2))  # fmt: skip
    accuracy = {"knn": ScoreRecord(value=0.8, low=0.75, high=0.85), "linear": ScoreRecord(value=0.9)}
    gain = {"knn": ScoreRecord(value=0.03, low=0.01, high=0.05), "linear": ScoreRecord(value=0.0)}
    rows = (
        JudgedRecord(name="start", step=0, accuracy=accuracy),
        JudgedRecord(name="end", step=1200, accuracy=accuracy, minus_start=gain),
    )
    started = VerdictRecord(
        data="polyps", digest="x", num_neighbours=80, num_images=20, start_step=0,
        start={"knn": (0,) * 20, "linear": (1,) * 20},
    )  # fmt: skip
    write_verdict(run, started)
    assert "against its start" not in report(run.path, out=tmp_path).text, "it has not ended"
    write_verdict(run, started.model_copy(update={"rows": rows, "interval": "over images", "sentence": "It gains."}))
    text = report(run.path, out=tmp_path).text
    for shown in (
        "400 step of the best checkpoint (k-NN 0.830)", "run: It gains.", "run against its start",
        "0.800 (0.750-0.850)", "+0.030 (+0.010 to +0.050)", "20 validation images of polyps",
    ):  # fmt: skip
        assert shown in text
    stopped = RunFolder(write_run(tmp_path / "stopped", num_steps=9000))
    config = yaml.safe_load(stopped.config_file.read_text())
    stopped.config_file.write_text(yaml.safe_dump({**config, "monitor": {**config["monitor"], "stop_after": 2}}))
    assert "of 9,000 steps, unfinished" in report(stopped.path, out=tmp_path).text
    stopped.best_file.write_bytes(run.best_file.read_bytes())
    assert "of 9,000 steps, ended without a gain" in report(stopped.path, out=tmp_path).text
    run.verdict_file.write_text("{")
    assert "verdict.json cannot be used" in report(run.path, out=tmp_path).text


def test_what_went_wrong_comes_with_its_remedy_its_curves_and_the_failed_slides(run: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"data_wait": 0.4, "num_unreadable": 1, "collapse": "constant" if line["step"] > 900 else None}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "log.txt").write_text(
        "2026-01-01 10:00:00 INFO vit: 2.72 M parameters, 1024 prototypes; bf16 on cuda, 8 process(es)\n"
        "2026-01-01 10:00:01 WARNING step 909: the teacher has collapsed (constant). Try this: a lower temperature.\n"
        "2026-01-01 12:00:01 INFO step 1200/1200  100 %\n"
    )
    page = report(run, out=tmp_path, store=write_store(tmp_path / "store"))
    for text in (
        "What went wrong: vits16: the teacher collapsed (constant) ;", "Try this: a lower temperature.",
        "first at step 909, last at step 1,199, the current step.", "120 times another tile replaced",
        "waited for tiles for 40% of the time", "1 of 5 slides gave no tiles.", "case-090 no mpp in the file",
        "Steps from 2026-01-01 10:00:01 to 2026-01-01 12:00:01. bf16 on cuda, 8 process(es).",
    ):  # fmt: skip
        assert text in page.text
    shown = [chart["title"] for chart in page.curves()[:6]]
    assert shown == [
        "loss",
        "teacher entropy",
        "kl",
        "feature std",
        "rankme",
        "Share of the time spent waiting for tiles",
    ]


def test_the_tiles_of_skipped_steps_are_shown_from_the_store(run: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) | {"num_skipped": 1} for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "log.txt, which names their tiles, is missing" in report(run, out=tmp_path).text
    (run / "log.txt").write_text(
        "2026-01-01 10:00:00 ERROR step 7: the loss is not finite; nothing was updated. Tiles of this rank:"
        " [2, 0, 99]\n"
    )
    text = report(run, out=tmp_path).text
    assert "Steps 7; their 3 tiles are numbers 2, 0, 99 of the store. --store STORE shows the tiles." in text
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        cv2.imwrite(str(images / f"{number}.png"), np.full((64, 64, 3), 60 * number, np.uint8))
    [trouble] = troubles_of([read_run(run, name="run")], None, images)
    assert [picture.caption for picture in trouble.pictures] == ["2: 2.png", "0: 0.png"]
    [trouble] = troubles_of([read_run(run, name="run")], None, tmp_path / "nothing")
    assert "The tiles cannot be shown: " in trouble.sentences[-1]


def test_examples_are_shown_and_without_them_the_command_that_makes_them(run: Path, tmp_path: Path) -> None:
    write_evaluation(run / "eval" / "results.json")
    assert "dino-path evaluate table MODEL --data DATA" in report(run, out=tmp_path).text
    write_examples(run / "eval")
    page = report(run, out=tmp_path)
    assert "evaluate table MODEL" not in page.text
    for text in (
        "all from other slides. 1 of 2 neighbours are of the query's class", "✗ tumour 0.500 slide B",
        "normal 0.750 slide C", "called tumour 0.91", "slide A 3 0.333 0.667", "Not shown: the model has no [CLS].",
    ):  # fmt: skip
        assert text in page.text
    assert 'alt="Neighbour 2: tumour, b.png"' in page.html
    (run / "eval" / "examples.json").write_text("{")
    assert "eval/results.json: is damaged" in report(run, out=tmp_path).text


def test_the_page_names_the_machine_and_its_folders_only_where_that_is_asked(run: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings |= {"store": "/SECRET/tiles", "out": "/SECRET/a run", "cluster": {"account": "SECRET"}}
    settings["model"]["weights"] = "../SECRET/weights.pth"
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    environment = json.loads((run / "environment.json").read_text())
    environment |= {"command": ["/SECRET/dino-path", "pretrain"], "platform": "Linux-5.15-SECRET"}
    (run / "environment.json").write_text(json.dumps(environment))
    with (run / "log.txt").open("a") as log:
        log.write("2026-11-30 10:00:00 INFO advice: put '/SECRET folder/tiles' on a fast disk\n")
    assert "SECRET" not in (shared := report(run, out=tmp_path)).html
    assert "store: tiles" in shared.text
    asked = report(run, out=tmp_path, shows_machine=True).text
    for text in ("/SECRET/tiles", "/SECRET/dino-path pretrain", "Linux-5.15-SECRET", "account: SECRET"):
        assert text in asked


def test_examples_of_another_split_are_not_shown(run: Path, tmp_path: Path) -> None:
    write_evaluation(run / "eval" / "results.json")
    write_examples(run / "eval", split_digest="another")
    assert "are missing: an earlier dino_path evaluated polyps" in report(run, out=tmp_path).text


def test_pictures_of_many_slides_become_smaller_and_the_rest_is_counted(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "OVERLAY_EDGES_PX", (500, 250))
    monkeypatch.setattr(sources, "OVERLAY_BYTES", 2 * 250 * 250)
    monkeypatch.setattr(sources, "BYTES_PER_PX", 1.0)
    page = report(run, out=tmp_path, store=write_store(tmp_path / "store"))
    pictures = re.findall(r'alt="Tissue contour and kept tiles of (case-\d+)[^>]*width="(\d+)"', page.html)
    assert pictures == [("case-001", "250"), ("case-000", "250")], "flagged ones first"
    assert "1 more pictures would make this page too large" in page.text
