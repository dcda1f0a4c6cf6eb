"""Scores as matrix products of a tile of rows with a tile of columns.

From: a score and a place.  To: lines that load the terms of which vectors of queries and keys are sums, and their
products.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from spdsl.codegen.chains.affine import Sum, sum_of, tidy
from spdsl.codegen.chains.parts import LONG, Terms, Vectors
from spdsl.codegen.chains.places import Place, UncoveredError
from spdsl.codegen.chains.program import NOTHING, Known
from spdsl.semantics import build
from spdsl.semantics.graph import Score, index_of, on_side, side_of
from spdsl.semantics.nodes import Apply, Const, Expr, Extent, Index, Param
from spdsl.semantics.rewrite import free_axes, transform

if TYPE_CHECKING:
    from spdsl.codegen.chains.values import Values


def score(values: Values, stage: Score, place: Place) -> Expr:
    """A matrix product, times the scale."""
    found = product(values, stage, place)
    return values.program.name("score", build.mul(found, Param(name=scale(values, stage), dtype="float")))


def scale(values: Values, stage: Score) -> str:
    """The name of the factor of a score."""
    name = f"{stage.name}_scale"
    values.factors[name] = stage.name
    values.program.known[name] = NOTHING
    return name


def product(values: Values, stage: Score, place: Place, *, turned: bool = False, so_far: Expr | None = None) -> Expr:
    """A matrix product, added to what there is ``so_far``; ``turned`` with keys, all of which exist, as the rows of the
    matrix unit: there, few queries take less of it."""
    program = values.program
    query, key = stage.left, stage.right
    if on_side(free_axes(query), "k") is not None:
        query, key = key, query
    terms = values.terms[stage.name]
    rows = _vectors(values, f"{stage.name}_q", query, stage.over, "q", terms)
    columns = _vectors(values, f"{stage.name}_k", key, stage.over, "k", terms)
    rows = _first_alike(values, rows)
    found = so_far
    for of_query, of_key in terms.pairs or ((0, 0),):
        if found is not so_far and not values.ordinary and (of_query, of_key) == (0, 0):
            # What is infinite is told by the product of the largest terms alone, of the right sign.
            assert found is not None
            sums = program.atom(found)
            finite = f'tl.where(tl.abs({sums}) < float("inf"), {sums}, 0.0)'
            found = program.let("product", finite, program.of(found), "float")
        left = _tile(values, rows, place, query, terms, of_query)
        right = _tile(values, columns, place, key, terms, of_key, exist=turned)
        what = program.of(left) | program.of(right)
        factors = [program.text(left), program.text(right)]
        added = [] if found is None else [program.atom(found)]
        if turned:
            factors.reverse()
            factors, added = ([f"tl.trans({each})" for each in part] for part in (factors, added))
        precision = ', input_precision="ieee"' if terms == LONG else ""
        text = f"tl.dot({', '.join((*factors, *added))}{precision})"
        text = f"tl.trans({text})" if turned else text
        found = program.let("product", text, what, "float")
    assert found is not None
    return found


def _vectors(values: Values, name: str, expr: Expr, over: str, side: str, terms: Terms) -> Vectors:
    base, _ = wrapped(expr) if side == "q" else (expr, None)
    axes = sorted(axis for axis in free_axes(base) - {"b", over} if side_of(axis) is None)
    rows = on_side(free_axes(base), "q" if side == "q" else "k")
    if rows is None or on_side(free_axes(base), "k" if side == "q" else "q") is not None:
        raise UncoveredError("products that are not of queries with keys")
    count = max(1, terms.queries if side == "q" else terms.keys)
    found = Vectors(name=name, expr=base, axes=tuple(axes), rows=rows, feature=over, terms=count)
    values.vectors.setdefault(name, found)
    return found


def _first_alike(values: Values, vectors: Vectors) -> Vectors:
    """The first of the vectors that are the same, so that those that two scores read are loaded once."""
    same = (each for each in values.vectors.values() if replace(each, name=vectors.name) == vectors)
    return next(same, vectors)


def _tile(
    values: Values, vectors: Vectors, place: Place, expr: Expr, terms: Terms, term: int, *, exist: bool = False
) -> Expr:
    """Rows as ``[BLOCK_R, FEATURES]``, keys as ``[FEATURES, BLOCK_C]``; zeros where there are none, unless all
    ``exist``."""
    program, name = values.program, vectors.name
    is_query = name.endswith("_q")
    what, base = NOTHING, [name, f"tl.cast(b, tl.int64) * {name}_b"]
    for axis in vectors.axes:
        index = values.at(index_of(axis), place)
        what = what | program.of(index)
        base.append(f"tl.cast({program.atom(index)}, tl.int64) * {name}_{axis}")
    if term:
        base.append(f"{term} * {name}_t")
    entry = values.at(index_of(vectors.rows), place)
    entry = build.sub(entry, Extent(name="q_start")) if vectors.rows == "q" else entry
    entry = entry if values.paired else program.name("entry", entry)
    whole = what | program.of(entry)
    feature = f"tl.arange(0, {name.upper()})"
    feature = program.atom(
        program.let("feature", f"{feature}[None, :]" if is_query else f"{feature}[:, None]", NOTHING, "int")
    )
    start = program.atom(program.let("start", " + ".join(base), what, "int"))
    near = _neighbours(values, name, entry, what, start, feature) if values.paired else None
    if near is not None:
        text = near
    else:
        at = program.atom(entry)
        mask = f"{feature} < {name}_size"
        if not exist:
            inside = f"({at} >= 0) & ({at} < {name}_rows)"
            mask = f"{program.atom(program.let('there', inside, program.of(entry), 'bool'))} & ({mask})"
        text = f"tl.load({start} + tl.cast({at}, tl.int64) * {name}_r + {feature} * {name}_f, mask={mask}, other=0.0)"
    text += ".to(tl.float32)" if terms == LONG else ""
    found = program.let("query" if is_query else "key", text, whole, "float")
    if not is_query:
        return found
    _, wrap = wrapped(expr)
    assert wrap is not None
    made = transform(wrap, lambda node: found if node == _HOLE else None)
    if made is found:
        return found
    plain = "" if terms == LONG else f".to({program.atom(found)}.dtype)"
    return program.let("query", f"({program.text(made)}){plain}", whole, "float")


def _neighbours(values: Values, name: str, entry: Expr, what: Known, start: str, feature: str) -> str | None:
    """How a tile is loaded of rows that lie evenly: their places beside the first one take 32 bits and stay, and one
    number moves; None where the entries are others."""
    program, whole = values.program, sum_of(tidy(entry))
    found = [(term, factor) for term, factor in whole.terms if program.of(term).row or program.of(term).column]
    match found:
        case [(Index(name=tile), int() as factor)] if tile in values.tiles and factor > 0:
            pass
        case _:
            return None
    near, lies = values.tiles[tile], program.known[tile]
    rest = Sum(terms=tuple(each for each in whole.terms if each not in found), constant=whole.constant)
    first_of = build.add(rest.expr(), build.mul(near.first, factor))
    first = program.atom(program.name("first", first_of))
    shape = "[:, None]" if lies.row else "[None, :]"
    along = program.let("along", f"tl.arange(0, {near.size}){shape} * {factor}", replace(lies, depth=0), "int")
    offset = f"{program.atom(along)} * {name}_r + {feature} * {name}_f"
    offset = program.atom(program.let("offset", offset, replace(lies, depth=0), "int"))
    known = what | program.of(first_of)
    begin = program.atom(program.let("begins", f"{start} + tl.cast({first}, tl.int64) * {name}_r", known, "int"))
    inside = f"({program.atom(along)} >= -{first}) & ({program.atom(along)} < {name}_rows - {first})"
    there = program.atom(program.let("there", inside, known | program.of(along), "bool"))
    return f"tl.load({begin} + {offset}, mask={there} & ({feature} < {name}_size), other=0.0)"


_HOLE = Param(name="?", dtype="float")


def wrapped(expr: Expr) -> tuple[Expr, Expr]:
    """What is loaded of an array of queries, and what is then done to its numbers without rounding any."""
    match expr:
        case Apply(op="max" | "min" as op, args=(inner, Const(value=0 | 0.0) as nothing)):
            base, wrap = wrapped(inner)
            return base, replace(expr, op=op, args=(wrap, nothing))
        case Apply(op="neg" | "abs", args=(inner,)):
            base, wrap = wrapped(inner)
            return base, replace(expr, args=(wrap,))
        case _:
            return expr, _HOLE
