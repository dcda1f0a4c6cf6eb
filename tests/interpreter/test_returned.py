"""Arithmetic on what softmaxes return, by its own kernels in Triton's interpreter, against the float64 reference."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.codegen.returned import returned
from spdsl.runtime import returned as runtime
from tests.library.compare import relative_error

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

HEADS, N, D = 4, 21, 16

BRANCHES = """
  let near = attend { keep causal and q - k < 8 }
  let far = attend { keep q - k >= 6 }
"""

BY_BLOCK = """
  axis blk = token by 4
  input gate: float[h, q.blk]
  let near = attend { keep causal and q - k < 8 }
  let far = attend(mean(Q, per = q.blk), mean(K, per = k.blk), mean(V, per = k.blk)) { keep k.blk <= q.blk }
"""

BY_RUN = """
  input piece: int[token] sorted
  axis pc = token by piece
  input gate: float[h, q.pc]
  let near = attend { keep causal and q - k < 8 }
  let far = mix(softmax(score(mean(Q, per = q.pc), K)), V)
"""

CASES: dict[str, tuple[str, str, dict[str, tuple[int, ...]]]] = {
    "gates": ("gate: float[2, h, q]", "gate[0] * near + gate[1] * far", {"gate": (2, HEADS, N)}),
    "gates of every sequence": ("gate: float[2, h, q]", "gate[0] * near - gate[1] * far", {"gate": (2, 2, HEADS, N)}),
    "gates of all features": ("gate: float[h, q, d]", "gate * near + far", {"gate": (HEADS, N, D)}),
    "one gate for all heads": ("gate: float[q]", "gate[q] * near + (1 - gate[q]) * far", {"gate": (N,)}),
    "one gate for all queries": ("gate: float[h]", "gate[h] * near + far / gate[h]", {"gate": (HEADS,)}),
    "by feature and query": ("gate: float[q, d]", "near + gate * far", {"gate": (2, N, D)}),
    "by token": ("gate: float[token]", "gate[q] * near + far", {"gate": (N,)}),
    "one number": ("gate: float[3]", "gate[2] * near + gate[0] * gate[2] * far", {"gate": (3,)}),
    "functions": ("gate: float[h, q]", "exp(gate) * near + max(near, far) * 0.5", {"gate": (HEADS, N)}),
    "what blocks of queries return": ("", "at(gate, q) * near + at(far, q)", {"gate": (HEADS, 6)}),
    "gates of groups": ("gate: float[g, q]", "gate * near + far", {"gate": (2, N)}),
    "means so far": ("gate: float[h, q]", "gate * near + (1 - gate) * mean(V, upto = q)", {"gate": (HEADS, N)}),
    "what runs of queries have": ("", "at(gate, q) * near + at(far, q)", {"piece": (N,), "gate": (HEADS, 5)}),
    "by head": ("gate: float[h, q]", "if h < 2 then gate * near else 1.0 * far", {"gate": (HEADS, N)}),
}


@pytest.mark.parametrize(("name", "nq"), [*((name, N) for name in CASES), ("gates", 11), ("by token", 11)])
def test_gradients(name: str, nq: int, monkeypatch: pytest.MonkeyPatch) -> None:
    declared, result, sizes = CASES[name]
    head = f"  input {declared}\n{BRANCHES}" if declared else BY_RUN if "piece" in sizes else BY_BLOCK
    attn = spdsl.compile(spdsl.loads(f"pattern program() {{\n{head}  return {result}\n}}"), backend="triton")
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, HEADS, nq, D, generator=generator)
    k, v = torch.randn(2, 2, 2, N, D, generator=generator)
    by_token = "token" in declared
    inputs: dict[str, Tensor] = {
        each: torch.rand([nq if length == N and not by_token else length for length in shape], generator=generator)
        + 0.5
        for each, shape in sizes.items()
    }
    if "piece" in inputs:
        inputs["piece"] = (inputs["piece"].cumsum(0) * 0.2).int()
        assert int(inputs["piece"][-1]) == 4
    leaves = [each.requires_grad_() for each in (q, k, v, *inputs.values()) if each.is_floating_point()]
    d_out = torch.randn(2, HEADS, nq, D, generator=generator)
    made: list[Tensor | None] = []
    kernel = runtime.by_kernel

    def noted(*arguments: Any) -> Tensor | None:
        made.append(kernel(*arguments))
        return made[-1]

    monkeypatch.setattr(runtime, "by_kernel", noted)
    out = attn(q, k, v, **inputs)  # type: ignore[arg-type]
    assert isinstance(out, Tensor)
    assert [each is out for each in made] == [True]
    found = torch.autograd.grad(out, leaves, d_out)
    expected = attn.reference(q, k, v, **inputs)  # type: ignore[arg-type]
    assert isinstance(expected, Tensor)
    wanted = torch.autograd.grad(expected, leaves, d_out.double())
    assert relative_error(out, expected) <= 1e-5
    for one, other in zip(found, wanted, strict=True):
        assert relative_error(one, other) <= 2e-5


def test_second_derivatives_are_refused() -> None:
    text = f"pattern program() {{\n  input gate: float[h, q]\n{BRANCHES}  return gate * near + far\n}}"
    attn = spdsl.compile(spdsl.loads(text), backend="triton")
    q = torch.randn(1, HEADS, N, D, requires_grad=True)
    out = attn(q, q, q, gate=torch.rand(HEADS, N))
    assert isinstance(out, Tensor)
    with pytest.raises(spdsl.SpatError, match="SP349"):
        torch.autograd.grad(out.sum(), q, create_graph=True)


def test_what_torch_computes() -> None:
    text = f"pattern program() {{\n  input gate: float[token]\n{BRANCHES}  return gate[q // 2] * near + far\n}}"
    graph = spdsl.compile(spdsl.loads(text)).bind(HEADS, 2, D).graph
    assert graph is not None
    labels = {"gate": ("token",), **{stage.name: stage.axes for stage in graph.stages}}
    assert returned(graph.result, labels, {}) == "the way in which `gate` is read"


def test_more_queries_than_keys() -> None:
    """There are as many blocks as keys have; queries past the last of them have its gate."""
    head = "  axis blk = token by 4\n  input gate: float[h, q.blk]\n  let near = attend { keep k < 8 }\n"
    attn = spdsl.compile(
        spdsl.loads(f"pattern program() {{\n{head}  return gate[h, q.blk] * near\n}}"), backend="triton"
    )
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 2, 23, D, generator=generator), torch.randn(1, 2, 10, D, generator=generator)
    room = torch.full((2, 40), 777.0)
    gate = room.flatten()[:6].view(2, 3)  # what lies behind is not its own
    gate.copy_(torch.rand(2, 3, generator=generator))
    found, expected = attn(q, k, k, gate=gate, q_start=0), attn.reference(q, k, k, gate=gate, q_start=0)
    assert isinstance(found, Tensor)
    assert isinstance(expected, Tensor)
    assert relative_error(found, expected) < 1e-5
