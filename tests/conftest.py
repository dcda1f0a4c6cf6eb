"""Goldens: texts that a test produces are compared with files, and written anew under ``--update-golden``.

A golden of ``tests/grammar/test_show.py`` stands in ``tests/golden/grammar/test_show/``, named after the test.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

# Tests run side by side, and their tensors are small: threads that wait for each other take longer than one alone.
# Before torch and numpy are loaded, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden files instead of comparing with them"
    )


def compare(text: str, path: Path, update: bool) -> None:
    """Fail unless the file holds this text; with ``update``, make it so."""
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        return
    if not path.exists():
        pytest.fail(
            f"{path.relative_to(TESTS)} does not exist; run pytest --update-golden and read it before committing"
        )
    assert text == path.read_text(encoding="utf-8")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``golden(text)`` or ``golden(text, "part.txt")`` where one test has several; ``ending`` names the kind of
    file."""

    def check(text: str, part: str = "", *, ending: str = "txt") -> None:
        area = request.path.relative_to(TESTS).with_suffix("")
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", request.node.name).strip("-")
        file = f"{name}.{part}" if part else f"{name}.{ending}"
        compare(text, TESTS / "golden" / area / file, request.config.getoption("--update-golden"))

    return check


@pytest.fixture
def golden_at(request: pytest.FixtureRequest) -> Callable[[str, Path], None]:
    """``golden_at(text, path)``: the same for a file that stands elsewhere."""
    return lambda text, path: compare(text, path, request.config.getoption("--update-golden"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cache of the test's own, which is not there yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SPDSL_CACHE_DIR", str(folder))
    return folder
