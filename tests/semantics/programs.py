"""Random static programs as texts, with inputs that fit: what `check`, `bind` and the reference must agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

HEADER = """\
def beside(x, y, far) = abs(x - y) <= far
def within(x, size) = clamp(x, 0, size - 1)

pattern near(reach: int = 2, both: bool = false) {{
  axis part = token by 2
  keep (both or k <= q) and abs(q.part - k.part) < reach
}}

pattern random(width: int in 0.. = {width}, some: int[2] = ({first}, {second})) {{
  input tab: int[token]
  input flag: bool[token]
  input doc: int[token] sorted
  input mode: int[h]
  axis blk = token by {block}
  axis seg = token by doc
  axis pair = blk by 2
  axis bin = token into 3
  grid area (y: {rows}, x: {columns}) from {start}
"""
LEAVES = [
    "q",
    "k",
    "q",
    "k",
    "h",
    "g",
    "n",
    "heads",
    "groups",
    "layer",
    "width",
    "some[0]",
    "some[1]",
    "blk.count",
    "bin.count",
    "q.blk",
    "k.blk",
    "q.seg",
    "k.seg",
    "q.pair",
    "k.pair",
    "q.bin",
    "k.bin",
    "k.blk.first",
    "q.blk.last",
    "k.blk.size",
    "tab[q]",
    "tab[k]",
    "mode[h]",
    "mode[heads - 1 - h]",
    "q - k",
    "q - k",
    "q.blk - k.blk",
    "doc[n - 1]",
]
SETS = [
    "causal",
    "causal",
    "all",
    "flag[q]",
    "flag[k]",
    "doc[q] == doc[k]",
    "q.seg == k.seg",
    "q.blk == k.blk",
    "q.y == k.y",
    "abs(q.x - k.x) <= 1",
    "k.y < 2",
    "q in area",
    "k in area",
    "near()",
    "near(1, true)",
    "near(reach = 3)",
    "q - k < width",
    "layer in (0, 2)",
]


@dataclass(frozen=True, kw_only=True)
class Example:
    text: str
    n: int
    heads: int
    groups: int
    tables: dict[str, list[Any]]


def number(depth: int) -> st.SearchStrategy[str]:
    leaves = st.one_of(st.sampled_from(LEAVES), st.integers(0, 9).map(str))
    if depth == 0:
        return leaves
    x, y, s = number(depth - 1), number(depth - 1), truth(depth - 1)
    divisor = st.sampled_from(["2", "3", "5", "(-2)", "(width + 1)"])
    return st.one_of(
        leaves,
        st.builds("({} {} {})".format, x, st.sampled_from("+-*"), y),
        st.builds("({} {} {})".format, x, st.sampled_from(["//", "%"]), divisor),
        st.builds("{}({}, {})".format, st.sampled_from(["min", "max"]), x, y),
        st.builds("{}({})".format, st.sampled_from(["abs", "isqrt", "bitlen", "-"]), x),
        st.builds("(if {} then {} else {})".format, s, x, y),
        st.builds("clamp({}, -3, {})".format, x, y),
        st.builds("tab[within({}, n)]".format, x),
        st.builds("{}({} / 2)".format, st.sampled_from(["floor", "ceil"]), x),
        reduction(st.sampled_from(["sum", "min", "max"]), x),
        reduction(st.just("sum"), s),
    )


def truth(depth: int) -> st.SearchStrategy[str]:
    if depth == 0:
        return st.sampled_from(SETS)
    x, y, s, t = number(depth - 1), number(depth - 1), truth(depth - 1), truth(depth - 1)
    compared = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    return st.one_of(
        st.sampled_from(SETS),
        st.builds("({} {} {})".format, x, compared, y),
        st.builds("({} {} {} {} {})".format, st.integers(-2, 3), compared, x, compared, y),
        st.builds("({} {} {})".format, s, st.sampled_from(["and", "or"]), t),
        st.builds("(not {})".format, s),
        st.builds("is_pow2({})".format, x),
        st.builds("({} in (0, 2, {}))".format, x, y),
        st.builds("(if {} then {} else {})".format, s, t, truth(0)),
        st.builds("beside({}, {}, 2)".format, x, y),
        reduction(st.sampled_from(["any", "all"]), s),
        st.builds("({} > 1/3)".format, reduction(st.just("mean"), s)),
        st.builds("(tab[q] % 3 == 1 and tab[within({}, n)] > 2)".format, x),
        st.builds("({} > 0.5 + tab[k] / 3)".format, x),
        drawn(s),
    )


def reduction(name: st.SearchStrategy[str], body: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    along = ["per = q.blk", "per = k.blk", "per = k.seg", "per = q.pair", "over = k", "over = q"]
    return st.builds("{}({}, {})".format, name, body, st.sampled_from(along))


def drawn(only: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """A selection among blocks by noise; what is selected from varies by blocks."""
    blocks = st.sampled_from(
        ["k.blk < q.blk", "k.blk != 1", "q.blk != k.blk and g == 0", "not (k.blk == q.blk)", "mode[h] > 0"]
    )
    # What varies by single queries must not narrow values that vary by blocks of them.
    fine = st.tuples(st.just("q, k.blk"), st.builds("any({}, per = k.blk)".format, only))
    coarse = st.tuples(st.sampled_from(["h, q.blk, k.blk", "k.blk", "q.blk, k.blk, g"]), blocks)
    parts = st.tuples(st.integers(0, 3), st.one_of(fine, coarse), st.integers(0, 3))
    return parts.map(lambda p: f"(noise({p[0]}, per = ({p[1][0]})) |> only({p[1][1]}) |> top({p[2]}))")


@st.composite
def examples(draw: st.DrawFn) -> Example:
    n = draw(st.integers(1, 7))
    heads, groups = draw(st.sampled_from([(1, 1), (2, 1), (2, 2)]))
    size = st.integers(1, 3)
    header = HEADER.format(
        width=draw(st.integers(0, 4)),
        first=draw(st.integers(-1, 4)),
        second=draw(st.integers(0, 9)),
        block=draw(st.integers(1, 4)),
        rows=draw(size),
        columns=draw(size),
        start=draw(st.integers(0, 2)),
    )
    lets = draw(st.lists(st.tuples(st.booleans(), number(2), truth(2)), max_size=2))
    body = [f"  let x{place} = {number if is_number else set_}" for place, (is_number, number, set_) in enumerate(lets)]
    uses = [f"x{place} > 1" if is_number else f"x{place}" for place, (is_number, _, _) in enumerate(lets)]
    body += [f"  keep {each}" for each in (*uses, draw(truth(3)))]
    ints = st.integers(0, 5)
    tables: dict[str, list[Any]] = {
        "tab": draw(st.lists(st.integers(-3, 8), min_size=n, max_size=n)),
        "flag": draw(st.lists(st.booleans(), min_size=n, max_size=n)),
        "doc": sorted(draw(st.lists(ints, min_size=n, max_size=n))),
        "mode": draw(st.lists(ints, min_size=heads, max_size=heads)),
    }
    text = header + "\n".join(body) + "\n}\n"
    return Example(text=text, n=n, heads=heads, groups=groups, tables=tables)
