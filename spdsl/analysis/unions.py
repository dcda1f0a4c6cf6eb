"""Unions whose parts are walked best in different ways: from the set of a pattern to disjoint sets.

"The last 128 tokens, and before them every 128th one": walked as one set, the second part touches every tile, each for
a few pairs.  On its own its rows can be parted into residue classes, whose tiles are dense.  "A window, and the tokens
marked in a table": on their own, the marked keys can be gathered into dense tiles, and the marked queries too.  "A
window, and the blocks that a query has picked": on their own, these are walked from lists.  So the set is told apart
into these parts and the rest, without pairs in common; each becomes a plan of its own, whose kernels go on from the
results of the one before.  Nothing is planned here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

from spdsl.analysis.tiles import Residues
from spdsl.semantics.fold import fold
from spdsl.semantics.nodes import Apply, Expr, Index, Load, Side
from spdsl.semantics.rewrite import conjuncts, disjuncts, free_indices, walk

SIDES: tuple[Side, Side] = ("k", "q")

LEAST = 4
"""The least modulus that pays for a second pass over the rows of queries."""

SPARSEST = 4
"""How many times larger than the modulus a stride may be: of longer ones few tiles are touched anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DisjointSet:
    """One of the sets of a union; with ``side`` the rows of that side are marked ones, few and far between."""

    keep: Expr
    side: Side | None = None


def disjoint_sets(
    keep: Expr,
    residues: Callable[[Expr], Residues | None],
    *,
    picks: Callable[[Expr], bool] = lambda _: False,
    gathers: bool = True,
) -> tuple[DisjointSet, ...]:
    """``keep`` as sets without common pairs: first what is neither strided nor marked nor picked, then each of these
    parts.

    ``residues`` tells those of a set, ``picks`` whether its pairs are all picked; ``gathers`` says whether marked rows
    may be gathered.  Empty
    where nothing is gained: no clause of ``keep`` is a union, or no part of one is such a part, or all are.
    """
    clauses = conjuncts(keep)
    for place, clause in enumerate(clauses):
        parts = disjuncts(clause)
        if len(parts) == 1:
            continue
        common = clauses[:place] + clauses[place + 1 :]
        strided = [part for part in parts if _may_have_residues(part) and _pay(residues(_all([*common, part])))]
        keys, queries = ([part for part in parts if gathers and marked_side(part) == side] for side in SIDES)
        chosen = [part for part in parts if picks(_all([*common, part]))]
        rest = [part for part in parts if part not in (*strided, *keys, *queries, *chosen)]
        picked = not rest and bool(keys)
        if picked:
            # Beside marked keys, what is picked is the rest.  To leave marked keys out takes a look at a table,
            # to leave out what is picked a search in lists.
            rest, chosen = chosen, []
        if rest and len(rest) < len(parts):
            apart: list[tuple[Expr, Side | None]] = [(part, None) for part in (*strided, *chosen)]
            apart += [(part, side) for side, marked in zip(SIDES, (keys, queries), strict=True) for part in marked]
            return _sets(common, rest, apart, left_out=keys if picked else [])
    return ()


def _pay(found: Residues | None) -> bool:
    return found is not None and found.modulus >= LEAST and found.stride <= SPARSEST * found.modulus


def _may_have_residues(part: Expr) -> bool:
    """Whether both sides and a remainder occur: elsewhere isl would look in vain."""
    both = {"q", "k"} <= free_indices(part)
    return both and any(isinstance(node, Apply) and node.op == "mod" for node in walk(part))


def marked_side(part: Expr) -> Side | None:
    """The side whose rows a clause of ``part`` picks out one by one, by a table of tokens or by their remainder."""
    return next((side for side in SIDES if any(is_mark(clause, side) for clause in conjuncts(part))), None)


def is_mark(clause: Expr, side: Side) -> bool:
    """Whether a clause is about rows of one side alone and keeps no runs of them that could be known beforehand.

    Marks of keys may differ by heads where a table holds them: what any head of a group has marked is gathered for all.
    """
    read, own = free_indices(clause), Index(name=side)
    if read != {side}:
        by_head = side == "k" and read - {"h", "g"} == {side}
        return by_head and any(isinstance(node, Load) and own in node.indices for node in walk(clause))
    return any(
        (isinstance(node, Load) and own in node.indices)
        or (isinstance(node, Apply) and node.op == "mod" and node.args[0] == own)
        for node in walk(clause)
    )


def _sets(
    common: Sequence[Expr],
    rest: Sequence[Expr],
    apart: Sequence[tuple[Expr, Side | None]],
    left_out: Sequence[Expr],
) -> tuple[DisjointSet, ...]:
    """The rest, and the parts that stand apart, each without what is taken before: what is ``left_out`` of the rest,
    the rest, and the others, in this order."""
    before = [each for each in apart if each[0] in left_out]
    taken, found = list[Expr](), list[DisjointSet]()
    for part, side in (*before, (_any(rest), None), *(each for each in apart if each not in before)):
        without = [Apply(op="not", args=(_any(taken),), dtype="bool")] if taken else []
        found.append(DisjointSet(keep=fold(_all([*common, part, *without])), side=side))
        taken.append(part)
    return (found.pop(len(before)), *found)


def _all(clauses: Sequence[Expr]) -> Expr:
    return reduce(lambda a, b: Apply(op="and", args=(a, b), dtype="bool", span=b.span), clauses)


def _any(clauses: Sequence[Expr]) -> Expr:
    return reduce(lambda a, b: Apply(op="or", args=(a, b), dtype="bool", span=b.span), clauses)
