"""Kinds of hostile input, for `fuzz.py`: each draws one from its random numbers, runs what reads it, judges what comes.

A kind returns `right` or `refused`; anything else it meets is raised as `Find`, or is an exception that nobody caught.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dino_path.errors import DinoPathError

if TYPE_CHECKING:
    from fuzz_corpus import Corpus

Told = Literal["right", "refused"]
LONGEST_MESSAGE = 5000  # characters on the screen
REFUSAL = re.compile(r"^\w+: .+\n  .+\n  .+", re.MULTILINE | re.DOTALL)  # thing and found, needed, what to do
ROOT = Path(__file__).parents[2]


class Find(Exception):
    """Something that should not be: what, and all that was seen."""

    def __init__(self, told: str, details: str = "") -> None:
        self.told, self.details = told, details
        super().__init__(told)


@dataclass
class Input:
    """One input.

    Attributes:
        folder: empty, for what the input needs.
        note: what was damaged and what was called, for whoever repeats it.
    """

    rng: random.Random
    folder: Path
    corpus: Corpus
    note: str = ""


@dataclass(frozen=True)
class Kind:
    """`weight`: its share of the inputs."""

    weight: float
    run: Callable[[Input], Told] = field(repr=False)


WIDE = ("/", ".", "..", "../../..", "~root", "", " ")  # folders above the input's own

# --- what is hostile -------------------------------------------------------------------------------------------------

TEXTS = (
    "", " ", "~", "null", "true", "no", "-", "-1", "0", "-0.0", "1", "2", "3", "7", "0.5", "1.5", "1e-320", "1e308",
    "1e400", "-1e400", ".nan", "nan", ".inf", "-.inf", "NaN", "Infinity", "010", "0x10", "0b2", "0o9", "1_000", "1e5",
    str(2**31), str(2**63), str(2**64), str(10**30), "9" * 5000, "-" + "9" * 5000, "0." + "3" * 5000, "a" * 300,
    "a" * 5000, "24:00:00", "2026-01-31", "2026-99-99", "500 steps", "10 %", "-10 %", "1e400 tiles", "nan epochs",
    "101 %", "inf steps", "9" * 400 + " steps", "[]", "{}", "[1]", "[1, 2]", "[0.5, 0.1]", "[-1, 1]", "[a, b]",
    "[[1]]", "{a: 1}", "{1: 2}", "{null: 1}", "{[1]: 2}", "[" * 2000, "{a: " * 2000, "[" * 30 + "]" * 30,
    "!!int x", "!!int ''", "!!float x", "!!bool x", "!!timestamp x", "!!binary x", "!!set {a}", "!!omap [a]",
    "!!pairs [1]", "!!python/object/apply:os.system [x]", "!!map [1]", "!!seq {a: 1}", "!!str [1]", "!!null x", "!x y",
    "&a 1", "*a", "<<: 3", "{<<: 3}", "? a\n: b", "%", "@", "`", "'", '"', "|", "> \n x", "- - - -", "=x", "\t", "\x00",
    "\x1b[2J", "\udcff", "\u202eevil", "é" * 200, "../../..", "/dev/null", "/", ".", "/proc/self/mem", "~root", "$HOME",
    "auto", "cpu", "cuda", "cuda:99", "sgd", "timm:", "timm:nothing", "untrained:", "mean-colour", "store:", "pcam:",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 0.5, -0.0, 2**31, 2**63, 10**30, 10**400, 1e308, float("nan"), float("inf"), "", " ",
    "a", "a" * 5000, "0", "é\u202e", "\x00", "../../x", "/", [], {}, [1], ["a"], [None], [[]], {"a": 1}, [[1, 2], [3]],
    {"": None}, [{"a": []}],
)  # fmt: skip


def damaged(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """The bytes with 0.1 to 60 % of them zeroed, cut, swapped, flipped or overwritten, and what was done."""
    share = 10 ** rng.uniform(-3, -0.22)
    count = max(1, int(len(content) * share))
    start = rng.randrange(max(1, len(content) - count + 1))
    how = rng.choice(("zeroed", "cut", "cut out", "swapped", "flipped", "noise", "repeated"))
    data = bytearray(content)
    match how:
        case "zeroed":
            data[start : start + count] = bytes(count)
        case "cut":
            del data[len(data) - count :]
        case "cut out":
            del data[start : start + count]
        case "swapped":
            other = rng.randrange(max(1, len(content) - count + 1))
            data[start : start + count], data[other : other + count] = (
                content[other : other + count], content[start : start + count],
            )  # fmt: skip
        case "flipped":
            for _ in range(max(1, count // 50)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case "noise":
            data[start : start + count] = rng.randbytes(count)
        case _:
            data[start:start] = content[start : start + count]
    return bytes(data), f"{how} {count} of {len(content)} bytes at {start}"


def hostile_json(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """A JSON document with one place changed, or its bytes damaged, and what was done."""
    how = rng.random()
    if how < 0.2:
        return damaged(rng, content)
    if how < 0.26:
        text = rng.choice(
            ("", "null", "[]", "{}", "3", '"a"', "[" * 100_000, '{"a":' * 100_000, "\ufeff{}", "NaN", "{} {}")
        )
        return text.encode(), f"the whole is {text[:20]}"
    tree = json.loads(content)
    places = list(_places(tree))
    parent, key = rng.choice(places) if places else (None, None)
    if parent is None:
        return b"[]", "the whole is []"
    where = f"{key!r} of {type(parent).__name__}"
    action = rng.random()
    if action < 0.15:
        del parent[key]
        done = f"{where} deleted"
    elif action < 0.25 and isinstance(parent, dict):
        parent[f"{key}x"] = parent.pop(key)
        done = f"{where} renamed"
    elif action < 0.35 and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
        done = f"{where} repeated"
    elif action < 0.4:
        value: Any = []
        for _ in range(900):
            value = [value]
        parent[key] = value
        done = f"{where} is nested 900 deep"
    else:
        value = rng.choice(VALUES)
        parent[key] = value
        done = f"{where} is {repr(value)[:40]}"
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    try:
        return json.dumps(tree).encode(), done
    finally:
        sys.set_int_max_str_digits(4300)


def _places(tree: Any) -> Any:
    """(parent, key) of every node below the root."""
    for key, value in list(
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    ):
        yield tree, key
        yield from _places(value)


# --- what is asked of every answer ------------------------------------------------------------------------------------


def called(one: Input, *words: object, real: bool = False) -> tuple[int, str]:
    """Exit code and stdout of `dino-path WORDS`; 0, 2 or 3.

    Raises:
        Find: another code, a traceback, or a refusal that does not say what to do.
    """
    line = [str(word) for word in words]
    one.note += f" | dino-path {' '.join(word if len(word) < 80 else word[:80] + '...' for word in line)}"
    code, out, err = _in_process(line, one.folder) if real else _here(line)
    seen = f"exit code {code}\n--- stdout\n{out[-3000:]}\n--- stderr\n{err[-6000:]}"
    if "Traceback" in err or "unexpected " in out + err:
        last = [text for text in err.splitlines() if re.match(r"\w*(Error|Exception|Exit)\b", text)]
        raise Find(f"a traceback ({last[-1][:100] if last else 'in a record'})", seen)
    if code not in (0, 2, 3):
        raise Find(f"exit code {code}", seen)
    if code == 2:
        _judge_refusal(err, seen)
    if len(err) > 20_000:
        raise Find("thousands of characters on the screen", seen)
    return code, out


def _judge_refusal(err: str, seen: str) -> None:
    if "Usage:" in err:
        return
    start = re.search(r"^\w+(Error|InUse|Format|Loss|Detected): ", err, re.MULTILINE)
    if start is None or not REFUSAL.search(err[start.start() :]):
        raise Find("exit code 2 without our message", seen)
    if len(err[start.start() :]) > LONGEST_MESSAGE:
        raise Find(f"a refusal of more than {LONGEST_MESSAGE} characters", seen)


def _here(line: list[str]) -> tuple[int, str, str]:
    from dino_path.cli import main

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["dino-path", *line]
    code: object = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = end.code
    finally:
        sys.argv = before
    return (code if isinstance(code, int) else 0 if code is None else 1), out.getvalue(), err.getvalue()


def _in_process(line: list[str], folder: Path) -> tuple[int, str, str]:
    words = [sys.executable, "-m", "dino_path", *line]
    done = subprocess.run(words, capture_output=True, cwd=folder, check=False)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def refused_or(action: Callable[[], Any], *allowed: type[Exception]) -> tuple[bool, Any]:
    """Whether a reader of the library refused, and what it returned where it did not.

    Raises:
        Find: the refusal is longer than a screen, or names nothing.
    """
    try:
        return False, action()
    except DinoPathError as error:
        parts = (error.thing, error.found, error.needed, error.remedy)
        if len(str(error)) > LONGEST_MESSAGE:
            raise Find(f"a refusal of {len(str(error)):,} characters", str(error)[:500]) from None
        if not all(part.strip() for part in parts):
            raise Find("a refusal with an empty part", str(error)) from None
        return True, None
    except allowed:
        return True, None


def judged(code: int) -> Told:
    return "right" if code == 0 else "refused"


def copied(one: Input, *names: str) -> None:
    """Copies of the corpus' folders or files, below the input's own folder."""
    for name in names:
        source = one.corpus.path / name
        if source.is_dir():
            shutil.copytree(source, one.folder / name)
        else:
            (one.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, one.folder / name)


def damage_file(one: Input, file: Path) -> None:
    """Damage one file in place, as its kind invites."""
    rng, content = one.rng, file.read_bytes()
    chance = rng.random()
    name = file.name.lower()
    if chance < 0.03:
        file.unlink()
        done = "deleted"
    elif chance < 0.06:
        file.write_bytes(b"")
        done = "emptied"
    elif chance < 0.09:
        file.unlink()
        file.mkdir()
        done = "is a folder"
    elif chance < 0.11:
        file.unlink()
        file.symlink_to(file.name)
        done = "is a loop of links"
    elif name.endswith(".json") and content:
        new, done = hostile_json(rng, content)
        file.write_bytes(new)
    elif name.endswith(".jsonl") and content.strip() and chance < 0.7:
        lines = content.splitlines()
        number = rng.randrange(len(lines))
        lines[number], done = hostile_json(rng, lines[number])
        file.write_bytes(b"\n".join(lines) + b"\n")
        done = f"line {number}: {done}"
    elif name.endswith((".yaml", ".csv", ".tsv")) and chance < 0.8:
        new, done = hostile_text(rng, content.decode())
        file.write_bytes(new)
    else:
        new, done = damaged(rng, content)
        file.write_bytes(new)
    one.note += f" {file.relative_to(one.folder)}: {done}"


def hostile_text(rng: random.Random, text: str) -> tuple[bytes, str]:
    """A text with one of its words, cells or lines changed, and what was done."""
    if rng.random() < 0.15:
        return damaged(rng, text.encode())
    words = list(re.finditer(r"[^\s,:\[\]{}]+", text))
    value = rng.choice(TEXTS)
    if not words or rng.random() < 0.1:
        lines = text.splitlines()
        where = rng.randrange(len(lines) + 1)
        lines.insert(where, value)
        return "\n".join(lines).encode(errors="surrogateescape"), f"line {where} is new: {value[:30]!r}"
    word = rng.choice(words)
    changed = text[: word.start()] + value + text[word.end() :]
    return changed.encode(errors="surrogateescape"), f"{word[0][:30]!r} is {value[:30]!r}"


# --- settings --------------------------------------------------------------------------------------------------------


@cache
def _keys(section: Any, prefix: str = "") -> list[str]:
    from dino_path.config import Section

    found = []
    for name, about in section.model_fields.items():
        options = [about.annotation, *getattr(about.annotation, "__args__", ())]
        inner = [option for option in options if isinstance(option, type) and issubclass(option, Section)]
        found.append(f"{prefix}{name}")
        for option in inner:
            found += _keys(option, f"{prefix}{name}.")
    return found


def settings(one: Input) -> Told:
    """Overrides of the command line: what is taken can be written and read back, equal."""
    from dino_path.config import Config
    from dino_path.settings import as_yaml, load_config

    rng = one.rng
    keys = _keys(Config)
    overrides = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        key = rng.choice(keys)
        if rng.random() < 0.1:
            key = rng.choice(
                (key + ".x", key + ".", "." + key, key.upper(), key[:-1], "", "..", key + ".0", "a" * 3000)
            )
        overrides.append(f"{key}={rng.choice(TEXTS)}" if rng.random() < 0.97 else key)
    one.note = repr([override[:90] for override in overrides])
    was_refused, config = refused_or(lambda: load_config(None, overrides))
    if was_refused:
        return "refused"
    file = one.folder / "config.yaml"
    text = as_yaml(config)
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    again = load_config(file)
    if again != config:
        raise Find("a setting that is written and read back is another", f"{text}\n{again!r}\n{config!r}")
    return "right"


def yaml_files(one: Input) -> Told:
    """Configs and suites with a word changed."""
    from dino_path.settings import as_yaml, load_config, load_suite

    files = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs" / "suites").glob("*.yaml")])
    source = one.rng.choice(files)
    content, done = hostile_text(one.rng, source.read_text())
    one.note = f"{source.name}: {done}"
    file = one.folder / "config.yaml"
    file.write_bytes(content)
    is_suite = source.parent.name == "suites"
    was_refused, config = refused_or(lambda: load_suite(file) if is_suite else load_config(file))
    if was_refused:
        return "refused"
    if not is_suite:  # a suite is never written back
        file.write_text(as_yaml(config), encoding="utf-8", errors="surrogateescape")
        again = load_config(file)
        if again != config:
            raise Find("a setting that is written and read back is another", f"{again!r}\n{config!r}")
    return "right"


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(one: Input) -> Told:
    """Manifests, tables of slides, labels of slides and groups."""
    from dino_path.config import EvaluationConfig

    kind = one.rng.choice(
        ("manifest.csv", "manifest.tsv", "manifest.parquet", "slides.csv", "labels.csv", "groups.csv")
    )
    file = one.folder / kind
    if kind == "groups.csv":
        (one.folder / "images").mkdir()
        for name in ("normal", "tumour"):
            (one.folder / "images" / name).symlink_to(one.corpus.path / "images" / name)
        images = sorted((one.corpus.path / "images").glob("*/*"))
        file = one.folder / "images" / kind
        lines = [f"{image.parent.name}/{image.name},{image.parent.name},P{n % 5}" for n, image in enumerate(images)]
        file.write_text("path,label,patient_id\n" + "\n".join(lines) + "\n")
    else:
        copied(one, kind)
    if kind.endswith("parquet"):
        _damage_parquet(one, file)
    else:
        content, done = hostile_text(one.rng, file.read_text())
        file.write_bytes(content)
        one.note = f"{kind}: {done}"
    match kind:
        case "slides.csv":
            from dino_path.slides.find import find_slides

            was_refused, _ = refused_or(lambda: find_slides([file]))
        case "labels.csv":
            from dino_path.config import CohortConfig
            from dino_path.evaluation.cohorts.cohort import read_cohort
            from dino_path.features.bags import find_bags

            folders = [find_bags(one.corpus.path / "bags")]
            was_refused, _ = refused_or(lambda: read_cohort(file, folders, CohortConfig()))
        case _:
            from dino_path.evaluation.labelled.datasets import load_labelled

            spec = file.parent if kind == "groups.csv" else file
            was_refused, _ = refused_or(lambda: load_labelled(str(spec), EvaluationConfig()))
    return "refused" if was_refused else "right"


def _damage_parquet(one: Input, file: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    if one.rng.random() < 0.4:
        damage_file(one, file)
        return
    table = pyarrow.parquet.read_table(file)
    column = one.rng.choice(table.column_names)
    values: list[Any] = one.rng.choice((
        [None], [1], [1.5], [float("nan")], [True], [b"\xff"], [[1, 2]], [{"a": 1}], [2**60], ["\x00"], [""],
    ))  # fmt: skip
    place = table.column_names.index(column)
    table = table.set_column(place, one.rng.choice((column, column, "x", "")), pyarrow.array(values * len(table)))
    pyarrow.parquet.write_table(table, file)
    one.note = f"{file.name}: {column} is {values}"


# --- annotations -----------------------------------------------------------------------------------------------------


def annotations(one: Input) -> Told:
    """GeoJSON, ASAP's and ImageScope's XML: objects whose polygons are finite, or a refusal."""
    from dino_path.evaluation.labelled.regions import read_regions
    from dino_path.slides.annotations.files import read_objects

    name = one.rng.choice(("a.geojson", "a.geojson", "a.xml", "a.annotations"))
    copied(one, f"annotations/{name}")
    file = one.folder / "annotations" / name
    if name.endswith("json"):
        content, done = hostile_json(one.rng, file.read_bytes())
    else:
        content, done = hostile_text(one.rng, file.read_text())
        if one.rng.random() < 0.5:
            match = one.rng.choice(list(re.finditer(rb'"[^"]*"', file.read_bytes())))
            value = one.rng.choice(TEXTS).encode(errors="surrogateescape")
            content = file.read_bytes()[: match.start() + 1] + value + file.read_bytes()[match.end() - 1 :]
            done = f"{match[0][:30]!r} is {value[:30]!r}"
    file.write_bytes(content)
    one.note = f"{name}: {done}"
    was_refused, objects = refused_or(lambda: read_objects(file, qupath_origin=(10, 20)))
    if not was_refused:
        for found in objects:
            if not (found.class_name is None or isinstance(found.class_name, str)):
                raise Find("a class name that is no text", repr(found.class_name))
            if not all(np.isfinite(ring).all() for polygon in found.polygons for ring in polygon.rings):
                raise Find("a coordinate that is not finite")
    also_refused, _ = refused_or(lambda: read_regions(file, (0, 0)))
    return "refused" if was_refused or also_refused else "right"


def masks(one: Input) -> Told:
    """`tile` with a damaged tissue mask: pictures and outlines."""
    name = one.rng.choice(("a.png", "a.geojson", "a.xml", "a.annotations"))
    copied(one, f"annotations/{name}", "slides/a.tif")
    damage_file(one, one.folder / "annotations" / name)
    return _tiled(one, one.folder / "slides" / "a.tif", f"slides.masks={one.folder / 'annotations'}")


# --- images and slides -----------------------------------------------------------------------------------------------


def jpeg(one: Input) -> Told:
    """Damaged streams: refused, or the pixels that another decoder gives without complaint."""
    import imagecodecs

    from dino_path.slides.images.decoding import BadImage, decode_image
    from dino_path.slides.images.jpeg import BadJpeg, decode_jpeg, frame_size, without_metadata

    content, edge = _jpeg_stream(one)
    stream, done = damaged(one.rng, content)
    one.note = f"JPEG of {edge} px: {done}"
    for read in (frame_size, without_metadata):
        refused_or(lambda read=read: read(stream), BadJpeg)  # type: ignore[misc]
    shrink = one.rng.choice((1, 2, 4))
    refused_or(lambda: decode_jpeg(stream, shrink=shrink), BadJpeg)
    was_refused, pixels = refused_or(lambda: decode_image(stream), BadImage)
    if was_refused:
        return "refused"
    try:
        other = imagecodecs.jpeg8_decode(stream)
    except Exception as error:  # noqa: BLE001  (imagecodecs has an error of its own for every codec)
        if np.array_equal(pixels, decode_image(content)):  # the damage was in what no picture needs
            return "right"
        raise Find("pixels where another decoder refuses", str(error)) from None
    other = np.dstack([other] * 3) if other.ndim == 2 else other[..., :3]
    if other.shape == pixels.shape and np.abs(other.astype(int) - pixels).max() > 4:
        raise Find("other pixels than another decoder's", str(np.abs(other.astype(int) - pixels).max()))
    return "right"


def _jpeg_stream(one: Input) -> tuple[bytes, int]:
    import cv2
    from fuzz_corpus import tissue

    edge = one.rng.choice((16, 64, 128, 256))
    flags = [cv2.IMWRITE_JPEG_QUALITY, one.rng.choice((40, 80, 95))]
    flags += [
        cv2.IMWRITE_JPEG_PROGRESSIVE,
        one.rng.choice((0, 0, 1)),
        cv2.IMWRITE_JPEG_RST_INTERVAL,
        one.rng.choice((0, 4)),
    ]
    image = tissue(one.rng.randrange(20), edge)
    return cv2.imencode(".jpg", image[..., one.rng.choice((0, slice(None)))], flags)[1].tobytes(), edge


def image_files(one: Input) -> Told:
    """Damaged PNG, BMP, WebP, TIFF and JPEG files: refused, or an image of three channels."""
    from dino_path.slides.images.decoding import BadImage, decode_image

    file = one.rng.choice(sorted(one.corpus.slides.glob("[ef].*")))
    content, done = damaged(one.rng, file.read_bytes())
    one.note = f"{file.name}: {done}"
    was_refused, pixels = refused_or(lambda: decode_image(content), BadImage)
    if was_refused:
        return "refused"
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise Find("no RGB image", f"{pixels.shape} {pixels.dtype}")
    return "right"


def slides(one: Input) -> Told:
    """A damaged slide is opened and cut: done, or failed with its reason."""
    file = one.rng.choice(sorted(one.corpus.slides.iterdir()))
    copied(one, f"slides/{file.name}")
    own = one.folder / "slides" / file.name
    chance = one.rng.random()
    if file.name.endswith((".tif", ".svs")) and chance < 0.5:
        _damage_tiff_directory(one, own)
    elif file.name.endswith(".dcm") and chance < 0.5:
        _damage_dicom(one, own)
    else:
        damage_file(one, own)
    return _tiled(one, own)


def _tiled(one: Input, slide: Path, *more: str) -> Told:
    store = one.folder / "store"
    code, _ = called(one, "tile", slide, "--out", store, "tiles.mpp=0.5", "tiles.size_px=64", "-q", *more)
    if code == 2:
        return "refused"
    records = [json.loads(file.read_text()) for file in (store / "slides").glob("*.json")]
    failed = [record for record in records if record["status"] == "failed"]
    for record in failed:
        if not record["reason"] or "unexpected" in record["reason"] or len(record["reason"]) > 1500:
            raise Find(f"a reason that explains nothing: {record['reason'][:60]}", record["reason"])
    if code == 0:
        checked, _ = called(one, "verify", store)
        if checked != 0:
            raise Find("a store that was just made is damaged")
    return judged(code)


def _damage_tiff_directory(one: Input, file: Path) -> None:
    """One entry of a TIFF's directories: its tag, type, count, value or the next directory's place."""
    content = bytearray(file.read_bytes())
    entries = []
    place = int.from_bytes(content[4:8], "little")
    while 0 < place < len(content) - 2:
        count = int.from_bytes(content[place : place + 2], "little")
        entries += [place + 2 + 12 * number for number in range(count)]
        entries.append(place + 2 + 12 * count)  # the pointer to the next
        place = int.from_bytes(content[place + 2 + 12 * count : place + 6 + 12 * count], "little")
    entry = one.rng.choice(entries)
    where, size = one.rng.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 4), (8, 2)))
    value = one.rng.choice(
        (0, 1, 2, 3, 7, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, one.rng.randrange(2**32), len(content))
    )
    tag = int.from_bytes(content[entry : entry + 2], "little")
    content[entry + where : entry + where + size] = (value % 256**size).to_bytes(size, "little")
    file.write_bytes(content)
    one.note += f" {file.name}: bytes {where} to {where + size} of the entry of tag {tag} are {value % 256**size}"


def _damage_dicom(one: Input, file: Path) -> None:
    import pydicom

    content = pydicom.dcmread(file)
    element = one.rng.choice([one for one in content if one.keyword])
    value = one.rng.choice((0, 1, -1, 3, 2**16, 2**31 - 1, "", "A", "1\\2", None, []))
    one.note += f" {file.name}: {element.keyword} is {value!r}"
    try:
        if one.rng.random() < 0.2:
            delattr(content, element.keyword)
        else:
            element.value = value
        content.save_as(file)
    except Exception:  # noqa: BLE001  (pydicom cannot write it: the file stays whole)
        return


# --- what the program keeps ------------------------------------------------------------------------------------------


def stores(one: Input) -> Told:
    """A damaged store: every tile that is given has the pixels that were written."""
    copied(one, "store")
    damage_file(one, one.rng.choice(_files(one.folder / "store")))
    right = [tile.tobytes() for tile in _all_tiles(one.corpus.store)]
    was_refused, found = refused_or(lambda: [tile.tobytes() for tile in _all_tiles(one.folder / "store")])
    command = one.rng.choice(("verify", "views", "tile", "report", None, None, None))
    if command == "verify":
        called(one, "verify", one.folder / "store")
    elif command == "views":
        called(one, "views", one.folder / "store", "--out", one.folder / "v.png", "--num-tiles", "1")
    elif command == "report":
        called(one, "report", one.corpus.path / "run", "--store", one.folder / "store", "--out", one.folder / "r.html")
    elif command == "tile":
        called(
            one, "tile", one.corpus.slides / "a.tif", one.corpus.slides / "b.tif", "--out", one.folder / "store",
            "tiles.mpp=0.5", "tiles.size_px=64", "tiles.min_tissue_fraction=0.2", "--workers", "0",
        )  # fmt: skip
    if was_refused:
        return "refused"
    if not set(found) <= set(right):
        raise Find("a tile that was not written")
    return "right"


def _all_tiles(store: Path) -> list[Any]:
    from dino_path.tiles.source import open_tiles

    source = open_tiles(store)
    return [source.read_image(index) for index in range(len(source))]


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock")


def runs(one: Input) -> Told:
    """A damaged run folder, and what reads it."""
    name = one.rng.choice(("run", "second"))
    copied(one, name)
    run = one.folder / name
    files = [file for file in _files(run) if "wandb" not in file.parts]
    small = [file for file in files if file.suffix != ".pt"]
    damage_file(one, one.rng.choice(files if one.rng.random() < 0.4 else small))
    command = one.rng.choice(("status", "verify", "report", "figures", "export", "pretrain", "status --json", "best"))
    match command:
        case "status" | "status --json" | "verify":
            code, _ = called(one, *command.split(), run)
        case "report":
            code, _ = called(one, "report", run, "--out", one.folder / "r.html")
        case "figures":
            code, _ = called(one, "figures", run, "--out", one.folder / "f", "--format", "svg")
        case "export" | "best":
            more = ["--best"] if command == "best" else []
            code, _ = called(one, "export", run, "--out", one.folder / "m", *more)
        case _:
            from fuzz_corpus import TINY

            code, _ = called(
                one, "pretrain", f"store={one.corpus.store}", f"out={run}", *TINY, *_second_settings(one, name)
            )
    return judged(code)


def _second_settings(one: Input, name: str) -> list[str]:
    more = [f"monitor.knn_data={one.corpus.path / 'manifest.csv'}", "monitor.knn_every_steps=2"]
    if name == "second":
        more += [
            f"model.weights={one.corpus.run}", "objective.distill.weight=1",
            f"objective.distill.teacher={one.corpus.model}",
        ]  # fmt: skip
    return more


def models(one: Input) -> Told:
    """A damaged model folder, and what reads it; features of what is not refused are those of the undamaged one."""
    copied(one, "model")
    damage_file(one, one.rng.choice(_files(one.folder / "model")))
    command = one.rng.choice(("verify", "attention", "embed", "evaluate", "import-checkpoint"))
    model = one.folder / "model"
    image = one.corpus.path / "images" / "normal" / "00.png"
    match command:
        case "verify":
            code, _ = called(one, "verify", model)
        case "attention":
            code, _ = called(one, "attention", model, image, "--out", one.folder / "a")
        case "embed":
            code, _ = called(
                one, "embed", model, one.corpus.store, "--out", one.folder / "f", "--workers", "0", "--allow-other-mpp"
            )
        case "import-checkpoint":
            code, _ = called(one, "import-checkpoint", model / "model.safetensors", "--out", one.folder / "m")
        case _:
            code, _ = called(
                one, "evaluate", "knn", model, "--data", one.corpus.path / "manifest.csv", "--out", one.folder / "e",
                "evaluation.num_bootstrap=100", "--workers", "0",
            )  # fmt: skip
    return judged(code)


def evaluations(one: Input) -> Told:
    """Damaged results and kept features: the numbers are those of the undamaged folder, or it is refused."""
    copied(one, "evaluation")
    own = one.folder / "evaluation"
    damage_file(one, one.rng.choice(_files(own)))
    if one.rng.random() < 0.3:
        code, _ = called(one, "verify", own)
        return judged(code)
    if one.rng.random() < 0.3:
        code, _ = called(one, "report", one.corpus.path / "run", "--evaluation", own, "--out", one.folder / "r.html")
        return judged(code)
    code, _ = called(
        one, "evaluate", "knn", one.corpus.model, "--data", one.corpus.path / "manifest.csv", "--out", own,
        "evaluation.num_bootstrap=100", "--workers", "0",
    )  # fmt: skip
    if code == 0:
        right, found = (_numbers(folder / "results.json") for folder in (one.corpus.evaluation, own))
        if right != found:
            raise Find("other numbers than those of the undamaged folder", f"{right}\n{found}")
    return judged(code)


def _numbers(file: Path) -> Any:
    rows = json.loads(file.read_text())["rows"] if file.is_file() else ()
    return [(row["protocol"], row["metrics"]) for row in rows]


def h5_files(one: Input) -> Told:
    """Damaged feature files and PatchCamelyon's HDF5."""
    if one.rng.random() < 0.5:
        return _pcam(one)
    copied(one, "bags", "labels.csv")
    file = one.rng.choice(_files(one.folder / "bags"))
    _damage_h5(one, file)
    code, _ = called(
        one, "evaluate", "slides", file.parent, "--labels", one.folder / "labels.csv", "--out", one.folder / "e",
        "cohort.aggregators=[mean]", "cohort.folds=3", "evaluation.num_bootstrap=100",
    )  # fmt: skip
    return judged(code)


