"""Unions whose parts are walked best in different ways: from the set of a pattern to disjoint sets.

"The last 128 tokens, and before them every 128th one": walked as one set, the second part touches every tile, each for
a few pairs.  On its own its rows can be parted into residue classes, whose tiles are dense.  So the set is told apart
into what has residues and what has not, without pairs in common; each becomes a plan of its own, whose kernels go on
from the results of the one before.  Nothing is planned here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Apply, Expr
from spdsl.semantics.rewrite import conjuncts, disjuncts, free_indices, walk

LEAST = 4
"""The least modulus that pays for a second pass over the rows of queries."""


def disjoint_sets(keep: Expr, modulus: Callable[[Expr], int]) -> tuple[Expr, ...]:
    """``keep`` as sets without common pairs, the first without residues, each of the others with its own.

    ``modulus`` tells that of a set, 1 if it has none.  Empty where nothing is gained: no clause of ``keep`` is a union,
    or no part of one has residues, or all have.
    """
    clauses = conjuncts(keep)
    for place, clause in enumerate(clauses):
        parts = disjuncts(clause)
        strided = [part for part in parts if _may_have_residues(part)]
        if len(parts) == 1 or not strided:
            continue
        common = clauses[:place] + clauses[place + 1 :]
        apart = [part for part in strided if modulus(_all([*common, part])) >= LEAST]
        rest = [part for part in parts if part not in apart]
        if apart and rest:
            return tuple(_sets(common, rest, apart))
    return ()


def _may_have_residues(part: Expr) -> bool:
    """Whether both sides and a remainder occur: elsewhere isl would look in vain."""
    both = {"q", "k"} <= free_indices(part)
    return both and any(isinstance(node, Apply) and node.op == "mod" for node in walk(part))


def _sets(common: list[Expr], rest: list[Expr], apart: list[Expr]) -> list[Expr]:
    taken = _any(rest)
    found = [_all([*common, taken])]
    for part in apart:
        found.append(_all([*common, part, Apply(op="not", args=(taken,), dtype="bool")]))
        taken = _any([taken, part])
    return [fold(each) for each in found]


def _all(clauses: list[Expr]) -> Expr:
    return reduce(lambda a, b: Apply(op="and", args=(a, b), dtype="bool", span=b.span), clauses)


def _any(clauses: list[Expr]) -> Expr:
    return reduce(lambda a, b: Apply(op="or", args=(a, b), dtype="bool", span=b.span), clauses)
