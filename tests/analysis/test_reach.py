"""Receptive fields: known patterns, and random ones against graphs of tokens."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import networkx as nx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spdsl.analysis.claims import Answer
from spdsl.analysis.pairs import Subject
from spdsl.analysis.reach import Depth, depth, through
from spdsl.analysis.worker import bounded
from tests.analysis.brute import environment, mask_of
from tests.analysis.build import Term, causal, h, k, load, q, where
from tests.analysis.subjects import subject
from tests.analysis.test_claims import FACTS, mixed, random_tables
from tests.analysis.test_random import HEADS
from tests.library.bound import library


def told(*names: str, **parameters: object) -> Depth:
    return depth([Subject.of(library(name, heads=8, groups=2, **parameters)) for name in names])


def test_known_depths() -> None:
    assert told("causal") == Depth(goal="every earlier token", layers="1")
    assert told("full") == Depth(goal="every token", layers="1")
    assert told("sliding_window", window=128).layers == "max(1, ceil((n - 1) / 127))"
    assert told("streaming", window=200, sinks=64).layers == "max(1, ceil((n - 65) / 199))"
    assert told("strided", local=16, stride=16).layers == "2"
    assert told("s2").layers == "2"
    assert told("longformer", window=40) == Depth(goal="every token", layers="max(1, ceil((n - 1) / 20))", at_most=True)
    assert told("neighborhood_1d", extents=(150,), window=(13,), causal_axes=(True,)).layers == "13"
    assert told("block_local", "full").layers == "2"


def test_what_is_never_reached() -> None:
    apart = told("block_local", block=24)
    assert (apart.layers, str(apart.example)) == ("", "q = 0, k = 24, n = 25: no number of layers joins them")
    assert str(told("dilated").example).startswith("q = 1, k = 0, n = 2")
    assert told("documents").reason == "it depends on the inputs or on a random choice"


def test_given_layers() -> None:
    window = Subject.of(library("sliding_window", window=8))
    goal, answer = through([window] * 3)
    assert goal == "every earlier token"
    assert str(answer.example) == "q = 22, k = 0, n = 23: the query takes nothing from the key"
    assert through([window, Subject.of(library("causal"))])[1].verdict == "proven"


def test_heads_join() -> None:
    blocks = (q // 8).eq(k // 8)
    steps = where(h.eq(0), blocks, causal & (q % 8).eq(k % 8))
    assert depth([subject(steps, heads=2, groups=2)]).layers == ""
    assert depth([subject(steps, heads=1, groups=1)]).layers == ""
    assert depth([subject(where(h.eq(0), blocks, (q % 8).eq(k % 8)), heads=2, groups=2)]).layers == "2"


# ---------------------------------------------------------------- against graphs


def graph_of(each: Subject, length: int, seed: int) -> nx.DiGraph:
    """What some head keeps, for random tables, and every token itself."""
    tables = random_tables(random.Random(seed), length)
    masks = [mask_of(each.keep, environment("square", length, h=i, g=i, b=seed % 6), tables) for i in range(HEADS)]
    kept = np.logical_or.reduce(masks) | np.eye(length, dtype=bool)
    return nx.from_numpy_array(kept, create_using=nx.DiGraph)


def wanted(goal: str, length: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(length) for b in range(a + 1 if goal == "every earlier token" else length)]


def fewest(each: Subject, goal: str, length: int, seed: int) -> float:
    graph = graph_of(each, length, seed)
    far = dict(nx.all_pairs_shortest_path_length(graph))
    return max(1, max(far[a].get(b, math.inf) for a, b in wanted(goal, length)))


def value(found: Depth, length: int) -> int:
    return int(eval(found.layers, {"ceil": math.ceil, "max": max, "n": length}))  # noqa: S307


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(keep=mixed(1), seed=st.integers(0, 99))
def test_random_depths(keep: Term, seed: int) -> None:
    each = subject(keep | (q - k).eq(1), **FACTS)  # type: ignore[arg-type]
    found = bounded(depth, {"subjects": [each]}, seconds=5.0)  # a call of isl may hang
    if found is None:
        return
    needed = {length: fewest(each, found.goal, length, seed) for length in (1, 2, 5, 11, 20)}
    if found.example is not None:
        assert found.example.key is not None
        length = dict(found.example.values)["n"]
        if length <= 60:
            graph = graph_of(each, length, seed)
            assert not nx.has_path(graph, found.example.query, found.example.key)
    elif found.layers and found.length is None:
        least = [value(found, length) for length in needed]
        assert all(a >= b for a, b in zip(least, needed.values(), strict=True))
        if not found.at_most and not found.layers.isdigit():
            assert least == list(needed.values())


LATE = ("every token", Answer(verdict="undecided"))


def after(layers: Sequence[Subject], length: int, seed: int) -> np.ndarray:
    reached = np.eye(length, dtype=bool)
    for each in layers:
        reached = nx.to_numpy_array(graph_of(each, length, seed), weight=None).astype(bool) @ reached
    return reached


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(keeps=st.lists(mixed(1), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_random_layers(keeps: list[Term], seed: int) -> None:
    layers = [subject(keep, **FACTS) for keep in keeps]  # type: ignore[arg-type]
    goal, answer = bounded(through, {"subjects": layers}, seconds=5.0) or LATE
    if answer.verdict == "proven":
        for length in (1, 3, 8, 17):
            reached = after(layers, length, seed)
            assert all(reached[pair] for pair in wanted(goal, length))
    elif answer.example is not None:
        assert answer.example.key is not None
        length = dict(answer.example.values)["n"]
        if length <= 60:
            assert not after(layers, length, seed)[answer.example.query, answer.example.key]


@pytest.mark.parametrize("window", [2, 3, 7])
def test_a_formula_holds_at_every_length(window: int) -> None:
    each = subject((abs(q - k) < window) & (k >= 0))
    found = depth([each])
    for length in range(1, 25):
        assert value(found, length) == fewest(each, found.goal, length, 0)


def test_tables_read_at_positions_depend_on_inputs() -> None:
    answer = through([subject(load("doc", q).eq(load("doc", k)), **FACTS)])[1]  # type: ignore[arg-type]
    assert answer.verdict == "undecided"
