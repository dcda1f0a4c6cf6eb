"""Searches inside of blocks and reductions over all keys, by kernels in Triton's interpreter: what torch makes of them.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl import reference
from spdsl.runtime import among, graphs, inputs
from spdsl.semantics.graph import Select
from spdsl.semantics.nodes import BoundPattern
from tests.interpreter.test_chains import dense
from tests.library.cases import Case, Sizes
from tests.library.test_selections import check

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

SEARCH = {
    "rows": 8, "chunk": (16, 8, 4), "budget": (64, 24, 8), "every": 2, "sinks": 3, "window": 9,
}  # fmt: skip


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Small whole numbers, whose products are exact, so that there are ties and no near ties."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def lists_by(pattern: BoundPattern, q: Tensor, k: Tensor, start: int, *, kernels: bool) -> dict[str, Tensor]:
    """All selections of a pattern, also those that other selections read alone."""
    call = graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=start, kernels=kernels)
    arrays = inputs.arrays_of(pattern, call, grad=False)
    assert pattern.graph is not None
    chosen = [stage.name for stage in pattern.graph.stages if isinstance(stage, Select)]
    if kernels:
        from spdsl.runtime.chain_kernels import lowered

        for name in chosen:
            assert not isinstance(lowered(arrays, name), str), lowered(arrays, name)
    return {name: graphs.lists(arrays, name) for name in chosen}


@pytest.mark.parametrize(("nq", "n"), [(67, 67), (17, 58)])
def test_hip_chooses_what_torch_does(nq: int, n: int) -> None:
    pattern = spdsl.compile("hip", **SEARCH).bind(4, 2, 16)  # type: ignore[arg-type]
    q, k = whole(1, 4, nq, 16), whole(1, 2, n, 16, seed=1)
    found, wanted = (lists_by(pattern, q, k, n - nq, kernels=way) for way in (True, False))
    some = 0
    for name, lists in found.items():
        assert torch.equal(dense(lists, n), dense(wanted[name], n).expand_as(dense(lists, n))), name
        some += int(dense(lists, n).sum())
    assert some > 50


def test_tiles_of_which_everything_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from the window no condition is looked at; a NaN is absent there, too."""
    monkeypatch.setattr(among, "SEARCHED", (8, 4, 1))
    parameters = {"rows": 8, "chunk": (16, 4, 2), "budget": (64, 32, 12), "every": 2, "sinks": 3, "window": 9}
    pattern = spdsl.compile("hip", **parameters).bind(1, 1, 16)  # type: ignore[arg-type]
    q, k = whole(1, 1, 130, 16), whole(1, 1, 130, 16, seed=1)
    k[0, 0, 40:44] = float("nan")
    k[0, 0, 77] = float("nan")
    found, wanted = (lists_by(pattern, q, k, 0, kernels=way) for way in (True, False))
    for name, lists in found.items():
        assert torch.equal(dense(lists, 130), dense(wanted[name], 130)), name


def test_a_search_that_meets_numbers_that_are_none() -> None:
    """A NaN is absent: it is never better than anything, and where all queries have one, the largest is 0."""
    pattern = spdsl.compile("hip", **SEARCH).bind(1, 1, 16)  # type: ignore[arg-type]
    q, k = whole(1, 1, 64, 16), whole(1, 1, 64, 16, seed=1)
    k[0, 0, 16:32] = float("nan")
    k[0, 0, 37] = float("nan")
    found, wanted = (lists_by(pattern, q, k, 0, kernels=way) for way in (True, False))
    for name, lists in found.items():
        assert torch.equal(dense(lists, 64), dense(wanted[name], 64)), name


CORNERS = """pattern corners() {
  axis row = token by 4
  axis blk = token by 8
  let found = score(Q, K) |> only(k <= q) |> max(per = q.row) |> descend(per = k.blk) |> top(2)
  export chosen = found
  keep causal and found
}
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_search_that_meets_infinite_scores(seed: int) -> None:
    """They are numbers in their order: −inf is more than nothing, also where other queries have a NaN."""
    pattern = spdsl.compile(spdsl.loads(CORNERS)).bind(1, 1, 16)
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.zeros(2, 1, 1, 61, 16)
    of_q, of_k = torch.tensor([1.0, -1.0, float("nan")]), torch.tensor([0.0, 1.0, *[float("-inf")] * 3, float("nan")])
    q[..., 0] = of_q[torch.randint(0, 3, (61,), generator=generator)]
    k[..., 0] = of_k[torch.randint(0, 6, (61,), generator=generator)]
    q[..., 28:32, 0] = torch.tensor([1.0, 1.0, float("nan"), float("nan")])
    k[..., :32, 0] = float("-inf")
    found, plain = (lists_by(pattern, q, k, 0, kernels=way) for way in (True, False))
    (name,) = found
    wanted = reference.exports(pattern, q, k, k, tables={}, q_start=0)["chosen"]
    assert torch.equal(dense(found[name], 8), dense(plain[name], 8))
    assert torch.equal(dense(found[name], 8), wanted)
    # The row of queries 28 to 31 meets −inf in all blocks, and in the last one keys that only those with a NaN see.
    assert wanted[0, 0, 7].nonzero().flatten().tolist() == [0, 3]


REDUCED = """pattern some() {{
  axis blk = token by 8
  let seen = score(Q, K) |> only({only})
  let row = seen |> {kind}(over = k)
  let worth = seen {then}
  keep causal and worth > {bound}
}}
"""


@pytest.mark.parametrize("only", ["causal", "causal and (q + k) % 3 == 0"])
@pytest.mark.parametrize(
    ("kind", "then", "bound"),
    [
        ("max", "", "row - 1.5"),
        ("min", "", "row + 1.5"),
        ("sum", "|> max(per = q.blk)", "row * 0.1 |> max(per = q.blk)"),
    ],
    ids=("max", "min", "sum"),
)
def test_reductions_over_all_keys(kind: str, then: str, bound: str, only: str) -> None:
    """What later stages read of a row is what torch finds, also where the row is one of blocks."""
    if kind == "sum":
        bound = "0.0 + (row |> max(per = q.blk))"
    text = REDUCED.format(only=only, kind=kind, then=then, bound=bound)
    pattern = spdsl.compile(spdsl.loads(text)).bind(2, 1, 16)
    q, k = whole(1, 2, 50, 16), whole(1, 1, 50, 16, seed=1)
    sets = []
    for kernels in (True, False):
        call = graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=kernels)
        words = graphs.makers(pattern, call)
        assert words
        assert not kernels or all(each.startswith("by kernels") for each in words.values()), words
        sets.append({name: dense(lists, 50) for name, lists in graphs.selections(pattern, call).items()})
    for name, found in sets[0].items():
        assert torch.equal(found, sets[1][name].expand_as(found))
        assert bool(found.any())


def test_flashprefill() -> None:
    """Its three passes over the scores are kernels, and the whole pattern is that of the reference."""
    parameters = {"block": 8, "alpha": 0.4, "sinks": 1, "window": 2, "dense": 1}
    pattern = spdsl.compile("flashprefill", **parameters).bind(4, 2, 8)  # type: ignore[arg-type]
    q, k = torch.randn(1, 4, 90, 8), torch.randn(1, 2, 90, 8)
    words = graphs.makers(pattern, graphs.Inputs(q=q, k=k, v=k, tables={}, q_start=0, kernels=True))
    assert all(each.startswith("by kernels") for each in words.values()), words
    shape = Sizes(batch=1, heads=4, groups=2, nq=90, n=90)
    check(Case(name="flashprefill", parameters=parameters), shape, dtype=torch.float16, backend="triton")
