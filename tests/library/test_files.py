"""The files of the library: names, parameters, comments, layout, and the page that describes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spdsl.grammar.format import format_text
from spdsl.library import names, resolver, text_of
from spdsl.pipeline import read

ROOT = Path(__file__).parent.parent.parent
SIGNATURES = {
    "full": {},
    "causal": {},
    "sliding_window": {"window": 1024},
    "streaming": {"window": 1024, "sinks": 4},
    "prefix_lm": {},
    "documents": {},
    "block_local": {"block": 128},
    "dilated": {"span": 4096, "dilation": 4},
    "strided": {"local": 128, "stride": 128},
    "longformer": {"window": 512},
    "bigbird": {"block": 64, "window_blocks": 3, "global_blocks": 2, "random_blocks": 3, "seed": 0},
    "power": {"block": 128, "local_blocks": 8},
    "log_sparse": {},
    "s2": {"block": 64, "local_blocks": 8, "stride": 16},
    "block_diffusion": {"half": None, "block": 16},
    "blockrank": {},
    **{
        f"neighborhood_{k}d": {
            "extents": None,
            "window": None,
            "stride": (1,) * k,
            "dilation": (1,) * k,
            "causal_axes": (False,) * k,
        }
        for k in (1, 2, 3)
    },
    "sliding_tile_3d": {"extents": None, "tile": (6, 8, 8)},
    "radial": {"frames": None, "frame_tokens": None, "rho": 0.95, "block": 128, "sink": False},
    "alibi": {},
    "softcap": {"cap": 50.0},
    "head_modes": {"sinks": 64, "window": 256},
    "moba": {"block": 512, "picks": 3},
    "nsa": {"compress": 32, "stride": 16, "block": 64, "picks": 16, "window": 512},
    "infllm_v2": {"compress": 32, "stride": 16, "block": 64, "picks": 64, "window": 2048, "dense": 8192},
    "seer_attention": {"block": 64, "threshold": 0.002},
    "vsa": {"frames": None, "height": None, "width": None, "cube": (4, 4, 4), "picks": 32},
    "quest": {"page": 16, "budget": 1024},
    "dsa": {"picks": 2048},
    "dma": {"width": 2048},
    "xattention": {"block": 128, "stride": 8, "mass": 0.9},
    "vertical_slash": {"columns": 1000, "diagonals": 6096, "probe": 64, "block": 64},
    "llsa": {"block": 16, "picks": (8, 8)},
    "minference_blocks": {"block": 64, "picks": 100},
    "flashprefill": {"block": 128, "alpha": 0.12, "sinks": 2, "window": 4, "dense": 2},
    "kinetics": {"page": 16, "picks": 64},
    "flux": {"sinks": 128, "window": 2048},
    "delta": {"page": 16, "picks": 64, "recent": 8},
    "hylra": {},
    "superlinear": {"picks": 3, "back": 2.0, "ahead": 0.0, "local": 255},
    "routing": {"clusters": None, "width": 128},
    "flexprefill": {"block": 128, "mass": 0.9, "tau": 0.1, "least": 512},
    "hip": {
        "rows": 64,
        "chunk": (256, 32, 8),
        "budget": (32768, 8192, 2048),
        "every": 4,
        "sinks": 256,
        "window": 1024,
    },
    "sparge": {"rows": 128, "columns": 64, "theta": 0.1, "mass": 0.95},
    "dhsa": {"budget": 2048, "local": 64},
    "snapkv": {"cap": 2048, "probe": 32, "width": 5},
    "ada_snapkv": {"cap": 2048, "probe": 32, "width": 5, "share": 0.2},
    "rectified": {"mass": 0.9, "picks": 16},
    "sea": {"bins": 256, "picks": 64},
    "longnet": {"segment": (2048, 4096, 8192, 16384, 32768), "rate": (1, 2, 4, 6, 12)},
    "longformer_global": {"window": 512, "dilation": 1},
    "sparsed_build": {"ratio": 0.3, "rows": 128, "columns": 32},
    "sparsed_reuse": {"rows": 128, "columns": 32},
}
INPUTS = {
    "prefix_lm": "prefix: int[b]",
    "documents": "doc: int[token] sorted",
    "longformer": "is_global: bool[token]",
    "blockrank": "segment: int[token], last: int",
    "sliding_tile_3d": "window: int[h, 3]",
    "alibi": "slope: float[h]",
    "head_modes": "full: bool[g]",
    "nsa": "gate: float[3, h, q]",
    "seer_attention": "GQ: float[h, q.blk, e], GK: float[h, k.blk, e]",
    "vsa": "gate: float[h, q, d]",
    "dsa": "QI: float[j, q, e], KI: float[token, e], wt: float[j, q]",
    "dma": "delta: float[g, token]",
    "flux": "full: bool[b]",
    "delta": "reused: bool[q, k.pg]",
    "hylra": "full: bool[l], reused: bool[g, q, token]",
    "sparsed_build": "prompt: int[b]",
    "sparsed_reuse": "chosen: bool[h, q.row, k.col]",
    "superlinear": "Q1: float[h, q, d]",
    "routing": "mu: float[h, c, d]",
    "dhsa": "cut: int[token] sorted",
    "rectified": "piece: int[token] sorted, text: bool[token], gains: bool[h, q.pc, k.pc]",
    "sea": "estimate: float[h, q, k.bin], gain: float[h, q]",
    "longformer_global": "special: bool[token], QG: float[h, q, d], KG: float[g, token, d], VG: float[g, token, d]",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_parameters_and_inputs(name: str) -> None:
    checked = read(text_of(name), source=f"{name}.spat", name=name, resolve=resolver(None))
    assert {each.name: each.default for each in checked.parameters} == SIGNATURES[name]
    shown = []
    for table in checked.tables:
        axes = f"[{', '.join(axis.label for axis in table.axes)}]" if table.axes else ""
        shown.append(f"{table.name}: {table.dtype}{axes}{' sorted' if table.sorted else ''}")
    assert ", ".join(shown) == INPUTS.get(name, "")


def test_names() -> None:
    assert set(names()) == set(SIGNATURES)


@pytest.mark.parametrize("path", sorted((ROOT / "patterns").glob("*.spat")), ids=lambda path: path.stem)
def test_layout(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert format_text(text) == text


def test_every_pattern_is_described() -> None:
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`?(\w+)`?", " ".join(re.findall(r"^### (.*)$", page, re.MULTILINE))))
    assert described == set(SIGNATURES)
