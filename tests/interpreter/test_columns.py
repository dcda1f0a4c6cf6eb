"""Reductions over all queries, and selections among keys and distances, by kernels in Triton's interpreter.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import reference
from spdsl.codegen.chains import scans
from spdsl.codegen.chains.alone import is_alone
from spdsl.runtime import graphs, inputs
from spdsl.runtime.chains import made_whole
from spdsl.semantics.graph import Select
from tests.interpreter.test_chains import dense
from tests.interpreter.test_searches import whole

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

EXACT = """pattern some() {{
  axis blk = token by 8
  let seen = score(Q, K, scale = 1.0) |> only({only})
  let key = seen |> {kind}(over = q)
  let distance = seen |> {kind}(per = q - k)
  export key = key |> force(k < 2) |> top(7)
  export distance = distance |> force(0 <= q - k < 2) |> top(9)
  keep causal
}}
"""


def exported(text: str, q: Tensor, k: Tensor, *, kernels: bool) -> dict[str, Tensor]:
    pattern = spdsl.compile(spdsl.loads(text)).bind(q.shape[1], k.shape[1], q.shape[3])
    call = graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=k.shape[2] - q.shape[2], kernels=kernels)
    if kernels:
        words = graphs.makers(pattern, call)
        assert len(words) == 6, words
        assert all(each.startswith("by kernels") for each in words.values()), words
        return graphs.exports(pattern, call)
    return reference.exports(pattern, q, k, k, tables={}, q_start=call.q_start)


@pytest.mark.parametrize(
    ("kind", "only", "sizes"),
    [
        ("sum", "causal and q >= n - 20", (1, 2, 1, 150, 150)),
        ("max", "(q + k) % 3 == 0 and q < 70", (2, 2, 2, 40, 90)),
        ("min", "causal", (1, 1, 1, 70, 70)),
    ],
)
def test_values_of_keys_and_of_distances(kind: str, only: str, sizes: tuple[int, ...]) -> None:
    """Exact scores, of which sets are those of the reference, ties included."""
    batch, heads, groups, nq, n = sizes
    q, k = whole(batch, heads, nq, 16).half(), whole(batch, groups, n, 16, seed=1).half()
    text = EXACT.format(kind=kind, only=only)
    found, wanted = (exported(text, q, k, kernels=way) for way in (True, False))
    for name, each in wanted.items():
        assert torch.equal(found[name].expand(each.shape), each), name
        assert bool(each.any())


def test_scores_that_are_none_and_infinite() -> None:
    """A NaN is no largest, and infinite ones are numbers; queries before the first position do not exist."""
    q, k = whole(1, 1, 33, 16).half(), whole(1, 1, 40, 16, seed=1).half()
    k[0, 0, 5], k[0, 0, 9, 0], q[0, 0, 30, 3] = float("nan"), float("inf"), float("-inf")
    text = EXACT.format(kind="max", only="causal")
    found, wanted = (exported(text, q, k, kernels=way) for way in (True, False))
    for name, each in wanted.items():
        assert torch.equal(found[name].expand(each.shape), each), name


@pytest.mark.parametrize("scanned", [2, 128])
def test_vertical_slash(scanned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is made by kernels, and is what torch makes, whether tiles are looked for in one run or in several."""
    monkeypatch.setattr(scans, "SCANNED", scanned)
    # Kernels of one pattern are written once.
    pattern = spdsl.compile("vertical_slash", columns=40 + (scanned == 2), diagonals=41, probe=16, block=8).bind(
        4, 2, 16
    )
    q, k = whole(2, 4, 37, 16).half(), whole(2, 2, 150, 16, seed=1).half()
    found = []
    for kernels in (True, False):
        call = graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=113, kernels=kernels)
        words = graphs.makers(pattern, call)
        assert not kernels or all(each.startswith("by kernels") for each in words.values()), words
        arrays = inputs.arrays_of(pattern, call, grad=False)
        assert pattern.graph is not None
        columns = next(stage.name for stage in pattern.graph.stages if isinstance(stage, Select))
        (lists,) = graphs.selections(pattern, call).values()
        found.append((arrays.whole(columns), dense(lists, arrays.lines.size("k.blk"))))
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)
        assert 0 < int(mine.sum()) < mine.numel()


FROM = """pattern some() {{
  let share = score(Q, K) |> only(k <= q and {after}) |> softmax |> sum(over = h)
  keep share |> top(5)
}}
"""


