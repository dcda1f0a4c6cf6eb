"""Pages of masks: what their programs work out against the reference, and what a browser shows."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spdsl
from spdsl.page.content import Shown, is_worked_out, page
from spdsl.page.script import FORMS
from spdsl.picture import count_tiles
from spdsl.semantics.ops import OPS
from tests.cli.conftest import Answer
from tests.cli.conftest import spdsl as command
from tests.library.cases import CASES, Case, Sizes

NODE = shutil.which("node")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
HEADS, GROUPS, QUERIES = 4, 2, 45
spdsl_command = command

ASKED = """
  for (let head = 0; head < SETTINGS.heads; head++) {
    state.head = head;
    const mask = new Mask(0);
    let line = "";
    for (let q = 0; q < mask.nq; q++) for (let k = 0; k < mask.n; k++) line += mask.keeps(q, k) ? 1 : 0;
    mask.work(1e9);
    console.log(JSON.stringify([mask.nq, mask.n, line, mask.counts.full, mask.counts.partial, mask.counts.pairs]));
  }
"""
TILES = """
  $("bq").value = 20; $("bq").dispatchEvent(new Event("change"));
  $("bk").value = 20; $("bk").dispatchEvent(new Event("change"))
"""
POINT = """
  const box = views[0].canvas.getBoundingClientRect(), event = { clientX: box.left + 5, clientY: box.bottom - 5 };
  views[0].canvas.dispatchEvent(new PointerEvent("pointermove", { ...event, bubbles: true }))
"""
COLOURS = """
  const v = views[0], s = v.scale(), c = v.canvas.getContext("2d"), pairs = [];
  const at = (pair, corner) => Math.round((pair + 0.5 - corner) * s.px);
  for (let q = 0; q < 4; q++) for (let k = 0; k < 4; k++)
    pairs.push([q, k, [...c.getImageData(at(k, s.left), at(q, s.top), 1, 1).data].slice(0, 3).join()]);
  document.body.dataset.pairs = JSON.stringify(pairs);
  document.body.dataset.zoom = state.zoom
