"""Kernels of selections as text: goldens, sums of ints, conditions decided for tiles, members in closed form."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Mapping
from itertools import product

import pytest
import torch

import spdsl
from spdsl.codegen.chains.affine import tidy
from spdsl.codegen.chains.emit import emit_chain, emit_choose
from spdsl.codegen.chains.intervals import Intervals
from spdsl.codegen.chains.lower import Chain, lower_chain
from spdsl.codegen.chains.parts import Terms
from spdsl.codegen.chains.places import Place, Places, UncoveredError
from spdsl.codegen.chains.presence import presence
from spdsl.codegen.chains.program import Program
from spdsl.codegen.chains.values import Values
from spdsl.runtime.lines import Lines
from spdsl.semantics import build
from spdsl.semantics.graph import Mark, Pool, Score, Select, Windows, index_of
from spdsl.semantics.nodes import Apply, BoundPattern, Const, Coord, Expr, Extent, Index, Load
from spdsl.semantics.ops import OPS
from spdsl.semantics.rewrite import transform


def chain(name: str, **parameters: object) -> Chain:
    """The kernels of the last selection of a library pattern, for 16 heads of two groups in 16 bits.

    Keys are sums of two numbers, but those of hip and xattention are as they are given.
    """
    pattern = spdsl.compile(name, **parameters).bind(16, 2, 64)  # type: ignore[arg-type]
    assert pattern.graph is not None
    *_, chosen = (stage.name for stage in pattern.graph.stages if isinstance(stage, Select | Mark))
    each = Terms(queries=1, keys=1 if name in ("hip", "xattention") else 2)
    terms = tuple((stage.name, each) for stage in pattern.graph.stages if isinstance(stage, Score))
    return lower_chain(pattern, chosen, terms)


GOLDEN: dict[str, dict[str, object]] = {
    "moba": {},
    "infllm_v2": {},
    "seer_attention": {},
    "quest": {},
    "dsa": {},
    "dma": {},
    "xattention": {"stride": 4},
    "llsa": {},
    "hip": {},
    "flashprefill": {},
}


@pytest.mark.parametrize("name", GOLDEN)
def test_source(name: str, golden: Callable[..., None]) -> None:
    text = emit_chain(chain(name, **GOLDEN[name]), name).text
    ast.parse(text)
    golden(text, ending="py")


def test_choosing(golden: Callable[..., None]) -> None:
    ast.parse(emit_choose().text)
    golden(emit_choose().text, ending="py")


def test_choosing_among_members(golden: Callable[..., None]) -> None:
    ast.parse(emit_choose(8).text)
    golden(emit_choose(8).text, ending="py")


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ("score(Q, mean(K, per = k.part)) |> top(2)", None),
        ("score(Q, K) |> softmax |> sum(per = k.part) |> top(2)", "into parts"),
        ("score(Q, K) |> softmax |> sum(per = k.uneven) |> top(2)", "axes by tables"),
        ("score(Q, K) |> only(noise(1, per = (q, k)) < 0.5) |> top(2)", "Noise"),
    ],
)
def test_what_is_left_to_torch_has_a_reason(stages: str, words: str | None) -> None:
    text = f"""pattern some() {{
      input last: int[token] sorted
      axis part = token into 5
      axis uneven = token by last
      let chosen = {stages}
      keep chosen
    }}"""
    pattern = spdsl.compile(spdsl.loads(text)).bind(2, 2, 16)
    assert pattern.graph is not None
    (chosen,) = (stage.name for stage in pattern.graph.stages if isinstance(stage, Select))
    terms = tuple((stage.name, Terms(queries=1, keys=1)) for stage in pattern.graph.stages if isinstance(stage, Score))
    if words is None:
        assert lower_chain(pattern, chosen, terms).kernels
        return
    with pytest.raises(UncoveredError, match=words):
        lower_chain(pattern, chosen, terms)


# ---------------------------------------------------------------- ints

NAMES = ("rows", "columns", "member")


def number(rng: random.Random, depth: int) -> Expr:
    """A random int expression."""
    if depth == 0:
        return rng.choice([Index(name=rng.choice(NAMES)), Const(value=rng.randint(-9, 9))])
    left = number(rng, depth - 1)
    match rng.randrange(6):
        case 0:
            return build.add(left, number(rng, depth - 1))
        case 1:
            return build.sub(left, number(rng, depth - 1))
        case 2:
            return build.mul(left, rng.choice((-3, -1, 2, 4, 8, 16)))
        case 3:
            return build.floordiv(left, rng.choice((2, 4, 3, 8)))
        case 4:
            return build.mod(left, rng.choice((2, 4, 3, 8)))
        case _:
            return build.apply(rng.choice(("min", "max")), left, number(rng, depth - 1))


def condition(rng: random.Random, depth: int) -> Expr:
    """A random condition on ints."""
    if depth == 0:
        op = rng.choice(("lt", "le", "gt", "ge", "eq"))
        return build.apply(op, number(rng, 2), number(rng, 2))
    if rng.random() < 0.2:
        return build.apply("not", condition(rng, depth - 1))
    return build.apply(rng.choice(("and", "or")), condition(rng, depth - 1), condition(rng, depth - 1))


def value(expr: Expr, env: Mapping[str, int]) -> int:
    """The value of an expression."""
    match expr:
        case Const(value=found):
            return int(found)
        case Index(name=name) | Extent(name=name):
            return env[name]
        case Apply(op=op, args=args):
            return int(OPS[op].fold(*(_typed(value(arg, env), arg) for arg in args)))
        case _:
            raise TypeError(expr)


def _typed(found: int, expr: Expr) -> int:
    return bool(found) if expr.dtype == "bool" else found


@pytest.mark.parametrize("seed", range(60))
def test_tidy_expressions_have_the_same_values(seed: int) -> None:
    rng = random.Random(seed)
    expr = build.apply("and", condition(rng, 1), build.apply("le", number(rng, 3), number(rng, 2)))
    tidied = tidy(expr)
    for _ in range(40):
        env = {name: rng.randint(0, 40) for name in NAMES}
        assert value(tidied, env) == value(expr, env)


def test_remainders_of_members_are_decided() -> None:
    rows, columns = Index(name="rows"), Index(name="columns")
    position = build.add(build.add(build.mul(rows, 8), 3), build.add(build.mul(columns, 16), 4))
    assert tidy(build.apply("eq", build.mod(position, 8), 7)) == build.TRUE
    assert tidy(build.apply("eq", build.mod(position, 4), 0)) == build.FALSE


@pytest.mark.parametrize("seed", range(60))
def test_conditions_are_decided_for_tiles(seed: int) -> None:
    rng = random.Random(seed)
    expr = condition(rng, 2)
    low = {name: rng.randint(0, 20) for name in NAMES}
    high = {name: low[name] + rng.randint(0, 5) for name in NAMES}
    ends = {name: (Index(name=f"{name}0"), Index(name=f"{name}1")) for name in NAMES}
    intervals = Intervals(ends=ends, inside=lambda _: None)
    env = {f"{name}0": low[name] for name in NAMES} | {f"{name}1": high[name] for name in NAMES}
    may, must = value(tidy(intervals.may(expr)), env), value(tidy(intervals.must(expr)), env)
    points = [
        value(expr, {"rows": r, "columns": c, "member": m})
        for r in range(low["rows"], high["rows"] + 1)
        for c in range(low["columns"], high["columns"] + 1)
        for m in range(low["member"], high["member"] + 1)
    ]
    assert may or not any(points)
    assert all(points) or not must


# ---------------------------------------------------------------- members

AXES = """pattern axes() {
  axis small = token by 4
  axis win = token by 6 step 3
  axis far = token by 3 step 5
  axis wide = token by 24
  axis odd = token by 7
  keep causal and score(Q, K) > 0
}
"""


def bound() -> BoundPattern:
    return spdsl.compile(spdsl.loads(AXES)).bind(1, 1, 8)


PAIRS = [
    ("k.small", "k.wide"),
    ("k.win", "k.wide"),
    ("k.far", "k.wide"),
    ("k.small", "k.odd"),
    ("k.win", "k.odd"),
    ("k.wide", "k.small"),
]


@pytest.mark.parametrize(
    ("over", "per", "windows"),
    [("k", "k.small", None), ("k", "k.win", None)]
    + [(over, per, windows) for over, per in PAIRS for windows in (None, "inside", "touching")],
)
def test_members_are_those_of_tables(over: str, per: str, windows: Windows | None) -> None:
    pattern, n = bound(), 53
    lines = Lines(pattern=pattern, tables={}, batch=1, nq=n, n=n, q_start=0, device=torch.device("cpu"))
    shares = lines.shares(over, per, windows)
    places = Places(pattern=pattern)
    members = places.members(over, per, Index(name="columns"), windows)
    for entry in range(lines.size(per)):
        env = {"columns": entry}
        found = {}
        for each in range(members.most):
            at = value(members.first, env) + each
            there = 0 <= at < lines.size(over) and (members.last is None or at <= value(members.last, env))
            weight = 1
            if there and members.weighed:
                shared, some = places.shared(
                    over, Const(value=at), per, Const(value=entry), Const(value=0), Const(value=n - 1)
                )
                weight = value(shared, {})
                assert bool(value(some, {})) == (weight > 0)
            if there and weight:
                found[at] = weight
        row, times = shares.entries[entry].tolist(), shares.weights[entry].tolist()
        assert found == {at: weight for at, weight in zip(row, times, strict=True) if weight}


# ---------------------------------------------------------------- whether there is an entry


def bounded(rng: random.Random, over: str) -> Expr:
    """A conjunction of one to three comparisons of an entry with what else there is."""
    parts = []
    for _ in range(rng.randint(1, 3)):
        entry = build.mul(index_of(over), rng.choice((-5, -2, -1, 1, 1, 3)))
        other = build.add(build.mul(index_of("k.small"), rng.choice((-4, -1, 0, 2))), rng.randint(-30, 30))
        parts.append(build.apply(rng.choice(("lt", "le", "gt", "ge")), entry, other))
    return build.conj(*parts)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize(("over", "per"), [("q", "q.wide"), ("q", None), ("q.small", "q.wide")])
def test_presence_is_that_of_an_entry(over: str, per: str | None, seed: int) -> None:
    rng, pattern = random.Random(seed), bound()
    condition = bounded(rng, over)
    axes = ("k.small",) if per is None else (per, "k.small")
    windows: Windows | None = None if over == "q" else "inside"
    stage = Pool(
        name="s",
        axes=axes,
        kind="any",
        value=condition,
        only=build.TRUE,
        over=over,
        per=per,
        windows=windows,
        dtype="bool",
    )
    values = Values(pattern=pattern, stages={"s": stage}, terms={}, program=Program())
    at = {"k.small": Index(name="columns")} | ({} if per is None else {per: Index(name="rows")})
    found = presence(values, stage, Place(at=at))
    assert found is not None
    start, count = rng.randint(0, 30), rng.randint(1, 60)
    env = {"q_start": start, "nq": count, "n": 90}
    for row in range(4):
        if over == "q":
            block = range(row * 24, row * 24 + 24) if per is not None else range(start + count)
            entries = [each for each in block if start <= each < start + count]
        else:
            entries = list(range(row * 6, row * 6 + 6))
        for column in range(0, 20, 3):
            here = env | {"rows": row, "columns": column, "count_small": 10**6}
            assert bool(value(found, here)) == any(_holds(condition, over, each, column) for each in entries)


@pytest.mark.parametrize("seed", range(20))
def test_presence_of_pairs_that_a_remainder_tells(seed: int) -> None:
    """Of every entry of 24 queries, and of 24 keys, those whose sum or difference has a remainder."""
    rng, pattern = random.Random(seed), bound()
    sign = rng.choice((1, -1))
    straight = {1: 23, -1: 0}[sign]  # else what is found goes around the ends of an entry
    rest = rng.choice((straight, rng.randrange(24)))
    both = build.add(Index(name="q"), build.mul(Index(name="k"), sign))
    condition = build.apply("eq", build.mod(both, 24), rest)
    shared = {"kind": "any", "only": build.TRUE, "windows": None, "dtype": "bool"}
    inner = Pool(name="s", axes=("q.wide", "k"), value=condition, over="q", per="q.wide", **shared)
    read = Load(table="s", dtype="bool", indices=(Coord(side="q", axis="wide"), Index(name="k")))
    outer = Pool(name="t", axes=("q.wide", "k.wide"), value=read, over="k", per="k.wide", **shared)
    values = Values(pattern=pattern, stages={"s": inner, "t": outer}, terms={}, program=Program())
    row_of = {"q.wide": Index(name="rows")}
    of_key = presence(values, inner, Place(at={**row_of, "k": Index(name="columns")}))
    of_entry = presence(values, outer, Place(at={**row_of, "k.wide": Index(name="columns")}))
    assert of_key is not None
    assert (of_entry is not None) == (rest == straight)
    start, count, n = rng.randint(-5, 60), rng.randint(1, 60), rng.randint(1, 90)
    env = {"q_start": start, "nq": count, "n": n}
    for row, key in product(range(5), range(n)):
        queries = [q for q in range(row * 24, row * 24 + 24) if max(start, 0) <= q < start + count]
        here = {**env, "rows": row}
        assert bool(value(of_key, {**here, "columns": key})) == any((q + sign * key) % 24 == rest for q in queries)
        if of_entry is not None and key % 24 == 0:
            keys = range(key, min(key + 24, n))
            seen = any((q + sign * k) % 24 == rest for q in queries for k in keys)
            assert bool(value(of_entry, {**here, "columns": key // 24})) == seen


@pytest.mark.parametrize("stages", ["(q + k) % 8 == 3", "(q - k) % 8 == 5", "(k - q) % 8 == 0", "(2 * q + k) % 8 == 1"])
def test_sums_along_the_diagonals_of_cells_are_one_product(stages: str) -> None:
    """A key of each cell has one query: a loop of products that add up, for any slope."""
    text = f"""pattern some() {{
      axis cell = token by 8
      let share = score(Q, K) |> only({stages}) |> sum(per = (q.cell, k.cell)) |> softmax
      let chosen = share |> top(2)
      keep chosen
    }}"""
    pattern = spdsl.compile(spdsl.loads(text)).bind(2, 2, 16)
    assert pattern.graph is not None
    (chosen,) = (stage.name for stage in pattern.graph.stages if isinstance(stage, Select))
    terms = tuple((stage.name, Terms(queries=1, keys=1)) for stage in pattern.graph.stages if isinstance(stage, Score))
    *_, kernel = lower_chain(pattern, chosen, terms).kernels
    sloped = "2" in stages
    assert kernel.paired == (0 if sloped else 8)


@pytest.mark.parametrize("seed", range(30))
def test_presence_at_a_distance_is_that_of_a_pair(seed: int) -> None:
    rng, pattern = random.Random(seed), bound()
    parts = [build.apply("le", Index(name="k"), Index(name="q"))] if rng.random() < 0.7 else []
    for name in ("q", "k"):
        other = build.add(rng.randint(-20, 40), rng.choice((Extent(name="n"), Const(value=0))))
        parts.append(build.apply(rng.choice(("lt", "ge")), build.mul(Index(name=name), rng.choice((1, 2, 3))), other))
    condition = build.conj(*parts)
    stage = Pool(
        name="s",
        axes=("q-k",),
        kind="any",
        value=condition,
        only=build.TRUE,
        over="q-k",
        per="q-k",
        windows=None,
        dtype="bool",
    )
    values = Values(pattern=pattern, stages={"s": stage}, terms={}, program=Program())
    found = presence(values, stage, Place(at={"q-k": build.sub(Index(name="columns"), 40)}))
    assert found is not None
    start, count, n = rng.randint(-5, 30), rng.randint(1, 30), rng.randint(1, 40)
    env = {"q_start": start, "nq": count, "n": n}
    for column in range(90):
        pairs = ((q, q - (column - 40)) for q in range(max(start, 0), start + count))
        seen = any(0 <= k < n and value(condition, {**env, "q": q, "k": k}) for q, k in pairs)
        assert bool(value(found, {**env, "columns": column})) == seen


def _holds(condition: Expr, over: str, entry: int, column: int) -> bool:
    place = {index_of(over): Const(value=entry), index_of("k.small"): Const(value=column)}
    return bool(value(transform(condition, place.get), {}))