def _pcam(one: Input) -> Told:
    from dino_path.config import EvaluationConfig
    from dino_path.evaluation.labelled.datasets import load_labelled

    copied(one, "pcam")
    _damage_h5(one, one.rng.choice(_files(one.folder / "pcam")))
    was_refused, found = refused_or(lambda: load_labelled(f"pcam:{one.folder / 'pcam'}", EvaluationConfig()))
    if not was_refused:
        was_refused, images = refused_or(lambda: [found.source.read_image(index) for index in range(len(found.source))])
        if not was_refused and any(image.shape != (96, 96, 3) or image.dtype != np.uint8 for image in images):
            raise Find("an image of another shape")
    return "refused" if was_refused else "right"


def _damage_h5(one: Input, file: Path) -> None:
    import h5py

    if one.rng.random() < 0.5:
        damage_file(one, file)
        return
    with h5py.File(file, "r+") as content:
        name = one.rng.choice(list(content))
        old = content[name][()]
        new: Any = one.rng.choice((
            old.astype(np.float64), old.astype(np.int16), old[:0], old[: len(old) // 2], old[..., :1], old[None],
            old.reshape(-1), np.float32(3), "text", np.array([b"a", b"b"]), old * np.nan, old.astype(complex),
            np.zeros(old.shape, np.bool_), old.astype(np.float16), -old.astype(np.int64), None,
        ))  # fmt: skip
        attributes = dict(content[name].attrs)
        del content[name]
        if new is None:
            content.create_group(name)
        elif one.rng.random() < 0.9:
            content[name] = new
        if one.rng.random() < 0.8 and name in content:
            content[name].attrs.update(attributes)
    one.note += f" {file.name}: {name} is {getattr(new, 'dtype', type(new).__name__)} {getattr(new, 'shape', '')}"


# --- the command line itself -----------------------------------------------------------------------------------------


def outs(one: Input) -> Told:
    """Every place that cannot be written, for every command that writes: refused before the work, or written."""
    out, what = _bad_place(one)
    one.note = what
    words = _writing_command(one, out)
    code, _ = called(one, *words)
    if code == 0 and not (out.exists() or what.startswith("new")):
        raise Find("exit code 0, and nothing was written")
    return judged(code)


def _bad_place(one: Input) -> tuple[Path, str]:
    folder = one.folder
    (folder / "file").write_text("x")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere/at/all")
    (folder / "short").symlink_to("short-target")
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "x").write_text("x")
    (folder / "to-file").symlink_to("file")
    places = {
        "a file": folder / "file", "below a file": folder / "file" / "x", "a loop": folder / "loop",
        "below a loop": folder / "loop" / "x", "a dangling link": folder / "dangling",
        "below a dangling link": folder / "dangling" / "x", "a link to what is not there": folder / "short",
        "a name too long": folder / ("n" * 300), "a long name": folder / ("n" * 250),
        "a path too long": folder / "/".join(["p" * 200] * 25), "/dev/null": Path("/dev/null"),
        "below /dev/null": Path("/dev/null/x"), "a FIFO": folder / "fifo", "a folder": folder / "folder",
        "a folder with a file": folder / "full", "/proc": Path("/proc/x"), "/sys": Path("/sys/x"),
        "a link to a file": folder / "to-file", "a name that is not UTF-8": folder / "\udcff\udcfe",
        "a name with a newline": folder / "a\nb", "nothing": Path(), "a zero byte": folder / "a\x00b",
        "the root": Path("/"), "below below": folder / "new" / "a" / "b" / "c", "a name with an accent": folder / "é",
        "with an ending": folder / "x.html", "with another ending": folder / "x.tar.gz", "a space": folder / " ",
    }  # fmt: skip
    what = one.rng.choice(list(places))
    return places[what], what


