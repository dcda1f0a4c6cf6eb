"""The site is built as by `make site`: strictly, loading nothing from elsewhere, with every pattern in its gallery."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import spdsl

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "docs" / "site" / "mkdocs.yml"
LOADED = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=\"?(https?:)?//", re.IGNORECASE)

pytestmark = pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="needs mkdocs-material")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(CONFIG), "-d", str(folder)]
    settings = {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words, env=os.environ | settings, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    others = {"index", "examples", "errors", "benchmarks", "contributing"}
    assert pages | others <= {path.stem for path in site.glob("*.html")}


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert not LOADED.search(path.read_text(encoding="utf-8")), path.name
    for path in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), path.name


def test_the_gallery_has_every_pattern_of_the_page(site: Path) -> None:
    page = (site / "library.html").read_text(encoding="utf-8")
    headings = re.findall(r"^### (.*)$", (ROOT / "docs" / "library.md").read_text(encoding="utf-8"), re.MULTILINE)
    names = [name for heading in headings for name in heading.split(", ")]
    assert set(names) <= set(spdsl.names())
    for name in names:
        assert f'aria-label="mask of {name}"' in page, name
        assert f"patterns/{name}.spat</span>" in page, name
    assert page.count("<td>predicted</td>") >= 15
    assert page.count("<td>FlexAttention, 20") >= 8
    assert 'class="k">pattern</span>' in page, "texts have colours"


def test_links_lead_to_the_site(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="python.html#patterns-as-functions"' in home
    assert 'href="examples.html#01_smallest-py"' in home
    assert 'href="benchmarks.html"' in home
    assert (site / "h200-2026-11-28.png").exists()


def test_tables_show_bars_as_they_are(site: Path) -> None:
    page = (site / "language.html").read_text(encoding="utf-8")
    assert "<code>x &#124;&gt; only(SET)</code>" in page
    assert "\\|" not in page


def test_mistakes_have_examples(site: Path) -> None:
    page = (site / "errors.html").read_text(encoding="utf-8")
    assert "SP203_" in page
    assert page.count("error[SP") > 30
