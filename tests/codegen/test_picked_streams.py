"""Blocks that queries have picked, copied by a warp of its own: every pair once, and no access to memory races."""

from __future__ import annotations

import itertools

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


def launch(block: int) -> tuple[np.ndarray, np.ndarray]:
    """Start the forward; gives back the pairs of the blocks that were picked, and those of the columns beside."""
    chance = np.random.default_rng(block)
    rows = -(-N // block)
    picked = chance.random((HEADS, rows, rows)) < 0.6
    picked[0, 2] = False
    column = np.zeros((HEADS, N), bool)
    column[0, [5, 130, 131]], column[1, 300:310], column[1, 132:250] = True, True, True
    lists = np.sort(np.where(picked, np.arange(rows), FAR), -1).astype(np.int32)
    shapes = ((1, HEADS, N, DIM), *2 * ((1, GROUPS, N, DIM),))
    q, k, v = (torch.zeros(shape, dtype=torch.bfloat16) for shape in shapes)
    inputs = {"chosen": torch.from_numpy(lists), "column": torch.from_numpy(column)}
    spdsl.compile(spdsl.loads(TEXT.format(block=block)))(q, k, v, **inputs)
    at = np.arange(N)
    inside = picked[:, at[:, None] // block, at[None, :] // block]
    causal = at[None, :] <= at[:, None]
    return causal & inside, causal & ~inside & column[:, None]


def table(launch: Launch, name: str) -> np.ndarray:
    """Of each head and key, whether it is marked."""
    return np.asarray(launch.arguments[f"t_chosen_{name}"].data).reshape(HEADS, N) != 0


@pytest.mark.parametrize("block", [64, 128])
def test_every_pair_once(block: int, started: list[Launch]) -> None:  # noqa: F811  # the fixture
    """Of the blocks that were picked all but the keys that are gathered, and beside them the columns that are met."""
    inside, beside = launch(block)
    first, later = started
    gathered, met = table(first, "gathered"), table(later, "met")
    assert not (gathered & met).any()
    assert gathered.any()
    assert met.any()
    unmasked = 0
    for each, expected in ((first, inside & ~gathered[:, None]), (later, beside & met[:, None])):
        kernel, constants = each.kernel, dict(each.kernel.constants)
        assert (kernel.name, constants["BLOCK_Q"], constants["BLOCK_K"]) == ("forward", block, block)
        # Of tiles without a column no table is read, and full ones of these need no mask.
        assert any(isinstance(part, Speaks) for part in every(kernel.fetch or ()))
        found = np.zeros((HEADS, N, N), int)
        for program in range(each.grid[0]):
            at = (program, 0, 0)
            for _, head, turns in gluon_machine.run(each.text, "forward", each.arguments, at, each.grid, 1):
                add_program(found[head], turns, by_query=True)
                unmasked += sum(turn.keep is None for turn in turns[1:])
        assert (found == expected).all()
    assert unmasked


def test_no_access_races(started: list[Launch]) -> None:  # noqa: F811  # the fixture
    launch(64)
    first, later = started
    for each, seed in itertools.product((first, later), range(2)):
        each.run(each.text, seed)
