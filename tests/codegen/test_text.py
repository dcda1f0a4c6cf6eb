"""The emitted text of random programs, run with truncating division: every kept pair is computed once, no other."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spdsl.analysis.pairing import find_pairs
from spdsl.analysis.plans import KernelPlan, Plan
from spdsl.analysis.tiles import SlotWalk, TileRelation
from spdsl.analysis.worker import derive, find_residues
from spdsl.codegen.blocks import BlockGraph, Kernel
from spdsl.codegen.emit import emit
from spdsl.codegen.gluon import emit_gluon
from spdsl.codegen.lower import lower
from spdsl.runtime.calls import Call
from spdsl.runtime.launch import call_values, tensor_values
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Index
from tests.analysis.brute import environment, mask_of
from tests.analysis.build import Term
from tests.analysis.programs import SHAPES, SMALL, WINDOW, Scale, parameters, predicates
from tests.codegen import gluon_machine
from tests.codegen.machine import WIDTH, Int, Pointer, Turn, run
from tests.runtime.build import plan

EXAMPLES = int(os.environ.get("SPDSL_EXAMPLES", "45"))
HEADS, GROUPS = 8, 4
SIZES = (16, 32, 64, 128)
VALUES = {"w": list(SMALL.values)}


def planned(keep: Term, tiles: tuple[int, int], shape: str) -> Plan | None:
    """A plan whose walks are in closed form, by residues where there are any; None where tiles are listed."""
    facts: dict[str, Any] = {"shape": shape, "heads": HEADS, "groups": GROUPS, "tables": (WINDOW,)}
    residues = find_residues(keep.expr, **facts)
    relation = derive(keep.expr, block_q=tiles[0], block_k=tiles[1], residues=residues, **facts)
    if not isinstance(relation.by_query, SlotWalk) or not isinstance(relation.by_key, SlotWalk):
        return None
    made = plan(keep.expr, tables=(WINDOW,), shape=shape, heads=HEADS, groups=GROUPS, head_dim=WIDTH)  # type: ignore[arg-type]
    kernels = {kind: _kernel(kind, relation) for kind in ("forward", "dq", "dkdv")}  # type: ignore[arg-type]
    return Plan(**{name: getattr(made, name) for name in made.__slots__} | kernels)


def _kernel(kind: Literal["forward", "dq", "dkdv"], relation: TileRelation) -> KernelPlan:
    return KernelPlan(
        kind=kind,
        block_q=relation.block_q,
        block_k=relation.block_k,
        warps=4,
        stages=2,
        walk=relation.by_key if kind == "dkdv" else relation.by_query,
        residues=relation.residues,
    )


def arguments_of(kernel: Kernel, call: Call) -> dict[str, Any]:
    """What the kernel is launched with, as the machine knows it; of tensors only the rows count."""
    width = torch.zeros(WIDTH).as_strided((1, 1, 1, WIDTH), (0, 0, WIDTH, 1))
    tensors = dict.fromkeys(("Q", "K", "V", "O", "dO", "dQ", "dK", "dV"), width)
    values = tensor_values(**tensors) | call_values(call, kernel.name)
    found: dict[str, Any] = {}
    for argument in kernel.arguments:
        value = values.get(argument.name)
        if argument.name in tensors or value is None:
            found[argument.name] = Pointer(argument.name, None)
        elif isinstance(value, torch.Tensor):
            found[argument.name] = Pointer(argument.name, value.numpy())
        else:
            found[argument.name] = Int(value)
    return found


def add_program(count: np.ndarray, turns: list[Turn], by_query: bool) -> None:
    """Add the pairs that a program computes to ``count [nq, n]``, by the rows that its turns read."""
    own, walked = ("Q", "K") if by_query else ("K", "Q")
    here = next(turn.rows[own] for turn in turns if own in turn.rows)
    for turn in turns:
        there = turn.rows.get(walked)
        if there is None:
            continue
        q, k = (here, there) if by_query else (there, here)
        pairs = np.ones((q.size, k.size), bool)
        if turn.keep is not None:
            pairs &= turn.keep if by_query else turn.keep.T
        elif by_query:
            assert ((k >= 0) & (k < count.shape[1])).all(), "a full tile beyond the keys"
        # Rows of queries past the end have no weight, rows of keys past the end are not stored.
        inside = (q >= 0)[:, None] & (q < count.shape[0])[:, None] & (k >= 0) & (k < count.shape[1])
        at = np.nonzero(pairs & inside)
        np.add.at(count, (q[at[0]], k[at[1]]), 1)


def in_gluon(made: Plan) -> Plan:
    """The plan with a forward of specialised warps."""
    forward = replace(made.forward, specialised=True, descriptors=True, persistent=True)
    return replace(made, problem=replace(made.problem, dtype="bf16"), forward=forward)


def check_text(keep: Term, tiles: tuple[int, int], shape: str, scale: Scale, seed: int) -> None:
    made = planned(keep, tiles, shape)
    if made is None:
        return
    graph = lower(made)
    text = emit(graph).text
    chance = random.Random(seed)
    other = in_gluon(made) if tiles[0] >= 64 else None
    streamed = None if other is None else lower(other)
    for _ in range(2):
        length, rows, start = chance.randint(1, 300), chance.randint(1, 300), chance.randint(-70, 200)
        values = parameters(chance, scale)
        env = environment(shape, length, rows, start, **values)
        head, batch = chance.randrange(HEADS), chance.randrange(2)
        q, k = torch.empty(2, HEADS, env["nq"], WIDTH), torch.empty(2, GROUPS, env["n"], WIDTH)
        windows = torch.tensor([chance.choice(scale.values) for _ in range(2)], dtype=torch.int32)
        call = Call(plan=made, q=q, k=k, v=k, q_start=env["q_start"], tables={"w": windows}, parameters=values)
        tables = {"w": windows.tolist()}
        for kernel in graph.kernels:
            if kernel.name not in ("forward", "dq", "dkdv"):
                continue
            by_query = kernel.name != "dkdv"
            heads = [head] if by_query else range(head // 2 * 2, head // 2 * 2 + 2)  # a key head serves two
            expected = sum(
                mask_of(keep.expr, env | {"h": h, "g": h // 2, "b": batch}, tables).astype(int) for h in heads
            )
            grid = (kernel.programs(env["nq"] if by_query else env["n"]), HEADS if by_query else GROUPS, 2)
            found = np.zeros((env["nq"], env["n"]), int)
            given_arguments = arguments_of(kernel, call)
            for number in range(grid[0]):
                at = (number, head if by_query else head // 2, batch)
                add_program(found, run(text, kernel.name, given_arguments, at, grid), by_query)
            wrong = np.argwhere(found != expected)
            assert not wrong.size, f"{kernel.name} of {env}, head {head}: {wrong[:3].tolist()}\n{text}"
            if kernel.name == "forward" and streamed is not None:
                check_gluon(streamed, call, (head, batch), expected)


def check_gluon(graph: BlockGraph, call: Call, at: tuple[int, int], expected: np.ndarray) -> None:
    """Every kept pair is computed once by the groups of the forward with specialised warps, and no other."""
    (kernel,) = graph.gluon
    tiles = kernel.programs(call.q.shape[2])
    together = (1, 2, HEADS * 2)[tiles % 3]
    found = np.zeros(expected.shape, int)
    for batch, head, turns in all_items(graph, kernel, arguments_of(kernel, call), tiles * HEADS * 2, tiles, together):
        if (head, batch) == at:
            add_program(found, turns, by_query=True)
    wrong = np.argwhere(found != expected)
    assert not wrong.size, f"{wrong[:3].tolist()}"


def all_items(
    graph: BlockGraph, kernel: Kernel, given_arguments: dict[str, Any], items: int, tiles: int, together: int
) -> Iterator[tuple[int, int, list[Turn]]]:
    """What programs do with all items of a kernel, of which each does several; by turns, or as they take them from a
    queue."""
    text = emit_gluon(graph, kernel, "3.6.0").text
    queued = tiles % 2
    numbers = {"tiles": tiles, "all_items": items, "together": together, "queued": queued}
    queue = Pointer("queue", np.zeros(1, np.int64))
    given_arguments = given_arguments | {name: Int(value) for name, value in numbers.items()} | {"queue": queue}
    for program in range(5):
        # A program that starts late finds nothing left.
        yield from gluon_machine.run(
            text, kernel.name, given_arguments, (program, 0, 0), (5, 1, 1), kernel.classes or 1
        )


def check_fused(keep: Term, shape: str, scale: Scale, seed: int) -> None:
    """The groups of the fused backward compute every kept pair once, and none of rows that do not exist."""
    dim = random.Random(seed).choice((64, 128))
    block_q = 64 if dim == 128 else 128
    made, fine = planned(keep, (block_q, 128), shape), planned(keep, (block_q, 64), shape)
    if made is None or fine is None:
        return
    forward = in_gluon(made)
    fused = replace(made.dkdv, kind="fused", specialised=True, descriptors=True)
    pairs = None if fused.residues is not None else find_pairs(fine.dkdv.walk)
    if pairs is not None:
        fused = replace(fused, block_k=64, walk=fine.dkdv.walk, pairs=pairs)
    problem = replace(forward.problem, pattern=replace(forward.problem.pattern, head_dim=dim), value_dim=dim)
    graph = lower(replace(made, problem=problem, fused=fused))
    chance = random.Random(seed)
    name = chance.choice(("fused", "ordered"))
    (kernel,) = (each for each in graph.gluon if each.name == name)
    text = emit_gluon(graph, kernel, "3.6.0").text
    length, rows, start = chance.randint(1, 500), chance.randint(1, 500), chance.randint(-70, 200)
    values = parameters(chance, scale)
    env = environment(shape, length, rows, start, **values)
    group, batch = chance.randrange(GROUPS), chance.randrange(2)
    q, k = torch.empty(2, HEADS, env["nq"], WIDTH), torch.empty(2, GROUPS, env["n"], WIDTH)
    windows = torch.tensor([chance.choice(scale.values) for _ in range(2)], dtype=torch.int32)
    call = Call(plan=made, q=q, k=k, v=k, q_start=env["q_start"], tables={"w": windows}, parameters=values)
    heads = range(group * 2, group * 2 + 2)
    tables = {"w": windows.tolist()}
    expected = sum(mask_of(keep.expr, env | {"h": h, "g": group, "b": batch}, tables).astype(int) for h in heads)
    tiles = kernel.programs(env["n"])
    found = np.zeros((env["nq"], env["n"]), int)
    for number in range(tiles):
        at, grid = (group, number, batch), (GROUPS, tiles, 2)
        for turns in gluon_machine.run(text, name, arguments_of(kernel, call), at, grid, kernel.classes or 1):
            add_program(found, turns[2], by_query=False)
            for turn in turns[2][1:]:
                exist = (turns[2][0].rows["K"] < env["n"])[:, None] & (turn.rows["Q"] < env["nq"])
                assert exist.all() if turn.keep is None else not (turn.keep & ~exist).any()
    wrong = np.argwhere(found != expected)
    assert not wrong.size, f"{wrong[:3].tolist()}\n{text}"


@settings(max_examples=EXAMPLES // 3, deadline=None, suppress_health_check=list(HealthCheck))
@given(keep=predicates(), shape=SHAPES, seed=st.integers(0, 9999))
def test_random_fused_programs(keep: Term, shape: str, seed: int) -> None:
    check_fused(Term(fold(keep.expr)), shape, SMALL, seed)


@pytest.mark.parametrize("period", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_pairs_of_long_tiles(period: int, seed: int) -> None:
    """Tiles of a lattice that moves from head to head, of which a program owns two."""
    q, k, g = (Term(Index(name=name)) for name in "qkg")
    blocks = k // 64
    keep = (k <= q) & ((q // 64 - blocks < 2) | ((blocks + g + seed) % period).eq(0))
    made = planned(keep, (64, 64), "square")
    assert made is not None
    assert find_pairs(made.dkdv.walk) is not None
    check_fused(Term(fold(keep.expr)), "square", SMALL, seed)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    keep=predicates(),
    tiles=st.tuples(st.sampled_from(SIZES), st.sampled_from(SIZES)),
    shape=SHAPES,
    seed=st.integers(0, 9999),
)
def test_random_programs(keep: Term, tiles: tuple[int, int], shape: str, seed: int) -> None:
    check_text(Term(fold(keep.expr)), tiles, shape, SMALL, seed)


def test_the_machine_truncates() -> None:
    assert int(Int(-7) // 2) == -3
    assert int(Int(-7) % 2) == -1
    assert int(Int(-7) >> 1) == -4
    assert int(7 // Int(-2)) == -3
    with pytest.raises(AssertionError, match="overflows"):
        Int(1 << 30) * 2
