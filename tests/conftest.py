"""Fixtures that every test may use."""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser, Page, open_browser

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real slides and labelled tiles in a folder beside the checkout; only developers have them."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real slides and tiles (../shared/data) are not on this machine")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiles_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve tiles of 48 px; tests must not change them."""
    from tiny import write_tiles  # imports torch, which most tests of slides and tiles do without

    return write_tiles(tmp_path_factory.mktemp("tiles"))


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of pages."""
    with open_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def tab(chromium: Browser) -> Iterator[Page]:
    """A tab that the tests of one file share."""
    with chromium.open_page() as page:
        yield page


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Abandoned files are cleaned only once per process and folder, and a command configures the log: reset both."""
    monkeypatch.setattr("dino_path.atomic._swept", set())
    logger = logging.getLogger("dino_path")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def pytest_configure() -> None:
    """Shells start what runs in the background with Ctrl-C ignored, and all that it starts: tests send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: a mistake shows within a minute."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
