"""Long rows in parts on a GPU: as good as whole rows, the same bits in every run, and in a captured graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.runtime import split
from tests.library.compare import relative_error

pytestmark = pytest.mark.gpu

N = 6000
PATTERNS = {
    "positions": "keep abs(q - k) <= 100 or q < 70 or k < 70",
    "table": "input marked: bool[token]\n  keep abs(q - k) <= 100 or marked[q] or marked[k]",
    "sinks": "keep causal and (q - k < 100 or k < 200)  sink_logit 0.5",
}


def compiled(name: str, folder: Path, *, ordered: bool = False) -> tuple[spdsl.Attention, dict[str, Tensor]]:
    path = folder / "long.spat"
    path.write_text(f"pattern long() {{\n  {PATTERNS[name]}\n}}\n")
    marked = torch.arange(N, device="cuda") % 2999 == 7
    return spdsl.compile(str(path), deterministic=ordered), {"marked": marked} if name == "table" else {}


def tensors(d: int = 64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((2, 4, N, d), (2, 2, N, d), (2, 2, N, d))
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("ordered", [False, True], ids=["default", "deterministic"])
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("name", PATTERNS)
def test_parts_and_whole_rows_agree(
    name: str, d: int, ordered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attn, inputs = compiled(name, tmp_path, ordered=ordered)
    leaves = tensors(d)

    def once() -> list[Tensor]:
        out, lse = attn(*leaves, return_lse=True, **inputs)
        return [out, lse, *torch.autograd.grad(out.float().square().sum() + lse.sum(), leaves)]

    parts, again = once(), once()
    alike = [torch.equal(first, second) for first, second in zip(parts, again, strict=True)]
    if not ordered:
        del alike[2]  # without an order a fused kernel sums dQ as its programs come
    assert all(alike)
    monkeypatch.setattr(split, "parts_for", lambda rows, turns, least, device: 1)
    attn, _ = compiled(name, tmp_path, ordered=ordered)  # of which no call is known
    for first, second in zip(parts, once(), strict=True):
        assert relative_error(first, second) <= 4e-3


@pytest.mark.parametrize("name", PATTERNS)
def test_graphs(name: str, tmp_path: Path) -> None:
    attn, inputs = compiled(name, tmp_path)
    q, k, v = (each.detach() for each in tensors())
    expected = attn(q, k, v, **inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = attn(q, k, v, **inputs)
    found.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found, expected)
