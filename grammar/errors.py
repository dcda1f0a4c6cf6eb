"""From a `Misfit` to the `SpatError` that a user reads: what was found, what could stand there, and how to mend it."""
from __future__ import annotations
from collections.abc import Callable
from spdsl.diagnostics import SpatError, Span, error
from spdsl.grammar.engine import Misfit


def explain(misfit: Misfit, text: str, span: Callable[[int, int], Span]) -> SpatError:
    token = misfit.token
    return error("SP101", f"unexpected `{token.text}`", span(token.start, max(token.end, token.start)))
