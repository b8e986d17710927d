"""Which licences the needed packages stand under, from made-up installations whose right answer is known."""

import sys
from pathlib import Path

import pytest

from dino_path.licences import Licence, licences, note_of


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes the metadata of an installed package."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def write(name: str, *lines: str, text: str = "") -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        head = ["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *lines]
        (folder / "METADATA").write_text("\n".join(head) + f"\n\n{text}")

    return write


def test_what_is_needed_is_listed_once_with_what_it_needs_itself_and_the_extras_that_are_installed(install) -> None:
    install(
        "house",
        "Requires-Dist: Spdx_Named>=1",
        "Requires-Dist: ring",
        "Requires-Dist: elsewhere; sys_platform == 'no-such-platform'",
        "Requires-Dist: drawing; extra == 'pictures'",
        "Requires-Dist: absent; extra == 'sounds'",
        "Requires-Dist: missing",
        "Provides-Extra: pictures",
        "Provides-Extra: sounds",
    )
    install("spdx-named", "License-Expression: MIT", "License: other", "Requires-Dist: ring[more]")
    install("ring", "License: BSD", "Requires-Dist: spdx-named", "Requires-Dist: only-more; extra == 'more'",
            "Provides-Extra: more")  # fmt: skip
    install("only-more", "Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)")
    install("drawing", "License: LICENSE.txt")
    assert licences("house") == [
        Licence("drawing", "1.0", "unknown", "unknown"),
        Licence("missing", "", "unknown", "not installed"),
        Licence("only-more", "1.0", "GNU General Public License v3 (GPLv3)", "copyleft"),
        Licence("ring", "1.0", "BSD", ""),
        Licence("spdx-named", "1.0", "MIT", ""),
    ]


def test_of_the_whole_text_of_a_licence_the_classifier_or_the_first_line_stands(install) -> None:
    install("house", "Requires-Dist: a", "Requires-Dist: b")
    text = "License: A Licence of 2020\n        Permission is granted\n        to all."
    install("a", text, "Classifier: License :: OSI Approved", "Classifier: License :: OSI Approved :: MIT License")
    install("b", text)
    assert [one.licence for one in licences("house")] == ["MIT License", "A Licence of 2020"]


@pytest.mark.parametrize(
    ("licence", "note"),
    [
        ("BSD-3-Clause AND 0BSD AND CC0-1.0", ""),
        ("MPL-2.0 AND MIT", "weak copyleft"),
        ("LGPL-2.1-only AND (BSD-3-Clause OR GPL-2.0-only)", "weak copyleft"),
        ("GNU Lesser General Public License v3 (LGPLv3)", "weak copyleft"),
        ("BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1", "weak copyleft"),
        ("AGPL-3.0-only AND (BSD-3-Clause OR MIT)", "copyleft"),
        ("GPL-3.0-only OR MIT", ""),
        ("GPLv2", "copyleft"),
        ("LicenseRef-NVIDIA-Proprietary", "proprietary"),
    ],
)
def test_what_asks_for_more_than_its_own_text_is_noted(licence: str, note: str) -> None:
    assert note_of(licence) == note


def test_the_program_itself_needs_no_strong_copyleft() -> None:
    found = {one.name: one for one in licences()}
    assert found["numpy"].version
    assert found["torch"].note == ""
    assert found["openslide-python"].note == "weak copyleft"
    assert not [name for name, one in found.items() if one.note in ("copyleft", "not installed")]
