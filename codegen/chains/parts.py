"""What the kernels of a selection take besides lengths: vectors, tables, and the sums of softmaxes, by the names they
have in a kernel."""

from __future__ import annotations

from dataclasses import dataclass

from spdsl.semantics.nodes import Expr, Reduce

ABSENT, FORCED = -(1 << 31), (1 << 31) - 1
"""The keys of entries that are absent, and of those that come before all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Of how many numbers of 16 bits those of queries and of keys are sums in the products of a score; of none where
    products are of 32 bits."""

    queries: int
    keys: int

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The terms that are multiplied, the smallest products first, so that none is lost beside the larger ones.

        Each term is 2⁻⁸ of the one before, so that products of two small ones are less than what is rounded anyway.
        """
        most = max(self.queries, self.keys)
        pairs = [(left, right) for left in range(self.queries) for right in range(self.keys) if left + right < most]
        return tuple(sorted(pairs, key=sum, reverse=True))


LONG = Terms(queries=0, keys=0)
"""Products of 32 bits, which no matrix unit makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """One side of a score: ``expr`` as an array along ``axes`` (heads and free axes), ``rows`` and ``feature``.

    Its numbers are sums of so many ``terms``.
    """

    name: str
    expr: Expr
    axes: tuple[str, ...]
    rows: str
    feature: str
    terms: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What the softmax ``stage`` divides by, for each head (if any) and row."""

    name: str
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """A kernel computes ``size`` finer entries for each of its columns, and of the next column's the first ``more``."""

    size: int
    more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Neighbouring entries: the ``first`` one, and how many, by the name of a compile-time size."""

    first: Expr
    size: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """Everything that a kernel takes: ``sizes`` of axes and ``factors`` of scores by the names of the arguments, and
    ``tables`` with the number of their axes; ``arrays`` of earlier stages, one value for each row, with their axes, and
    those of ``reduced`` conditions and sizes, one value for each member of an axis; ``pairs`` are stages of which a
    kernel before has left a value for each of the rows and each coarser entry, with whether they have heads."""

    vectors: tuple[Vectors, ...]
    sums: tuple[Sums, ...]
    tables: tuple[tuple[str, int], ...]
    sizes: tuple[tuple[str, str], ...]
    factors: tuple[tuple[str, str], ...]
    arrays: tuple[tuple[str, tuple[str, ...]], ...] = ()
    reduced: tuple[tuple[str, Reduce], ...] = ()
    pairs: tuple[tuple[str, bool], ...] = ()
