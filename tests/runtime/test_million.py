"""A million tokens, with sinks, a window, a stride and documents: what a call allocates, waits for and costs.

Kernels are not run: launches are recorded, and tensors have shapes alone, so that whatever asks for a value fails.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Plan, Problem
from spdsl.analysis.tiles import SlotWalk
from spdsl.runtime.calls import Call
from spdsl.runtime.launch import Loaded
from spdsl.runtime.lists import lists_for
from spdsl.runtime.split import INTERPRETER, PARTS
from spdsl.runtime.tile_grid import TileGrid
from spdsl.runtime.triton_engine import TritonEngine
from spdsl.runtime.visits import slot_visits
from tests.library.bound import program

TOKENS = 1 << 20

MOST_CALLED = 1_600
"""Functions of Python that a call takes at most, both ways, besides what torch does: there are some 1,300, which take
less than a millisecond of a quiet core."""
HEADS, GROUPS, DIM = 8, 2, 128
TEXT = """pattern composed() {
  input doc: int[token] sorted
  keep causal and (q - k < 1024 or k < 64 or (q - k) % 512 == 0) and doc[q] == doc[k]
}"""


class Made(TorchDispatchMode):
    """Remembers every tensor that is made, by shape and bytes; views and results in place are none."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[tuple[tuple[int, ...], int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        self.tensors += [
            (tuple(x.shape), x.untyped_storage().nbytes())
            for x in tree_leaves(result)
            if isinstance(x, Tensor) and _storage(x) not in given
        ]
        return result


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


@pytest.fixture(scope="module")
def planned() -> Plan:
    pattern = program(TEXT, heads=HEADS, groups=GROUPS, head_dim=DIM)
    problem = Problem(pattern=pattern, dtype="bf16", value_dim=DIM, shape="square", tables=(("doc", "int32"),))
    return plan(problem, "sm_90")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that would have been launched."""
    found: list[str] = []
    monkeypatch.setattr(Loaded, "_run", lambda self, kernel, *rest: found.append(kernel.name))
    return found


def call_of(planned: Plan, tokens: int = TOKENS) -> Call:
    """A call of tensors without values."""
    q = torch.empty(1, HEADS, tokens, DIM, dtype=torch.bfloat16, device="meta")
    k = torch.empty(1, GROUPS, tokens, DIM, dtype=torch.bfloat16, device="meta")
    doc = torch.empty(1, tokens, dtype=torch.int32, device="meta")
    return Call(plan=planned, q=q, k=k, v=torch.empty_like(k), tables={"doc": doc})


def both_ways(call: Call) -> None:
    engine = TritonEngine()
    out, lse = engine.forward(lists_for(call, ("forward",)))
    engine.backward(lists_for(call, ("dq", "dkdv")), out, lse, out, None, frozenset({"q", "k", "v"}))


@pytest.mark.parametrize("deterministic", [True, False])
def test_nothing_is_allocated_but_results_and_intervals(
    planned: Plan, launches: list[str], deterministic: bool
) -> None:
    call = replace(call_of(planned), deterministic=deterministic)
    both_ways(call)
    launches.clear()
    with Made() as made:
        both_ways(call)
    rows, keys = HEADS * TOKENS, GROUPS * TOKENS
    results = [2 * DIM * rows, 2 * DIM * rows, 2 * DIM * keys, 2 * DIM * keys]  # O, dQ, dK, dV
    statistics = [4 * rows] * 3  # LSE, LSE in powers of two, delta
    (other,) = planned.more
    assert planned.fused is not None
    results.append(4 * DIM * rows)  # the sums of dQ
    if deterministic:
        words = TOKENS // planned.fused.block_k // 32
        results.append(4 * HEADS * (TOKENS // planned.fused.block_q) * (1 + words))  # who adds when
    kernels = [planned.forward, other.forward, planned.fused, other.dq, other.dkdv]
    intervals = [16 * TOKENS // (each.block_k if each.by == "key" else each.block_q) for each in kernels]
    sizes = [size for _, size in made.tensors]
    for size in results + statistics + intervals:
        sizes.remove(size)
    # What is left are the sums of parts of long rows: as many programs as run side by side, twice.
    blocks = [max(each.block_q, each.block_k) * 2 * DIM * 4 for each in kernels]
    assert all(size <= PARTS * INTERPRETER * max(blocks) for size in sizes)
    assert len(sizes) <= 6 * 2
    assert sum(name.startswith("intervals") for name in launches) == len(kernels)
    names = {"forward", "delta", "dq", "dkdv", "fused", "touched", "ordered", "scaled"}
    first = ["touched", "ordered"] if deterministic else ["fused"]
    kinds = ["forward", "forward", "delta", *first, "scaled", "dq", "dkdv"]
    assert [name for name in launches if name in names] == kinds


def test_little_work_of_the_host(planned: Plan, launches: list[str]) -> None:
    """All but the launches themselves, forward and backward, as functions that are called: about a millisecond."""
    call = call_of(planned)
    both_ways(call)
    called: list[str] = []
    sys.setprofile(lambda frame, event, arg: called.append(event) if event == "call" else None)
    try:
        both_ways(call)
    finally:
        sys.setprofile(None)
    assert len(called) < MOST_CALLED, len(called)


def test_time_and_launches_do_not_depend_on_the_length(planned: Plan, launches: list[str]) -> None:
    names = []
    for tokens in (4096, TOKENS, TOKENS - 77):
        both_ways(call_of(planned, tokens))
        names.append(tuple(launches))
        launches.clear()
    assert names[0] == names[1] == names[2]


def test_counts_and_metadata(planned: Plan) -> None:
    """Counted in closed form, from intervals of documents of a few thousand tokens."""
    generator = torch.Generator().manual_seed(0)
    doc = (torch.rand(1, TOKENS, generator=generator) < 1 / 3000).cumsum(1).int()
    q = torch.empty(1, HEADS, TOKENS, 1)
    call = Call(plan=planned, q=q, k=q[:, :GROUPS], v=q, tables={"doc": doc})
    for kernel in planned.kernels:
        assert isinstance(kernel.walk, SlotWalk)
        found = slot_visits(call, kernel.walk, TileGrid.of(kernel))
        own = kernel.block_k if kernel.by == "key" else kernel.block_q
        assert found.metadata == 16 * TOKENS // own
        # A window of a thousand in documents of three thousand, and a few tiles more for sinks and strides.
        rows, other = TOKENS // own, kernel.block_q if kernel.by == "key" else kernel.block_k
        assert found.touched / HEADS / rows < 3 * 3000 / other
