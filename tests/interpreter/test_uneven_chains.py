"""Selections and means along axes by tables, by kernels in Triton's interpreter: the sets that torch chooses.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os
from typing import Literal

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.runtime import chains, graphs, inputs
from spdsl.runtime.run_means import of_runs
from spdsl.runtime.runs import Runs
from spdsl.semantics.graph import Select
from tests.interpreter.test_chains import dense
from tests.library.compare import TOLERANCE, relative_error

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

LENGTH = 61


def pieces() -> Tensor:
    """Members of 1 to some 12 tokens, one of which has a single one."""
    starts = torch.zeros(LENGTH, dtype=torch.bool)
    starts[[7, 8, 20, 31, 43, 52]] = True
    return starts.cumsum(0).int()


def given(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    count = int(pieces()[-1]) + 1
    if name == "dhsa":
        return {"cut": pieces()}
    gains = torch.rand(4, count, count, generator=generator) < 0.5
    return {"piece": pieces(), "text": torch.arange(LENGTH) >= LENGTH - 3, "gains": gains}


@pytest.mark.parametrize(
    ("name", "parameters"), [("dhsa", {"budget": 17, "local": 5}), ("rectified", {"mass": 0.4, "picks": 2})]
)
def test_members_of_tables_have_sizes_and_ends(name: str, parameters: dict[str, object]) -> None:
    """What a member's tokens have in common is one number for each, read by kernels where it is needed."""
    pattern = spdsl.compile(name, **parameters).bind(4, 2, 16)  # type: ignore[arg-type]
    assert pattern.graph is not None
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(1, 4, LENGTH, 16, generator=generator).half()
    k = torch.randn(1, 2, LENGTH, 16, generator=generator).half()
    found = {}
    for kernels in (True, False):
        call = graphs.Inputs(q=q, k=k, v=k, tables=given(name), q_start=0, kernels=kernels)
        arrays = inputs.arrays_of(pattern, call, grad=False)
        chosen = [stage.name for stage in pattern.graph.stages if isinstance(stage, Select)]
        assert not kernels or all(word.startswith("by kernels") for word in graphs.makers(pattern, call).values())
        found[kernels] = {each: graphs.lists(arrays, each) for each in chosen}
    for each, lists in found[True].items():
        columns = LENGTH if name == "dhsa" else int(pieces()[-1]) + 1
        sets = dense(lists, columns)
        assert torch.equal(sets, dense(found[False][each], columns)), each
        assert bool(sets.any(-1).all())
        assert not bool(sets.all())


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize(("rows", "offset"), [(90, 0), (40, 50), (95, -5)])
def test_means_of_runs(rows: int, offset: int, mean: bool) -> None:
    """Long and short runs, some that have no row, rows at negative positions, and gradients."""
    table = torch.tensor([0] * 37 + [1] + [3] * 9 + [4] * 43, dtype=torch.int32)
    x = torch.randn(2, rows, 3, 10, requires_grad=True)
    found = of_runs(x.transpose(1, 2), Runs.of(table[None], 5), offset, "mean" if mean else "sum")
    at = torch.arange(rows) + offset
    inside = ((table[at.clamp(min=0)] == torch.arange(5)[:, None]) & (at >= 0)).double()
    if mean:
        inside = inside / inside.sum(-1, keepdim=True).clamp(min=1)
    wanted = inside @ x.transpose(1, 2).double()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    weight = torch.randn(wanted.shape, dtype=torch.float64)
    (one,) = torch.autograd.grad((found * weight.float()).sum(), x)
    (two,) = torch.autograd.grad((wanted * weight).sum(), x)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["max", "min"])
