"""What a kernel has to do in one call, in the numbers that its time depends on."""

from __future__ import annotations

from dataclasses import dataclass

from spdsl.analysis.plans import KernelPlan, Kind, Plan, Precision, Tiles
from spdsl.analysis.tiles import DistanceWalk, ListWalk, PickWalk
from spdsl.semantics.nodes import Apply, Expr, Load
from spdsl.semantics.rewrite import free_indices, walk

SOFTCAP = 16
"""Operations that a soft cap takes: an exponential and a quotient are worth several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """Small kernels ahead of a kernel: ``copies`` of rows by residue class move so many ``bytes``; a sorted table of
    ``searched`` rows is searched for the ends of each tile, if that is not 0; so many lists with a number for each row
    are ``filled`` up to a multiple of four."""

    searched: int = 0
    copies: int = 0
    bytes: int = 0
    filled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A kernel and its counts over batch and heads, all exact.

    ``programs`` own a tile each; ``full`` and ``masked`` tiles are walked, ``longest`` of them by one program (0 where
    programs are much alike).  ``operations`` and ``loads`` are what masking one pair takes, ``extra`` what bias and
    soft cap add to every logit.  ``listed``: tiles are found through memory.  ``rows`` counts queries over batch and
    heads; ``heads`` are those whose rows programs own, of all sequences.  ``long`` rows over all heads, of at most
    ``most`` tiles, are cut into parts, of which each has a program.  ``even``: programs do several tiles of their
    own, every so many-th, and ``queued``: whichever comes next; each begins while the one before ends.  ``before`` is
    what has to be done before the kernel begins.  ``reads``: where a call has few queries, the bytes of the keys and
    values that it reads, which take the time.
    """

    kind: Kind
    tiles: Tiles
    head_dim: int
    value_dim: int
    dtype: Precision
    descriptors: bool
    programs: int
    full: int
    masked: int
    longest: int
    operations: int
    loads: int
    extra: int
    listed: bool
    rows: int
    heads: int
    long: int = 0
    most: int = 0
    even: bool = False
    queued: bool = False
    before: Before = Before()  # it is frozen
    reads: int = 0

    @property
    def touched(self) -> int:
        """Tiles that are walked."""
        return self.full + self.masked

    @property
    def flops(self) -> int:
        """Operations of the matrix products, of whole tiles."""
        d, dv = self.head_dim, self.value_dim
        per_pair = {"forward": d + dv, "dq": 2 * d + dv, "dkdv": 2 * d + 2 * dv, "fused": 3 * d + 2 * dv}
        return 2 * per_pair[self.kind] * self.touched * self.tiles.block_q * self.tiles.block_k


def work_of(
    plan: Plan,
    kernel: KernelPlan,
    *,
    programs: int,
    full: int,
    touched: int,
    longest: int,
    rows: int,
    heads: int,
    long: int,
    most: int,
    even: bool,
    queued: bool,
    before: Before,
    reads: int,
) -> Work:
    """The work of a kernel of ``plan`` with these counts."""
    problem = plan.problem
    logits = [each for each in (plan.bias,) if each is not None]
    tested = plan.keep if kernel.turned is None else kernel.turned.keep
    return Work(
        kind=kernel.kind,
        tiles=kernel.tiles,
        head_dim=problem.pattern.head_dim,
        value_dim=problem.value_dim,
        dtype=problem.dtype,
        descriptors=kernel.descriptors,
        programs=programs,
        full=full,
        masked=touched - full,
        longest=longest,
        operations=_of_pairs(tested, Apply),
        loads=_of_pairs(tested, Load),
        extra=sum(_of_pairs(each, Apply | Load) for each in logits) + (SOFTCAP if plan.softcap is not None else 0),
        listed=isinstance(kernel.walk, ListWalk | DistanceWalk | PickWalk),
        rows=rows,
        heads=heads,
        long=long,
        most=most,
        even=even,
        queued=queued,
        before=before,
        reads=reads,
    )


def _of_pairs(expr: Expr, kind: object) -> int:
    """How many different nodes of a kind depend on both the query and the key, so that every pair has its own."""
    nodes = {node for node in walk(expr) if isinstance(node, kind)}  # type: ignore[arg-type]  # a type or a union
    return sum({"q", "k"} <= free_indices(node) for node in nodes)
