"""Everything that is to be said about a program: mistakes, warnings, and warnings that need a proof."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from spdsl.diagnostics import Diagnostic, SpatError
from spdsl.semantics.bind import bind
from spdsl.semantics.nodes import CheckedPattern

SECONDS = 4.0
"""Wall-clock time for the proofs that one kind of warning needs."""


def doubts_of(patterns: Iterable[CheckedPattern]) -> tuple[Diagnostic, ...]:
    """Proved warnings about those patterns whose parameters have defaults, in the order of the text."""
    found: list[Diagnostic] = []
    for pattern in patterns:
        from spdsl.analysis.doubts import doubts, idle_parts
        from spdsl.analysis.stability import unstable
        from spdsl.analysis.worker import bounded

        with contextlib.suppress(SpatError):  # parameters or a layer are yet to be given
            found += bounded(idle_parts, {"checked": pattern}, seconds=SECONDS) or ()
            bound = bind(pattern, {}, heads=1, groups=1, head_dim=64)
            found += bounded(doubts, {"pattern": bound}, seconds=SECONDS) or ()
            if bound.graph is not None:
                found += bounded(unstable, {"pattern": bound}, seconds=SECONDS) or ()
    return tuple(found)
