"""What patterns show in notebooks: the picture is the mask, the text is escaped, and what cannot be drawn says why."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.showing import PAPER, SHADES, html, look, svg

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
RECTANGLE = re.compile(r"M(\d+) (\d+)h(\d+)v(\d+)h-(\d+)z")


def squares(picture: str) -> Tensor:
    """The picture's squares as numbers of shades, 0 where there is only paper; none is painted twice."""
    root = ET.fromstring(picture)  # noqa: S314  # our own
    _, _, across, down = map(int, root.attrib["viewBox"].split())
    found = torch.zeros(down, across, dtype=torch.int64)
    paper, *paths = root
    assert paper.attrib["fill"] == PAPER
    for path in paths:
        shade = SHADES.index(path.attrib["fill"]) + 1
        assert RECTANGLE.sub("", path.attrib["d"]) == ""
        for x, y, wide, high, back in RECTANGLE.findall(path.attrib["d"]):
            assert wide == back
            area = found[int(y) : int(y) + int(high), int(x) : int(x) + int(wide)]
            assert area.numel() == int(wide) * int(high)
            assert not area.any()
            area.fill_(shade)
    return found


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 128), (100, 3)])
def test_every_pair_is_in_its_place(shape: tuple[int, int]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.4
    assert torch.equal(squares(svg(mask)) > 0, mask)


def test_nothing_and_everything() -> None:
    assert not squares(svg(torch.zeros(9, 9, dtype=torch.bool))).any()
    assert (squares(svg(torch.ones(300, 300, dtype=torch.bool))) == len(SHADES)).all()  # also squares cut off


def test_shades_of_long_masks() -> None:
    mask = torch.zeros(512, 512, dtype=torch.bool)
    mask[:4, :4] = True  # a square of 4 × 4 pairs, whole
    mask[4, 4] = True  # one pair of sixteen
    mask[8:12, 8:11] = True  # twelve of them
    mask[511] = True  # a quarter of every square of the last row
    shades = squares(svg(mask))
    assert shades.shape == (128, 128)
    assert (shades[0, 0], shades[1, 1], shades[2, 2]) == (4, 1, 3)
    assert (shades[127] == 2).all()
    assert shades[:127].count_nonzero() == 3


def test_a_pattern_shows_itself() -> None:
    pattern = spdsl.loads("pattern near(window: int in 1.. = 8) {\n  keep causal and q - k < window\n}")
    shown = pattern._repr_html_()
    assert "<b>near(window=8)</b>" in shown
    assert "keep causal and q - k &lt; window" in shown
    assert "256 queries (down) × 256 keys: 3.08% of the pairs kept" in shown
    assert pattern.mask(256, 256).double().mean().item() == pytest.approx(0.0308, abs=5e-5)
    ET.fromstring(shown.replace("<br>", "<br/>"))  # noqa: S314  # our own
    attend = spdsl.compile(pattern, window=300)
    assert "<b>near(window=300)</b>" in attend._repr_html_()
    assert "2,048 queries" in attend._repr_html_()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", shown), "nothing is loaded"


def test_what_has_no_picture_says_why() -> None:
    shown = spdsl.load("neighborhood_2d")._repr_html_()
    assert "<svg" not in shown
    assert "needs a value for `extents`" in shown
    assert "grid" in shown
    shown = spdsl.compile("neighborhood_2d", extents=(6, 9), window=(3, 3))._repr_html_()
    assert "54 queries (down) × 54 keys" in shown
    assert "depends on the layer" in spdsl.load("delta")._repr_html_()
    assert "layer=3" in html(spdsl.load("delta"), layer=3)


def test_inputs_are_made_up_or_given() -> None:
    pattern = spdsl.load("documents")
    assert "doc: made up, at random" in html(pattern)
    doc = torch.arange(50) // 20
    sight = look(pattern, n=50, known={"doc": doc})
    assert sight.made_up == ()
    assert torch.equal(sight.mask, (doc[:, None] == doc) & torch.ones(50, 50).tril().bool())


def test_selections_are_those_of_random_queries_and_keys() -> None:
    sight = look(spdsl.load("moba"), {"block": 16, "picks": 3}, n=128)
    assert sight.made_up == ("q", "k")
    causal = torch.ones(128, 128).tril().bool()
    assert not (sight.mask & ~causal).any()
    blocks = sight.mask.view(128, 8, 16)
    assert torch.equal(blocks.any(2).sum(1), 1 + (torch.arange(128) // 16).clamp(max=2))
    past = torch.arange(8) < (torch.arange(128) // 16)[:, None]
    assert torch.equal(blocks.all(2)[past], blocks.any(2)[past]), "blocks of the past are chosen whole"


def test_values_that_meet_vectors_of_queries() -> None:
    """A gate along `d` gives values a size; the picture has all keys, a last part that is cut off among them."""
    text = """pattern gated() {
  input gate: float[h, q, d]
  axis blk = token by 7
  let chosen = score(mean(Q, per = q.blk), mean(K, per = k.blk)) |> top(2)
  return GATEattend { keep chosen }
}"""
    gated, plain = (spdsl.loads(text.replace("GATE", gate)) for gate in ("gate * ", ""))
    sizes = {"n": 45, "known": {"gate": torch.ones(1, 45, 32)}}
    assert torch.equal(look(gated, {}, **sizes).mask, look(plain, {}, **sizes).mask)  # type: ignore[arg-type]
    assert look(gated, {}, **sizes).mask[:, 42:].any()  # type: ignore[arg-type]


def test_every_pattern_of_the_library_shows_itself() -> None:
    for name in ("bigbird", "nsa", "head_modes", "alibi"):
        assert "<svg" in spdsl.load(name)._repr_html_(), name


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_paints_the_mask(tmp_path: Path) -> None:
    """Every pair is looked at in the middle of its square of four pixels."""
    from PIL import Image

    mask = spdsl.load("longformer").mask(48, 48, window=8, is_global=torch.arange(48) % 19 == 3)[0]
    page = tmp_path / "mask.html"
    page.write_text(f'<body style="margin:0">{svg(mask, size=4 * 48)}', encoding="utf-8")
    assert BROWSER is not None
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=400,300"]
    picture = tmp_path / "mask.png"
    subprocess.run(
        [BROWSER, *words, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", page.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    painted = Image.open(picture).convert("RGB")
    colours = {bytes.fromhex(PAPER[1:]): False, bytes.fromhex(SHADES[-1][1:]): True}
    found = [[colours[bytes(painted.getpixel((4 * x + 2, 4 * y + 2)))] for x in range(48)] for y in range(48)]
    assert torch.equal(torch.tensor(found), mask)
