"""Sums over free axes of few members, written out: `sum(w * x, over = a)` is `w[0] * x[0] + w[1] * x[1] + …`.

From: an expression that reads stages, and how many members each axis has.  To: the same without those stages; others,
and sums of many members, are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from spdsl.semantics import build
from spdsl.semantics.graph import Pool, Stage, index_of, is_free
from spdsl.semantics.nodes import Apply, Const, Expr, Load
from spdsl.semantics.rewrite import substitute, transform

MOST = 8
"""Members up to which a sum is written out."""

FEATURES = ("d", "e")


def written_out(expr: Expr, stages: Mapping[str, Stage], size: Callable[[str], int]) -> Expr:
    """The expression with sums over free axes of up to `MOST` members in the place of the stages that hold them."""

    def rewrite(node: Expr) -> Expr | None:
        stage = stages.get(node.table) if isinstance(node, Load) else None
        match stage:
            case Pool(kind="sum", per=None, windows=None, over=over, dtype="float") if is_free(over):
                pass
            case _:
                return None
        assert isinstance(node, Load)
        own = node.indices[len(node.indices) - len(stage.axes) :] == tuple(map(index_of, stage.axes))
        if not own or over in FEATURES or not 0 < size(over) <= MOST:
            return None
        present = stage.value
        if stage.only != build.TRUE:
            nothing = Const(value=0.0)
            present = Apply(op="where", args=(stage.only, stage.value, nothing), dtype="float", span=node.span)
        total: Expr | None = None
        for member in range(size(over)):
            part = substitute(present, {index_of(over): Const(value=member)})
            total = part if total is None else build.add(total, part)
        assert total is not None
        return written_out(total, stages, size)

    return transform(expr, rewrite)
