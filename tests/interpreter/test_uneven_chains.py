"""Selections along axes by tables, by generated kernels in Triton's interpreter: the sets that torch chooses.

Run with ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

import spdsl
from spdsl.runtime import graphs, inputs
from spdsl.semantics.graph import Select
from tests.interpreter.test_chains import dense

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