def _writing_command(one: Input, out: Path) -> list[object]:
    corpus = one.corpus
    image = corpus.images / "normal" / "00.png"
    manifest = corpus.path / "manifest.csv"
    from fuzz_corpus import TINY

    commands: list[list[object]] = [
        ["tile", corpus.slides / "a.tif", "--out", out, "tiles.mpp=0.5", "tiles.size_px=64", "--workers", "0"],
        ["views", corpus.store, "--out", out, "--num-tiles", "1"],
        ["attention", corpus.model, image, "--out", out],
        ["report", corpus.run, "--out", out],
        ["figures", corpus.run, "--out", out, "--format", "svg"],
        ["embed", corpus.model, corpus.store, "--out", out, "--workers", "0", "--allow-other-mpp"],
        ["embed", corpus.model, corpus.images, "--out", out, "--workers", "0", "--allow-other-mpp"],
        ["evaluate", "knn", corpus.model, "--data", manifest, "--out", out, "evaluation.num_bootstrap=100"],
        ["evaluate", "retrieval", corpus.model, "--data", manifest, "--out", out, "evaluation.num_bootstrap=100"],
        [
            "evaluate",
            "slides",
            corpus.bags,
            "--labels",
            corpus.path / "labels.csv",
            "--out",
            out,
            "cohort.folds=3",
            "cohort.aggregators=[mean]",
        ],
        ["map", corpus.model, "--store", corpus.store, "--out", out, "--method", "pca"],
        ["export", corpus.run, "--out", out],
        ["import-checkpoint", corpus.model / "model.safetensors", "--out", out],
        ["pretrain", f"store={corpus.store}", f"out='{out}'" if out.name == " " else f"out={out}", *TINY],
        ["baseline", "--data", manifest, "--out", out, "baseline.num_epochs=0"],
        ["view", corpus.store, "--export", out],
        ["submit", "tile", corpus.slides / "a.tif", "--out", out, "tiles.mpp=0.5", "--dry-run"],
    ]
    return one.rng.choice(commands)


