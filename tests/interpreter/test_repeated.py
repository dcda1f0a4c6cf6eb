"""Selections of calls that are like earlier ones, in Triton's interpreter: steps that are repeated make the same lists.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import spdsl
from spdsl.runtime import graphs, repeated, sets
from spdsl.runtime.recent import Recent
from spdsl.runtime.shelf import Shelf
from spdsl.runtime.ways import watch
from spdsl.semantics.nodes import BoundPattern
from tests.library.cases import Case, Sizes
from tests.library.selections import SELECTIONS
from tests.library.test_selections import made

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")

FILE = Path(__file__).parents[2] / "patterns" / "hip.spat"

REPEATED = [case for case in SELECTIONS if case.name in ("nsa", "quest")]
"""Two of those whose number of picks is known beforehand, so that the host need not wait for it; on a GPU, all."""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated, "_steps", Recent(size=repeated._KINDS))
    monkeypatch.setattr(repeated, "_sights", Recent(size=repeated._KINDS))


class Counted(TorchDispatchMode):
    """Notes the names of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def lists(pattern: BoundPattern, case: Case, seed: int, *, kernels: bool = True) -> list[Tensor]:
    shape = Sizes(batch=1, heads=4, groups=2, nq=77, n=77)
    _, (q, k, v), inputs = made(case, shape, seed=seed)
    call = graphs.Inputs(q=q.half(), k=k.half(), v=v.half(), tables=inputs, q_start=0, kernels=kernels)
    return list(graphs.selections(pattern, call).values())


@pytest.mark.parametrize("case", REPEATED, ids=lambda case: case.name)
def test_other_tensors_of_the_same_kind(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = spdsl.compile(case.name, **case.parameters).bind(4, 2, 8)  # type: ignore[arg-type]
    first = lists(pattern, case, 0)
    assert not repeated._steps.entries
    lists(pattern, case, 2)
    assert repeated._steps.entries
    monkeypatch.setattr(sets, "_lists", lambda *_: pytest.fail("decided again"))
    second = lists(pattern, case, 1)
    monkeypatch.undo()
    plain = lists(pattern, case, 1, kernels=False)
    assert all(torch.equal(*pair) for pair in zip(second, plain, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    # What an earlier call has returned is not written again.
    assert all(one.data_ptr() != two.data_ptr() for one, two in zip(first, second, strict=True))


def test_another_shape_is_another_kind() -> None:
    pattern = spdsl.compile("moba", block=16, picks=3).bind(2, 2, 8)
    for n in (61, 70):
        for _ in range(3):
            q, k, v = torch.randn(3, 1, 2, n, 8).half()
            sets = []
            for kernels in (True, False):
                call = graphs.Inputs(q=q, k=k, v=v, tables={}, q_start=0, kernels=kernels)
                sets += graphs.selections(pattern, call).values()
            assert torch.equal(*sets)
    assert len(repeated._steps.entries) == 2


def test_one_tensor_given_twice_is_no_model_for_two() -> None:
    """As an input it has one place, so that what is repeated would read it where another tensor belongs."""
    text = FILE.read_text(encoding="utf-8").replace("  keep causal", "  export found = third\n  keep causal")
    sizes = {"rows": 8, "chunk": (16, 8, 4), "budget": (48, 24, 12), "every": 2, "sinks": 4, "window": 8}
    pattern = spdsl.compile(spdsl.loads(text), **sizes).bind(2, 2, 8)  # type: ignore[arg-type]
    x, q, k, v = torch.randn(4, 1, 2, 160, 8).half()
    for one, two, three in ((x, x, x), (q, k, v), (k, v, q)):
        sets = []
        for kernels in (True, False):
            call = graphs.Inputs(q=one, k=two, v=three, tables={}, q_start=0, kernels=kernels)
            sets.append(graphs.exports(pattern, call)["found"])
        assert torch.equal(*sets)
    assert len(repeated._steps.entries) == 1


def test_the_same_lengths_in_another_batch_have_steps_too() -> None:
    pattern = spdsl.compile("quest", page=8, budget=24).bind(2, 2, 8)
    for batch in (1, 1, 2, 2):
        q, k, v = torch.randn(3, batch, 2, 77, 8).half()
        graphs.selections(pattern, graphs.Inputs(q=q, k=k, v=v, tables={}, q_start=0, kernels=True))
    assert len(repeated._steps.entries) == 2


def test_captured_graphs_keep_what_they_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is recorded while one is captured, when tensors do not hold what they will."""
    pattern = spdsl.compile("moba", block=16, picks=3).bind(2, 2, 8)
    shelf = Shelf()
    monkeypatch.setattr(repeated, "SHELF", shelf)

    def call(n: int) -> list[Tensor]:
        q, k, v = torch.ones(3, 1, 2, n, 8).half()
        return list(
            graphs.selections(pattern, graphs.Inputs(q=q, k=k, v=v, tables={}, q_start=0, kernels=True)).values()
        )

    wanted = [[call(n) for n in (61, 70)] for _ in range(2)][1]
    monkeypatch.setattr(repeated, "captured", lambda tensor: True)
    for _ in range(2):
        for n, want in zip((61, 70), wanted, strict=True):
            assert all(torch.equal(*pair) for pair in zip(call(n), want, strict=True))
    assert list(shelf.pinned) == [id(known.steps) for known, _ in repeated._steps.entries.values()]
    call(80)
    assert len(repeated._steps.entries) == len(shelf.pinned) == 2


def test_no_steps_where_the_host_reads_a_number() -> None:
    x = torch.randn(9)
    for make in (
        lambda: x * float(x.sum()),
        lambda: x[: int(x.argmax())] * 2,
        lambda: x[x > 0],
        lambda: x.nonzero(),
        lambda: x * x.tolist()[0],
        lambda: x * x.numpy()[0],
        lambda: x * np.asarray(x)[0],
    ):
        (result,), steps = watch(lambda make=make: (make(),), [x])
        assert steps is None
        assert torch.equal(result, make())


def test_no_steps_by_chance() -> None:
    x = torch.randn(9)
    assert watch(lambda: (x + torch.rand(9),), [x])[1] is None
    assert watch(lambda: (torch.bernoulli(x.sigmoid()),), [x])[1] is None


def test_what_does_not_depend_on_tensors_is_done_once() -> None:
    x = torch.randn(4)

    def make() -> tuple[Tensor, Tensor]:
        line = torch.arange(4).flip(0)
        room = torch.zeros(4)
        room[line] = x  # written: made anew each time
        return torch.cat([room.view(2, 2), torch.stack([x[:2], x[2:]])]).sort(-1).values, room > 0

    results, steps = watch(make, [x])
    assert steps is not None
    first = [each.clone() for each in results]
    other = torch.randn(4)
    found = steps.play([other])
    x_first, x = x, other
    assert all(map(torch.equal, found, make()))
    assert all(map(torch.equal, results, first))
    assert all(map(torch.equal, steps.play([x_first]), first))
    with Counted() as counted:
        steps.play([other])
    assert not {"arange", "flip"} & counted.names
    assert "zeros" in counted.names


def test_too_much_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    from spdsl.runtime import ways

    def make() -> tuple[Tensor]:
        found = x * 2
        for _ in range(ways._TIMES):
            found = found + 1
        return (found,)

    x = torch.randn(1000)
    assert watch(make, [x])[1] is not None
    monkeypatch.setattr(ways, "ROOM", 0)
    (result,), steps = watch(make, [x])
    assert steps is None
    assert torch.equal(result, *make())
