"""How programs of a persistent kernel find what they do next: in turn, from a queue, or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Problem
from spdsl.runtime.calls import Call
from spdsl.runtime.evenness import CACHE, Rounds, heads_together, is_even, rounds_for
from spdsl.runtime.split import INTERPRETER
from tests.library.bound import library


def started(name: str, n: int, parameters: dict[str, int], heads: int = 4) -> tuple[Rounds, int]:
    """How a call does its tiles, and how many these are."""
    pattern = library(name, heads=heads, groups=heads, head_dim=64, opened=True)
    made = plan(Problem(pattern=pattern, dtype="bf16", value_dim=64, shape="square"), "sm_90")
    q = torch.empty(1, heads, n, 64)
    call = Call(plan=made, q=q, k=q, v=q, parameters=parameters)
    tiles = -(-n // made.forward.block_q)
    assert made.forward.persistent
    return rounds_for(call, made.forward, tiles * heads), tiles * heads


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sliding_window", {"p_window": 1024}),
        ("streaming", {"p_window": 1024, "p_sinks": 64}),
        ("dilated", {"p_span": 4096}),
    ],
)
def test_short_rows_that_are_alike_go_round(name: str, parameters: dict[str, int]) -> None:
    assert started(name, 32768, parameters)[0] == Rounds(programs=INTERPRETER)


@pytest.mark.parametrize(
    ("name", "n", "parameters"),
    [
        ("causal", 32768, {}),
        ("sliding_window", 32768, {"p_window": 32768}),
        ("sliding_window", 65536, {"p_window": 16384}),
    ],
)
def test_others_take_what_comes_next(name: str, n: int, parameters: dict[str, int]) -> None:
    assert started(name, n, parameters)[0] == Rounds(programs=INTERPRETER, queued=True)


def test_few_tiles_have_a_program_each() -> None:
    rounds, tiles = started("sliding_window", 128, {"p_window": 1024})
    assert rounds == Rounds(programs=tiles)


def test_bounds_by_tables_are_not_known_to_be_alike() -> None:
    pattern = library("prefix_lm", heads=2, groups=2, head_dim=64, opened=True)
    tables = tuple((table.name, "int32") for table in pattern.tables)
    problem = Problem(pattern=pattern, dtype="bf16", value_dim=64, shape="square", tables=tables)
    made = plan(problem, "sm_90")
    q = torch.empty(1, 2, 4096, 64)
    assert not is_even(Call(plan=made, q=q, k=q, v=q), made.forward)
    assert not plan(replace(problem, value_dim=256), "sm_90").forward.persistent


@pytest.mark.parametrize(("batch", "heads", "groups"), [(1, 4, 4), (2, 6, 3), (3, 8, 1), (1, 7, 7)])
@pytest.mark.parametrize("n", [1000, 8192, 32768, 1 << 20])
def test_heads_that_take_turns(batch: int, heads: int, groups: int, n: int) -> None:
    """They are equal parts of all, and what they read stays in the cache, unless it is that of one."""
    pattern = library("causal", heads=heads, groups=groups, head_dim=128, opened=True)
    made = plan(Problem(pattern=pattern, dtype="bf16", value_dim=128, shape="square"), "sm_90")
    q, k = (torch.empty(batch, each, n, 128, dtype=torch.bfloat16, device="meta") for each in (heads, groups))
    together = heads_together(Call(plan=made, q=q, k=k, v=k), programs=100)
    assert batch * heads % together == 0
    groups_together = together * groups // heads
    assert groups_together == 1 or groups_together * n * 512 <= CACHE
    assert together == batch * heads or n > 2000
    assert heads_together(Call(plan=made, q=q, k=k, v=k), programs=10_000) == 1
