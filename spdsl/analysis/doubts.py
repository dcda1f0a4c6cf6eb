"""From a bound pattern to warnings: what is allowed, and yet may not be meant."""

from __future__ import annotations

from spdsl.analysis.plan import grid_length
from spdsl.analysis.proofs import empty_rows
from spdsl.diagnostics import Diagnostic
from spdsl.semantics.expand import expand
from spdsl.semantics.nodes import BoundPattern


def doubts(pattern: BoundPattern) -> tuple[Diagnostic, ...]:
    """Queries that keep nothing, with the smallest example found."""
    keep = pattern.attend.keep
    found = empty_rows(
        expand(pattern, keep),
        heads=pattern.heads,
        groups=pattern.groups,
        tables=pattern.tables,
        length=grid_length(pattern),
    )
    if found is None:
        return ()
    return (
        Diagnostic(
            severity="warning",
            code="SP410",
            message=f"a query keeps nothing where {found}",
            span=keep.span,
            help="its output is zeros and its LSE is -inf; add `or k == q` if every query should see something",
        ),
    )
