"""Tiles in which tables say nothing have masks without them, and no pair is lost or gained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import spdsl
from spdsl.codegen.blocks import If, Speaks
from spdsl.codegen.contents import every
from spdsl.codegen.silent import KIND
from spdsl.semantics.rewrite import walk
from tests.codegen import gluon_machine
from tests.codegen.test_races import DIM, GROUPS, HEADS, Launch, started  # noqa: F401  # a fixture
from tests.codegen.test_text import add_program

N = 500

TEXTS = {
    "beside or": "keep abs(q - k) <= 70 or mark[q] or mark[k]",
    "beside and": "keep causal and valid[k]",
    "both": "keep causal and (q - k < 70 or mark[k]) and valid[k]",
    "of blocks": "keep causal and (q - k < 70 or mark[k // 2])",
    "negated": "keep causal and (q - k < 70 or not valid[k])",
}


def mask_of(name: str, mark: np.ndarray, valid: np.ndarray) -> np.ndarray:
    q, k = np.arange(N)[:, None], np.arange(N)[None, :]
    causal, near = k <= q, q - k < 70
    match name:
        case "beside or":
            return (abs(q - k) <= 70) | mark[q] | mark[k]
        case "beside and":
            return causal & valid[k]
        case "both":
            return causal & (near | mark[k]) & valid[k]
        case "of blocks":
            return causal & (near | mark[k // 2])
        case _:
            return causal & (near | ~valid[k])


@pytest.mark.parametrize("name", TEXTS)
def test_every_pair_once(name: str, started: list[Launch]) -> None:  # noqa: F811  # the fixture
    mark, valid = np.zeros(N, bool), np.ones(N, bool)
    mark[[3, 40, 333]] = True
    valid[[7, 450]] = False
    tables = {"mark": mark, "valid": valid}
    read = {each: torch.from_numpy(table) for each, table in tables.items() if each in TEXTS[name]}
    inputs = "".join(f"  input {each}: bool[token]\n" for each in read)
    shapes = ((1, HEADS, N, DIM), *2 * ((1, GROUPS, N, DIM),))
    leaves = [torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    # A forward kernel of its own for marked rows would leave nothing to look up.
    pattern = spdsl.loads(f"pattern silent() {{\n{inputs}  {TEXTS[name]}\n}}\n")
    out = spdsl.compile(pattern)(*leaves, **read)
    torch.autograd.grad(out.sum(), leaves)  # type: ignore[union-attr]
    expected = mask_of(name, mark, valid).astype(int)
    assert {each.kernel.name for each in started} == {"forward", "fused"}
    for each in started:
        looks = any(isinstance(block, Speaks) for block in every(each.kernel.fetch or ()))
        by_query = each.kernel.name == "forward"
        assert looks == by_query, each.text
        found = np.zeros((HEADS if by_query else GROUPS, N, N), int)
        for program in range(each.grid[0]):
            for _, head, turns in gluon_machine.run(
                each.text, each.kernel.name, each.arguments, (program, 0, 0), each.grid, 1
            ):
                add_program(found[head], turns, by_query)
        assert (found == expected * (1 if by_query else HEADS // GROUPS)).all(), each.text
        by_kind = (isinstance(block, If) and KIND in walk(block.condition) for block in every(each.kernel.body))
        assert looks == any(by_kind)
