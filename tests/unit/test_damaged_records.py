"""What the program keeps, damaged: named with what to do, and nothing else is lost with it."""

import json
from pathlib import Path

import numpy as np
import pytest

from dino_path.checksum import seal
from dino_path.cluster.jobs import jobs_of
from dino_path.errors import DataError, LaunchError, TileStoreError
from dino_path.records.evaluation import RESULTS
from dino_path.tiles.image_list import unreadable_names
from dino_path.tiles.pictures import read_contours
from dino_path.verify import verify
from dino_path.walk import files_below


def test_a_record_that_is_nested_too_deep_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"a":' * 100_000)
    with pytest.raises(DataError, match="it is nested too deep"):
        RESULTS.read(tmp_path / "results.json")


def test_of_kept_features_verify_names_each_that_cannot_be_read_and_counts_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    for name in ("good.npy", "flipped.npy"):
        with (folder / name).open("w+b") as stream:
            np.save(stream, np.arange(9))
            seal(stream)
    content = bytearray((folder / "flipped.npy").read_bytes())
    content[-60] ^= 1
    (folder / "flipped.npy").write_bytes(content)
    np.save(folder / "plain.npy", np.arange(9))
    (folder / "is-a-folder.npy").mkdir()
    (found,) = verify(tmp_path)
    assert (found.count, found.unchecked, len(found.damaged)) == (4, 1, 2)
    assert "is-a-folder.npy" in "".join(found.damaged)
    assert "flipped.npy: its checksum is wrong" in "".join(found.damaged)


@pytest.mark.parametrize(
    "content",
    [b"{}", b"[1]", b"\xff", b'{"features": 3}', b"[" * 100_000, b'{"features": [{"geometry": null}]}',
     b'{"features": [{"geometry": {"coordinates": [[[0, "a"]]]}}]}',
     b'{"features": [{"geometry": {"coordinates": [[[0, 1e300]]]}}]}',
     b'{"features": [{"geometry": {"coordinates": [[[0, 1' + b"0" * 400 + b']]]}}]}'],
)  # fmt: skip
def test_damaged_contours_name_the_slide_and_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.geojson").write_bytes(content)
    with pytest.raises(TileStoreError, match=r"Delete slides/a\.json in the store"):
        read_contours(tmp_path / "a.geojson")


def test_contours_are_read_as_they_were_written(tmp_path: Path) -> None:
    rings = [[[0, 0], [4, 0], [4, 4]], [[1, 1], [2, 1], [2, 2]]]
    (tmp_path / "a.geojson").write_text(json.dumps({"features": [{"geometry": {"coordinates": rings}}]}))
    assert read_contours(tmp_path / "a.geojson") == rings


@pytest.mark.parametrize("line", [b"{", b"\xff", b"3", b'{"stage": "tile"}'])
def test_a_damaged_line_of_the_jobs_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "jobs.jsonl").write_bytes(line + b"\n")
    with pytest.raises(LaunchError, match="Delete the damaged line"):
        jobs_of(tmp_path)


def test_of_tiles_that_could_not_be_read_a_damaged_line_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "unreadable.jsonl").write_bytes(b'\xff\n{"tile": "a"}\n[[[\n')
    assert unreadable_names(tmp_path / "unreadable.jsonl") == {"a"}


def test_a_report_of_a_run_whose_config_is_damaged_says_so(tmp_path: Path) -> None:
    from dino_path.reporting.sources import read_run

    for content in (b"\xff\xfe!", b"a: !!int x", b"a: " + b"[" * 3000):
        (tmp_path / "config.yaml").write_bytes(content)
        run = read_run(tmp_path, name="run")
        assert (run.config, [trouble.split(" (")[0] for trouble in run.troubles]) == (
            {},
            ["config.yaml cannot be read"],
        )


def test_a_link_that_may_not_be_looked_at_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("nowhere")

    def forbidden(path: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "readlink", forbidden)
    (one,) = files_below(tmp_path, lambda name: True).unreadable
    assert str(one) == f"{tmp_path / 'link'}: no such file or directory"