def inputs(one: Input) -> Told:
    """Arguments that are no input: loops, devices, folders, hostile names and values, for every command that reads."""
    rng, corpus = one.rng, one.corpus
    place, what = _bad_place(one)
    bad: object = place if rng.random() < 0.6 else rng.choice(TEXTS).replace("\x00", "")
    if str(bad) in WIDE:
        bad = one.folder / "full"  # reading the whole machine takes its time, rightly
    one.note = what if bad is place else repr(bad)[:60]
    out = one.folder / "result"
    commands: list[list[object]] = [
        ["tile", bad, "--out", out, "tiles.mpp=0.5"],
        ["views", bad, "--out", out],
        ["status", bad],
        ["verify", bad],
        ["report", bad, "--out", out],
        ["report", corpus.run, "--store", bad, "--out", out],
        ["report", corpus.run, "--model", bad, "--out", out],
        ["report", corpus.run, "--evaluation", bad, "--out", out],
        ["report", corpus.run, "--map", bad, "--out", out],
        ["figures", bad, "--out", out],
        ["export", bad, "--out", out],
        ["import-checkpoint", bad, "--out", out],
        ["embed", corpus.model, bad, "--out", out],
        ["embed", bad, corpus.store, "--out", out],
        ["evaluate", "knn", bad, "--data", corpus.path / "manifest.csv", "--out", out],
        ["evaluate", "knn", corpus.model, "--data", bad, "--out", out],
        ["evaluate", "knn", corpus.model, "--data", f"store:{bad}", "--out", out],
        ["evaluate", "knn", corpus.model, "--data", f"pcam:{bad}", "--out", out],
        ["evaluate", "segmentation", corpus.model, "--data", bad, "--out", out],
        ["evaluate", "suite", corpus.model, "--suite", bad, "--out", out],
        ["evaluate", "slides", bad, "--labels", corpus.path / "labels.csv", "--out", out],
        ["evaluate", "slides", corpus.bags, "--labels", bad, "--out", out],
        ["attention", corpus.model, bad, "--out", out],
        ["attention", bad, corpus.images / "normal" / "00.png", "--out", out],
        ["map", bad, "--store", corpus.store, "--out", out],
        ["map", corpus.model, "--store", bad, "--out", out],
        ["view", bad, "--export", out],
        ["view", corpus.store, "--overlay", bad, "--export", out],
        ["pretrain", f"store={bad}", f"out={out}", "training.num_steps=1"],
        ["pretrain", "--config", bad, f"store={corpus.store}", f"out={out}"],
        ["submit", "pretrain", "--config", bad, "--dry-run"],
        ["submit", "tile", bad, "--out", out, "--dry-run"],
        ["baseline", "--data", bad, "--out", out],
        ["models", bad],
    ]
    code, _ = called(one, *rng.choice(commands))
    return judged(code)


