"""Blocks that queries have picked, copied by a warp of its own: every pair once, and no access to memory races."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import spdsl
from spdsl.codegen.blocks import Speaks
from spdsl.codegen.contents import every
from spdsl.runtime.ranking import FAR
from tests.codegen import gluon_machine
from tests.codegen.test_races import DIM, GROUPS, HEADS, Launch, started  # noqa: F401  # a fixture
from tests.codegen.test_text import add_program

N = 500

TEXT = """pattern picked() {{
  axis blk = token by {block}
  input chosen: bool[h, q.blk, k.blk]
  input column: bool[h, token]
  keep causal and (chosen or column[h, k])
}}
"""


def launch(block: int) -> np.ndarray:
    """Start the forward; gives back the pairs of the blocks that were picked, without those of columns."""
    chance = np.random.default_rng(block)
    rows = -(-N // block)
    picked = chance.random((HEADS, rows, rows)) < 0.6
    picked[0, 2] = False
    column = np.zeros((HEADS, N), bool)
    column[0, [5, 130, 131]], column[1, 300:310] = True, True
    lists = np.sort(np.where(picked, np.arange(rows), FAR), -1).astype(np.int32)
    shapes = ((1, HEADS, N, DIM), *2 * ((1, GROUPS, N, DIM),))
    q, k, v = (torch.zeros(shape, dtype=torch.bfloat16) for shape in shapes)
    inputs = {"chosen": torch.from_numpy(lists), "column": torch.from_numpy(column)}
    spdsl.compile(spdsl.loads(TEXT.format(block=block)))(q, k, v, **inputs)
    at = np.arange(N)
    causal = at[None, :] <= at[:, None]
    return causal & picked[:, at[:, None] // block, at[None, :] // block] & ~column[:, None]


@pytest.mark.parametrize("block", [64, 128])
def test_every_pair_once(block: int, started: list[Launch]) -> None:  # noqa: F811  # the fixture
    expected = launch(block)
    (forward,) = started
    kernel = forward.kernel
    assert (kernel.name, dict(kernel.constants)["BLOCK_Q"], dict(kernel.constants)["BLOCK_K"]) == (
        "forward",
        block,
        block,
    )
    # Of tiles without a column no table is read, and full ones of these need no mask.
    assert any(isinstance(each, Speaks) for each in every(kernel.fetch or ()))
    found = np.zeros((HEADS, N, N), int)
    unmasked = 0
    for program in range(forward.grid[0]):
        at = (program, 0, 0)
        for _, head, turns in gluon_machine.run(forward.text, "forward", forward.arguments, at, forward.grid, 1):
            add_program(found[head], turns, by_query=True)
            unmasked += sum(turn.keep is None for turn in turns[1:])
    assert (found == expected).all()
    assert unmasked


def test_no_access_races(started: list[Launch]) -> None:  # noqa: F811  # the fixture
    launch(64)
    (forward,) = started
    for seed in range(2):
        forward.run(forward.text, seed)
