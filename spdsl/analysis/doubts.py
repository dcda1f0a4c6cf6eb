"""From patterns to warnings: what is allowed, and yet may not be meant.

All of it is proved, for every length; what cannot be decided is not warned about.
"""

from __future__ import annotations

from spdsl.analysis.claims import decide
from spdsl.analysis.pairs import Subject
from spdsl.analysis.redundant import redundant
from spdsl.diagnostics import Diagnostic
from spdsl.semantics.bind import bind
from spdsl.semantics.freeing import freeable, freed
from spdsl.semantics.nodes import BoundPattern, CheckedPattern, Expr, Extent, Index
from spdsl.semantics.rewrite import mentions

_SECONDS = 1.0  # for the parts of one formula
_VARYING: tuple[Expr, ...] = (
    *(Index(name=name) for name in "hg"),
    *(Extent(name=name) for name in ("heads", "groups", "d", "layer")),
)


def doubts(pattern: BoundPattern) -> tuple[Diagnostic, ...]:
    """Queries that keep nothing, with the smallest example found."""
    keep = pattern.attend.keep
    if pattern.graph is not None:  # what a selection keeps, the call decides
        return ()
    answer = decide("nonempty", [Subject.of(pattern)])
    if answer.example is None or answer.example.inputs:  # it is for the tables to fill the row
        return ()
    return (
        Diagnostic(
            severity="warning",
            code="SP410",
            message=f"a query keeps nothing where {answer.example.where}",
            span=keep.span,
            help="its output is zeros and its LSE is -inf; add `or k == q` if every query should see something",
        ),
    )


def idle_parts(checked: CheckedPattern) -> tuple[Diagnostic, ...]:
    """Parts of ``keep`` without which the same pairs are kept, whatever the parameters are.

    Patterns that tell heads or layers apart are left alone, and so are those whose parameters cannot be left free: a
    part may change nothing for some of them and much for others.
    """
    names = [each.name for each in checked.parameters]
    if checked.graph is not None:
        return ()
    if not freeable(checked).issuperset(names) or any(mentions(checked.attend.keep, leaf) for leaf in _VARYING):
        return ()
    pattern = bind(freed(checked, names), {}, heads=1, groups=1, head_dim=64)
    found = redundant(pattern, seconds=_SECONDS).parts
    source = None if checked.span is None else checked.span.source.name
    return tuple(
        Diagnostic(
            severity="warning",
            code="SP411",
            message=f"`{part.text}` changes nothing: the same pairs are kept without it",
            span=part.span,
            note=f"an operand of `{part.of}`",
            help="leave it out, or check what was meant; `spdsl prove` says what is kept",
        )
        for part in found
        if part.span.source.name == source  # what it uses from elsewhere is not for it to change
    )