def options(one: Input) -> Told:
    """Options with hostile values."""
    rng, corpus = one.rng, one.corpus
    value = rng.choice(TEXTS).replace("\x00", "")
    one.note = repr(value)[:60]
    out, manifest = one.folder / "result", corpus.path / "manifest.csv"
    attention = ["attention", corpus.model, corpus.images / "normal" / "00.png", "--out", out]
    mapped = ["map", corpus.model, "--store", corpus.store, "--out", out, "--method", "pca"]
    commands: list[list[object]] = [
        [*attention, "--px", value],
        [*attention, "--point", value],
        [*attention, "--mass", value],
        ["attention", corpus.model, corpus.slides / "a.tif", "--out", out, "--region", value],
        [*mapped, "--max-tiles", value],
        [*mapped, "--clusters", value],
        [*mapped, "--seed", value],
        [*mapped, "--split", value],
        [*mapped, "--columns", value],
        ["tile", corpus.slides / "a.tif", "--out", out, "tiles.mpp=0.5", "--shard", value],
        ["tile", corpus.slides / "a.tif", "--out", out, "tiles.mpp=0.5", "--layout", value],
        ["views", corpus.store, "--out", out, "--num-tiles", value],
        ["views", corpus.store, "--out", out, "--seed", value],
        ["export", corpus.run, "--out", out, "--license", value],
        ["export", corpus.run, "--out", out, "--input-px", value],
        ["export", corpus.run, "--out", out, "--format", value],
        [
            "embed",
            corpus.model,
            corpus.store,
            "--out",
            out,
            "--batch-size",
            value,
            "--allow-other-mpp",
            "--workers",
            "0",
        ],
        ["embed", corpus.model, corpus.store, "--out", out, "--layout", value, "--allow-other-mpp", "--workers", "0"],
        ["embed", corpus.model, corpus.store, "--out", out, "--device", value],
        ["figures", corpus.run, "--out", out, "--format", value],
        ["baseline", "--data", manifest, "--out", out, "--fraction", value, "baseline.num_epochs=0"],
        [
            "evaluate",
            "table",
            corpus.model,
            "--data",
            manifest,
            "--out",
            out,
            "--fractions",
            value,
            "evaluation.num_bootstrap=100",
            "evaluation.protocols=[knn]",
        ],
        ["evaluate", "knn", corpus.model, "--data", manifest, "--out", out, f"evaluation.knn_k={value}"],
        ["evaluate", "fewshot", corpus.model, "--data", manifest, "--out", out, f"evaluation.fewshot_shots={value}"],
        ["view", corpus.store, "--export", out, "--slide", value],
        ["view", corpus.store, "--export", out, "--clusters", value],
        ["import-checkpoint", corpus.model / "model.safetensors", "--out", out, "--arch", value],
        ["import-checkpoint", corpus.model / "model.safetensors", "--out", out, "--mpp", value],
        ["models", value],
    ]
    code, _ = called(one, *rng.choice(commands))
    return judged(code)


