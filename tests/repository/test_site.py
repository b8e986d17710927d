"""The pages of docs/ build as a site, each page is on a road of the index, and the site opens from the disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from chromium import open_browser

from dino_path.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
QUERY = "document.querySelector('[data-md-component=search-query]')"
RESULTS = "document.querySelectorAll('.md-search-result__item')"


def test_every_command_has_a_section_in_the_page_of_commands() -> None:
    def names(group: typer.core.TyperGroup, *before: str) -> set[str]:
        found: set[str] = set()
        for name, command in group.commands.items():
            words = (*before, name)
            found |= names(command, *words) if isinstance(command, typer.core.TyperGroup) else {" ".join(words)}
        return found

    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    together = {f"evaluate {name}" for name in ("knn-uni", "linear", "logistic", "linear-uni", "linear-dino")}
    assert {name for name in names(group) - together if f"\n### {name}\n" not in page} == set()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Strict: a page on no road, and a link or an anchor that leads nowhere, are errors."""
    folder = tmp_path_factory.mktemp("site")
    answer = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return folder


@pytest.mark.slow
def test_every_page_the_benchmarks_and_the_configs_are_on_the_site(site: Path) -> None:
    assert [page.stem for page in PAGES if not (site / f"{page.stem}.html").is_file()] == []
    assert (site / "benchmarks" / "index.html").is_file()
    assert "batch_size_per_gpu" in (site / "configs" / "vits16_1gpu.yaml.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_pages_pictures_and_search_work_from_the_disk(site: Path, tmp_path: Path) -> None:
    with open_browser(tmp_path / "profile") as browser, browser.open_page() as page:
        page.window(1300, 900)
        for name in ("map", "readme", "index"):
            page.open(site / f"{name}.html")
            page.wait_for("document.images.length > 0 && [...document.images].every(one => one.naturalWidth > 100)")
        page.run(f"{QUERY}.focus(), {QUERY}.value = 'preemption', {QUERY}.dispatchEvent(new Event('input'))")
        page.run(f"{QUERY}.dispatchEvent(new KeyboardEvent('keyup', {{bubbles: true}}))")
        page.wait_for(f"[...{RESULTS}].some(one => one.textContent.includes('SLURM'))")
        assert page.errors == []
        assert [address for address in page.requests if not address.startswith("file:")] == []
