"""Where intervals of keys begin and end: a kernel in the place of an operation of torch for each step.

From: bounds of intervals, which are sums and comparisons of whole numbers that queries, heads and members have.  To:
the kernel, and the numbers that it reads; None where more than that is asked for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from spdsl.codegen.emit import KernelSource, environment
from spdsl.codegen.expressions import text_of
from spdsl.semantics.nodes import Apply, Const, Expr, Load, Param
from spdsl.semantics.rewrite import walk

_STEPS = frozenset(("add", "sub", "neg", "min", "max", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"))
"""What the kernel does, in 64 bits as torch: nothing that rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Bounds by the names of what is read; ``reads`` are expressions that are made beforehand."""

    low: tuple[Expr, ...]
    high: tuple[Expr, ...]
    conditions: tuple[Expr, ...]
    reads: tuple[tuple[str, Expr], ...]


def ends(low: Sequence[Expr], high: Sequence[Expr], conditions: Sequence[Expr]) -> Ends | None:
    """The kernel of such bounds: what depends on positions alone is made once, and so is each number that is read."""
    reads = dict[Expr, Param]()

    def named(expr: Expr) -> Expr | None:
        if isinstance(expr, Const):
            return expr
        if isinstance(expr, Load) or not any(isinstance(node, Load) for node in walk(expr)):
            if expr.dtype == "float":
                return None
            return reads.setdefault(expr, Param(name=f"x{len(reads)}", dtype=expr.dtype))
        if not isinstance(expr, Apply) or expr.op not in _STEPS:
            return None
        args = [named(arg) for arg in expr.args]
        if any(arg is None or arg.dtype == "float" for arg in args):
            return None
        return Apply(op=expr.op, args=tuple(arg for arg in args if arg is not None), dtype=expr.dtype)

    made = [tuple(map(named, each)) for each in (low, high, conditions)]
    if any(each is None for part in made for each in part):
        return None
    lows, highs, others = (tuple(each for each in part if each is not None) for part in made)
    names = tuple((param.name, expr) for expr, param in reads.items())
    return Ends(low=lows, high=highs, conditions=others, reads=names)


def emit_ends(given: Ends, name: str) -> KernelSource:
    """The source of the kernel; ``name`` is that of the pattern."""
    rendered = (
        environment()
        .get_template("ends.jinja")
        .render(
            name=name,
            reads=[read for read, _ in given.reads],
            ints=[read for read, expr in given.reads if expr.dtype == "int"],
            low=list(map(text_of, given.low)),
            high=list(map(text_of, given.high)),
            conditions=list(map(text_of, given.conditions)),
        )
    )
    rendered = re.sub(r"[ \t]+\n", "\n", rendered).rstrip("\n") + "\n"
    return KernelSource(name=f"{name}_ends", text=rendered, digest=hashlib.sha256(rendered.encode()).hexdigest()[:16])