def training(one: Input) -> Told:
    """A run of two steps with one setting changed."""
    from fuzz_corpus import TINY

    from dino_path.config import Config

    sections = ("views.", "model.", "objective.", "optim.", "training.", "monitor.", "slides.")
    keys = [key for key in _keys(Config) if key.startswith(sections)]
    key = one.rng.choice(keys)
    value = one.rng.choice((*(text for text in TEXTS if len(text) < 40 and "\x00" not in text), "4", "8", "16", "5"))
    one.note = f"{key}={value!r}"
    code, _ = called(
        one, "pretrain", f"store={one.corpus.store}", f"out={one.folder / 'run'}", *TINY, "training.num_steps=2",
        f"{key}={value}",
    )  # fmt: skip
    return judged(code)


def process(one: Input) -> Told:
    """The real process, with what the command line itself must catch."""
    bad, what = _bad_place(one)
    if "\x00" in str(bad):
        bad = one.folder / "x"
    one.note = what
    rng, corpus = one.rng, one.corpus
    out = one.folder / "result"
    commands: list[list[object]] = [
        ["status", bad],
        ["verify", bad],
        ["tile", bad, "--out", out, "tiles.mpp=0.5"],
        ["tile", corpus.slides / "a.tif", "--out", bad, "tiles.mpp=0.5", "tiles.size_px=64", "--workers", "0"],
        ["views", bad, "--out", out],
        ["pretrain", f"store={bad}", f"out={out}", "training.num_steps=1"],
        ["pretrain", "--config", bad],
        ["tile", corpus.slides / "a.tif", "--out", out, f"tiles.mpp={rng.choice(TEXTS[:30])}"],
        ["evaluate", "knn", "mean-colour", "--data", bad, "--out", out],
        ["submit", "tile", bad, "--out", out, "--dry-run"],
    ]
    code, _ = called(one, *rng.choice(commands), real=True)
    return judged(code)


KINDS: Mapping[str, Kind] = {
    "settings": Kind(26, settings), "yaml": Kind(9, yaml_files), "tables": Kind(10, tables),
    "annotations": Kind(9, annotations), "masks": Kind(2, masks), "jpeg": Kind(10, jpeg),
    "images": Kind(3, image_files),
    "slides": Kind(8, slides), "stores": Kind(4, stores), "runs": Kind(5, runs), "models": Kind(2, models),
    "evaluations": Kind(2, evaluations), "h5": Kind(2.5, h5_files), "outs": Kind(3, outs), "inputs": Kind(2.5, inputs),
    "options": Kind(1, options), "training": Kind(0.7, training), "process": Kind(0.3, process),
}  # fmt: skip