@pytest.mark.parametrize("after", ["k >= 64", "q - k < 70"])
def test_keys_that_begin_behind_the_first_tile(after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles before those that a condition touches hold nothing; whole ones begin and end anywhere in a run of tiles."""
    monkeypatch.setattr(scans, "SCANNED", 2)
    pattern = spdsl.compile(spdsl.loads(FROM.format(after=after))).bind(2, 1, 16)
    q, k = whole(1, 2, 20, 16).half(), whole(1, 1, 150, 16, seed=1).half()
    found = []
    for kernels in (True, False):
        call = graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=130, kernels=kernels)
        (lists,) = graphs.selections(pattern, call).values()
        found.append(dense(lists, 150))
    assert torch.equal(*found)


def test_votes_among_keys() -> None:
    """Sums over neighbours stay with torch; what they are made of, and what is chosen by them, is made by kernels."""
    pattern = spdsl.compile("snapkv", cap=20, probe=16, width=5).bind(4, 2, 16)
    q, k = whole(2, 4, 90, 16).half(), whole(2, 2, 90, 16, seed=1).half()
    sets = []
    for kernels in (True, False):
        call = graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=kernels)
        words = graphs.makers(pattern, call)
        assert not kernels or all(each.startswith("by kernels") for each in words.values()), words
        sets.append(graphs.exports(pattern, call)["chosen"])
    assert torch.equal(*sets)
    assert bool((sets[0].sum(-1) == 20).all())


MASS = """pattern some() {
  let seen = score(Q, K) |> only(causal and q >= n - 16) |> softmax
  export key = seen |> sum(over = q) |> top_p(0.7)
  export distance = seen |> sum(per = q - k) |> top_p(0.8)
  keep causal
}
"""


def test_shares_of_the_mass() -> None:
    q, k = whole(2, 4, 70, 16).half(), whole(2, 2, 70, 16, seed=1).half()
    found = exported(MASS, q, k, kernels=True)
    pattern = spdsl.compile(spdsl.loads(MASS)).bind(4, 2, 16)
    wanted = graphs.exports(pattern, graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=False))
    for name, each in wanted.items():
        assert torch.equal(found[name], each), name
        assert 0 < int(each.sum()) < each.numel()


ABSENT_ONES = """pattern some() {
  let seen = score(Q, K) |> only(causal and q >= n - 16) |> softmax |> sum(over = q)
  export most = seen |> only(k >= 140) |> top_p(0.5, least = 30)
  export few = seen |> only(k >= 140) |> top(30)
  export share = seen |> only(k >= 140) |> top_p(0.99)
  keep causal
}
"""


def test_tiles_without_any_key() -> None:
    """What is absent is not chosen, however many are asked for, whatever memory held before."""
    q, k = whole(1, 2, 150, 16).half(), whole(1, 1, 150, 16, seed=1).half()
    found = exported_sets(ABSENT_ONES, q, k)
    for name, each in found.items():
        assert int(each.sum()) == (2 * 10 if name != "share" else int(each[..., 140:].sum())), name
        assert not bool(each[..., :140].any()), name


def exported_sets(text: str, q: Tensor, k: Tensor) -> dict[str, Tensor]:
    pattern = spdsl.compile(spdsl.loads(text)).bind(q.shape[1], k.shape[1], q.shape[3])
    made = graphs.exports(pattern, graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=True))
    wanted = graphs.exports(pattern, graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=False))
    assert all(torch.equal(made[name], each) for name, each in wanted.items())
    return made


ALONE = """pattern some() {
  axis blk = token by 8
  let seen = score(Q, K) |> only(causal and q >= n - 16) |> softmax
  let column = seen |> sum(over = q)
  let shown = (column |> sum(per = k.blk)) / 16
  let spread = sum(if shown > 0.0 then -shown * log(shown) else 0.0, over = k.blk)
  let most = max(shown, over = k.blk)
  let trusted = spread > 2.0 and most < 0.35
  let key = if trusted then column |> top(3) else column |> top(7)
  let slash = seen |> sum(per = q - k)
  let far = if trusted then slash |> top(2) else slash |> top(5)
  keep causal and (key or any(far, per = (q.blk, k.blk)))
}
"""


def test_numbers_of_heads() -> None:
    """Conditions without queries, and reductions to one number for each head, are kernels, and what torch makes."""
    pattern = spdsl.compile(spdsl.loads(ALONE)).bind(6, 2, 16)
    assert pattern.graph is not None
    names = [stage.name for stage in pattern.graph.stages if is_alone(stage)]
    assert len(names) >= 5
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(2, heads, 90, 16, generator=generator) for heads in (6, 2))
    q[:, 4], k[:, 1, 5] = 1.2, 1.2  # of one head one key has most
    found = []
    for kernels in (True, False):
        call = graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=kernels)
        arrays = inputs.arrays_of(pattern, call, grad=False)
        found.append([arrays.whole(name) for name in names])
        assert not kernels or all(made_whole(arrays, name) is not None for name in names)
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(*torch.broadcast_tensors(mine, theirs))
    conditions = [each for each in found[0] if each.dtype == torch.bool and each.dim() == 2 and each.shape[1] == 6]
    assert any(bool(each.any()) and not bool(each.all()) for each in conditions)


@pytest.mark.parametrize("nq", [24, 7])
def test_attention_over_chosen_distances(nq: int) -> None:
    """Distances count from the first query, of which kernels of square calls are not told."""
    chosen = "score(Q, K, scale = 1.0) |> only(causal and q >= n - 3) |> sum(per = q - k) |> top(4, over = q - k)"
    attn = spdsl.compile(spdsl.loads(f"pattern some() {{ let c = {chosen} keep causal and c }}"), backend="triton")
    q, k = whole(1, 2, nq, 16), whole(1, 2, 24, 16, seed=1)
    leaves = [q.requires_grad_(), k.requires_grad_(), k.detach().clone().requires_grad_()]
    out, wanted = attn(*leaves), attn.reference(*leaves)
    assert isinstance(out, Tensor)
    assert isinstance(wanted, Tensor)
    assert torch.allclose(out.double(), wanted, rtol=1e-5, atol=1e-6)
    d_out = torch.ones_like(out)
    found, exact = torch.autograd.grad(out, leaves, d_out), torch.autograd.grad(wanted, leaves, d_out.double())
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