def test_extremes_of_runs(kind: Literal["max", "min"]) -> None:
    """A NaN is absent, infinite numbers are not, and of nothing the result is 0: as torch makes them."""
    text = f"axis part = token by cut  export found = score(Q, {kind}(K, per = k.part))"
    pattern = spdsl.compile(spdsl.loads(f"pattern program() {{ input cut: int[token] sorted  {text}  keep causal }}"))
    q, k = torch.randn(1, 2, 9, 16).half(), torch.randn(1, 1, LENGTH, 16).half()
    k[0, 0, 7, :4], k[0, 0, 40, 2], k[0, 0, 41, 3] = torch.nan, torch.inf, torch.nan
    one, two = (
        graphs.exports(
            pattern.bind(2, 1, 16),
            graphs.Inputs(q=q, k=k, v=k, tables={"cut": pieces()}, q_start=0, kernels=kernels),
        )["found"]
        for kernels in (True, False)
    )
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("nq", "q_start"), [(25, 0), (10, 12), (6, -3)])
def test_queries_behind_the_tokens_of_a_table(nq: int, q_start: int) -> None:
    """They are of the run of the last token, with which they have a mean."""
    text = """pattern behind() {
  input cut: int[token] sorted
  axis part = token by cut
  let near = attend { keep causal and q - k < 8 }
  return near + at(mean(Q, per = q.part), q)
}
"""
    attn = spdsl.compile(spdsl.loads(text), backend="triton")
    q, k = torch.randn(1, 2, nq, 16), torch.randn(1, 1, 20, 16)
    cut = torch.tensor([0] * 4 + [1] * 9 + [3] * 7).int()
    out, expected = (call(q, k, k, cut=cut, q_start=q_start) for call in (attn, attn.reference))
    assert isinstance(out, Tensor)
    assert isinstance(expected, Tensor)
    assert relative_error(out, expected) <= 1e-5


COARSE = """pattern coarse() {{
  input cut: int[token] sorted
  axis chunk = token by cut
  let scored = {scored} |> at(k) |> only(causal)
  keep scored |> top(9)
}}
"""


@pytest.mark.parametrize(
    "scored",
    [
        "score(Q, sum(K, per = k.chunk))",
        "(softmax(score(Q, sum(K, per = k.chunk))) |> sum(per = g))",
    ],
)
def test_values_of_members_are_those_of_their_keys(scored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows at a time, and of fewer queries than keys."""
    pattern = spdsl.compile(spdsl.loads(COARSE.format(scored=scored))).bind(2, 1, 16)
    monkeypatch.setattr(chains, "KEYS", 64 * 2 * 5)
    generator = torch.Generator().manual_seed(2)
    q = torch.randint(-2, 3, (1, 2, 11, 16), generator=generator).half()
    k = torch.randint(-2, 3, (1, 1, LENGTH, 16), generator=generator).half()
    found = {}
    for way in (True, False):
        call = graphs.Inputs(q=q, k=k, v=k, tables={"cut": pieces()}, q_start=LENGTH - 11, kernels=way)
        ((_, words),) = graphs.makers(pattern, call).items()
        assert not way or words.startswith("by kernels: ")
        assert not way or "pairs_" in words
        (lists,) = graphs.selections(pattern, call).values()
        found[way] = dense(lists, LENGTH)
    assert torch.equal(found[True], found[False])
    assert bool(found[True].any(-1).all())


POOLED = """pattern pooled() {
  input cut: int[token] sorted
  axis chunk = token by cut
  return attend(Q, mean(K, per = k.chunk), sum(V, per = k.chunk)) { keep k.chunk.first <= q }
}
"""


@pytest.mark.parametrize(("dtype", "nq"), [(torch.float32, LENGTH), (torch.float16, 23)])
def test_gradients_of_pooled_keys(dtype: torch.dtype, nq: int) -> None:
    attn = spdsl.compile(spdsl.loads(POOLED), backend="triton")
    generator = torch.Generator().manual_seed(3)
    shapes = ((2, 4, nq, 16), (2, 2, LENGTH, 16), (2, 2, LENGTH, 16))
    leaves = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    out, wanted = attn(*leaves, cut=pieces()), attn.reference(*leaves, cut=pieces())
    assert isinstance(out, Tensor)
    assert isinstance(wanted, Tensor)
    assert relative_error(out, wanted) <= TOLERANCE[dtype]
    d_out = torch.randn(out.shape, generator=generator).to(dtype)
    pairs = zip(
        torch.autograd.grad(out, leaves, d_out), torch.autograd.grad(wanted, leaves, d_out.double()), strict=True
    )
    for one, two in pairs:
        assert relative_error(one, two) <= 2 * TOLERANCE[dtype]