"""


def test_every_operation_has_a_form() -> None:
    assert FORMS.keys() == OPS.keys()


def scripts(text: str) -> str:
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    return str(script)


def shown(case: Case, n: int) -> tuple[Shown, Any]:
    """A case of the library for a page, and its mask by the reference."""
    pattern = spdsl.load(case.name)
    sizes = Sizes(batch=1, heads=HEADS, groups=GROUPS, nq=QUERIES, n=n)
    inputs = case.inputs(sizes, torch.Generator().manual_seed(3))
    settings: dict[str, Any] = {**case.parameters, **inputs}
    mask = pattern.mask(QUERIES, n, HEADS, GROUPS, 1, **settings)
    found = (mask[0] if mask.ndim == 4 else mask).numpy()
    tables = {name: each.numpy() for name, each in inputs.items()}
    worked_out = is_worked_out(pattern.checked)
    given = Shown(
        pattern=pattern.checked,
        values=case.parameters,
        tables=tables,
        layer=1,
        kernels=(),
        mask=None if worked_out else found,
    )
    return given, found


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_masks_of_the_library_in_javascript(tmp_path: Path) -> None:
    """Every pair of every head of all cases, as the page works it out."""
    assert NODE is not None
    blocks, wanted = [], []
    for case in CASES:
        given, mask = shown(case, case.n or 150)
        text = page([given], n=case.n or 150, nq=QUERIES, heads=HEADS, groups=GROUPS, head_dim=16, tile=16)
        program = scripts(text).partition("// ------------------------------------------------------------ pictures")[0]
        blocks.append("{" + program.replace('"use strict";', "") + ASKED + "}")
        wanted.append((case.id, mask))
    (tmp_path / "masks.js").write_text("\n".join(blocks))
    done = subprocess.run([NODE, "masks.js"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = iter(done.stdout.splitlines())
    for name, mask in wanted:
        for head in range(HEADS):
            nq, n, bits, full, partial, pairs = json.loads(next(lines))
            assert (nq, n) == mask.shape[1:], name
            found = np.frombuffer(bits.encode(), dtype=np.uint8).reshape(nq, n) == ord("1")
            assert (found == mask[head]).all(), (name, head)
            tiles = count_tiles(mask[head], 16, 16)
            assert (full, partial) == ((tiles.state == 2).sum(), (tiles.state == 1).sum()), name
            assert pairs == mask[head].sum()


def test_most_of_the_library_can_be_moved() -> None:
    held = {case.name for case in CASES if not is_worked_out(spdsl.load(case.name).checked)}
    assert held == {"bigbird", "radial"}  # they draw, and reduce


def test_a_page_needs_nothing_from_elsewhere() -> None:
    given, _ = shown(CASES[4], 150)
    text = page([given], n=150, nq=QUERIES, heads=4, groups=2, head_dim=16, tile=16)
    assert "default-src 'none'" in text
    assert not re.findall(r"https?://|\bimport\b|\bfetch\(|XMLHttp|\beval\(|new Function", text)
    assert "__" not in text.replace("__proto__", "")


def test_text_of_a_file_cannot_leave_its_place() -> None:
    pattern = spdsl.loads("# </script><script>alert(1)</script>\npattern p(w: int = 3) { keep q - k < w }")
    given = Shown(pattern=pattern.checked, values={"w": 3}, tables={}, layer=None, kernels=())
    text = page([given], n=8, nq=8, heads=1, groups=1, head_dim=16, tile=4)
    assert text.count("<script>") == text.count("</script>") == 1


def test_masks_that_are_too_large_are_refused() -> None:
    pattern = spdsl.load("bigbird").checked
    mask = np.broadcast_to(np.zeros((), dtype=np.bool_), (1, 1 << 14, 1 << 14))
    given = Shown(pattern=pattern, values={}, tables={}, layer=None, kernels=(), mask=mask)
    with pytest.raises(spdsl.SpatError, match="too large for a page"):
        page([given], n=1 << 14, nq=1 << 14, heads=1, groups=1, head_dim=16, tile=64)


def test_the_command_writes_pages_and_svg(spdsl_command: Callable[..., Answer], tmp_path: Path) -> None:
    answer = spdsl_command(
        "view", "streaming", "-p", "window=20", "-n", 100, "-o", "a.html", "--beside", "full", "--json"
    )
    assert answer.status == 0, answer.out + answer.err
    assert answer.json["patterns"] == ["streaming", "full"]
    assert answer.json["worked_out"] is True
    assert "<title>streaming | full</title>" in (tmp_path / "a.html").read_text(encoding="utf-8")
    (line,) = re.findall(r"^const PATTERNS = (.*);$", (tmp_path / "a.html").read_text(encoding="utf-8"), re.MULTILINE)
    mask = spdsl.load("streaming").mask(100, 100, window=20, sinks=4)[0].numpy()
    kernels = json.loads(line)[0]["kernels"]
    assert {each["by"] for each in kernels} == {"query", "key"}
    for kernel in kernels:
        tiles = count_tiles(mask, kernel["bq"], kernel["bk"])
        assert (kernel["rows"], kernel["touched"]) == ("", int((tiles.state > 0).sum()))
    assert spdsl_command("view", "streaming", "-p", "window=20", "-n", 100, "-o", "a.svg").status == 0
    assert "<svg" in (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert spdsl_command("view", "streaming", "-o", "a.png", "--beside", "full").status == 2
    assert spdsl_command("view", "streaming", "-o", "b.html", "--beside", "nope").status == 1
    assert not (tmp_path / "b.html").exists()


# ---------------------------------------------------------------- in a browser


def browsed(text: str, folder: Path, actions: Sequence[str] = ()) -> str:
    """The page's own words in a real browser, after some actions of a user; fails where its program does."""
    assert BROWSER is not None
    steps = "".join(f"await wait(); {each};\n" for each in actions)
    script = (
        "window.addEventListener('error', event => { document.title = 'failed: ' + event.message; });\n"
        "window.addEventListener('unhandledrejection', event => { document.title = 'failed: ' + event.reason; });\n"
        # A browser without a screen stops to draw once the page stands still.
        "window.requestAnimationFrame = callback => setTimeout(callback, 5);\n"
        "const wait = () => new Promise(done => { const look = () => document.body.dataset.done === 'true'"
        " ? setTimeout(done, 60) : setTimeout(look, 20); setTimeout(look, 40); });\n"
        f"(async () => {{ {steps} await wait(); document.body.dataset.acted = 'true'; }})();\n"
    )
    path = folder / "page.html"
    path.write_text(
        text.replace('"use strict";\nconst SETTINGS', f'"use strict";\n{script}const SETTINGS'), encoding="utf-8"
    )
    words = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1200,900",
        f"--user-data-dir={folder / 'profile'}",
    ]
    words += ["--virtual-time-budget=20000", "--dump-dom", path.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert "<title>failed" not in done.stdout, done.stdout[:1000]
    assert 'data-acted="true"' in done.stdout
    return done.stdout


def told(page_text: str) -> list[str]:
    found = re.findall(r'<p class="told">(.*?)</p>', page_text, re.DOTALL)
    return [html.unescape(re.sub(r"<[^>]*>", " ", each)) for each in found]


def numbers(mask: Any, tile: int) -> tuple[str, ...]:
    tiles = count_tiles(mask, tile, tile)
    counts = [int((tiles.state == kind).sum()) for kind in (2, 1, 0)]
    return tuple(f"{count:,}" for count in counts)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_and_moves_masks(tmp_path: Path) -> None:
    pattern, other = spdsl.load("streaming"), spdsl.load("sliding_window")
    both = [
        Shown(pattern=pattern.checked, values={"window": 40, "sinks": 4}, tables={}, layer=None, kernels=()),
        Shown(pattern=other.checked, values={"window": 64}, tables={}, layer=None, kernels=()),
    ]
    text = page(both, n=512, nq=512, heads=1, groups=1, head_dim=16, tile=32)

    def check(shown: str, n: int, tile: int, window: int) -> None:
        left, right = told(shown)
        for words, mask in (
            (left, pattern.mask(n, n, window=window, sinks=4)),
            (right, other.mask(n, n, window=64)),
        ):
            full, partial, never = numbers(mask[0].numpy(), tile)
            assert re.search(rf"{full}\s+full,\s+{partial}\s+partial, {never} never read", words), words
            assert f"{100 * float(mask.float().mean()):.1f} %" in words

    check(browsed(text, tmp_path), 512, 32, 40)
    slid = "const s = document.querySelector('input[name=window]'); s.value = 100; s.dispatchEvent(new Event('input'))"
    check(browsed(text, tmp_path, [slid]), 512, 32, 100)
    longer = "$('n').value = 300; $('n').dispatchEvent(new Event('change'))"
    check(browsed(text, tmp_path, [longer, TILES]), 300, 20, 40)
    left, _ = told(browsed(text, tmp_path, [POINT]))
    assert "tile (15, 0) is partial" in left
    assert "query tile 15 walks 4 key tiles" in left  # the sinks, and the window over three tiles
    turned = "set({ order: 'key' })"
    left, _ = told(browsed(text, tmp_path, [turned, POINT]))
    assert "key tile 0 walks 16 query tiles" in left


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_zooms_to_pairs(tmp_path: Path) -> None:
    given, mask = shown(CASES[4], 150)
    text = page([given], n=150, nq=QUERIES, heads=HEADS, groups=GROUPS, head_dim=16, tile=16)
    zoom = "views[0].canvas.dispatchEvent(new WheelEvent('wheel', { deltaY: -900, bubbles: true, cancelable: true }))"
    text = browsed(text, tmp_path, [zoom, COLOURS])
    (pairs,) = re.findall(r'data-pairs="([^"]*)"', text)
    (zoomed,) = re.findall(r'data-zoom="([^"]*)"', text)
    assert float(zoomed) == pytest.approx(np.exp(3), rel=1e-6)
    for q, k, colour in json.loads(html.unescape(pairs)):
        assert (colour in ("224,144,47", "47,111,176")) == bool(mask[0, q, k]), (q, k, colour)
