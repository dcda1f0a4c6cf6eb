"""What the kernels of the backward leave: accumulators, how they are stored, and the arguments for that.

A kernel that computes whole rows, and one that adds up the parts of a row, end alike.
"""

from __future__ import annotations

from dataclasses import dataclass

from spdsl.analysis.plans import TableGradient
from spdsl.codegen.blocks import Argument, Block, StoreRows, Zeros
from spdsl.codegen.frame import Frame
from spdsl.codegen.split import Sums
from spdsl.codegen.tensors import plain_tensor, pointers, store_tile
from spdsl.semantics.nodes import Expr, Side

KEY_ROWS = Argument(name="key_rows", type="i32", note="rows of K")


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """Sums that a kernel leaves for one gradient of a table: accumulator ``name``, memory ``pointer``."""

    number: int
    gradient: TableGradient
    factor: Expr

    @property
    def name(self) -> str:
        """The accumulator."""
        return f"grad_{self.number}"

    @property
    def length(self) -> str:
        """How many sums an accumulator holds."""
        return "BLOCK_K" if self.gradient.by == "key" else "BLOCK_Q"

    @property
    def pointer(self) -> str:
        """The argument that holds the sums."""
        return partial_pointer(self.number)

    @property
    def argument(self) -> Argument:
        """The argument with its shape."""
        shape = {"key": "key_rows", "pair": "nq, key_rows", "distance": "nq + key_rows - 1"}.get(self.gradient.by, "nq")
        return Argument(
            name=self.pointer, type="*fp32", note=f"[batch, heads, {shape}], for table {self.gradient.table}"
        )


def partial_pointer(position: int) -> str:
    """The name of the argument for the gradient at ``position`` of the plan."""
    return f"Grad{position}"


def partials(frame: Frame, of: str, by: tuple[str, ...]) -> tuple[tuple[int, TableGradient], ...]:
    """The gradients of the plan that a kernel accumulates."""
    return tuple(
        (position, gradient)
        for position, gradient in enumerate(frame.plan.gradients)
        if gradient.of == of and gradient.by in by
    )


def dq_sums(rows: tuple[Partial, ...]) -> Sums:
    """The accumulators of dQ, with those of ``rows``."""
    return Sums(accumulators=(("dq", ("BLOCK_Q", "HEAD_DIM")), *((each.name, ("BLOCK_Q",)) for each in rows)))


def dq_end(frame: Frame, rows: tuple[Partial, ...]) -> tuple[Block, ...]:
    """From the accumulators of dQ to memory."""
    return (
        *_store(frame, "dQ", "q", "HEAD_DIM", frame.plan.scale),
        *(StoreRows(value=each.name, pointer=each.pointer, side="q") for each in rows),
    )


def dkdv_sums(rows: tuple[Partial, ...]) -> Sums:
    """The accumulators of dK and dV, with those of ``rows``."""
    own = (("dk", ("BLOCK_K", "HEAD_DIM")), ("dv", ("BLOCK_K", "VALUE_DIM")))
    return Sums(accumulators=(*own, *((each.name, ("BLOCK_K",)) for each in rows)))


def dkdv_end(frame: Frame, rows: tuple[StoreRows, ...]) -> tuple[Block, ...]:
    """From the accumulators of dK and dV to memory."""
    return (
        *_store(frame, "dK", "k", "HEAD_DIM", frame.plan.scale),
        *_store(frame, "dV", "k", "VALUE_DIM", None),
        *rows,
    )


def zeros(sums: tuple[Partial, ...]) -> tuple[Zeros, ...]:
    """Empty accumulators."""
    return tuple(Zeros(name=each.name, shape=(each.length,)) for each in sums)


def result_arguments(frame: Frame, names: tuple[str, ...], sums: tuple[Partial, ...]) -> tuple[Argument, ...]:
    """The arguments for what a kernel writes."""
    problem = frame.plan.problem
    dim, value_dim = problem.pattern.head_dim, problem.value_dim
    widths = {"dQ": ("q", dim), "dK": ("k", dim), "dV": ("k", value_dim)}
    return (
        *(argument for name in names for argument in plain_tensor(frame, name, *widths[name])),
        *(each.argument for each in sums),
        *((KEY_ROWS,) if any(each.gradient.by in ("key", "pair") for each in sums) else ()),
    )


def _store(frame: Frame, tensor: str, side: Side, columns: str, factor: float | None) -> tuple[Block, ...]:
    return (
        pointers(frame, tensor, side, columns),
        store_tile(frame, tensor.lower(), tensor, side, columns, factor, added=True),
    )
