"""Declaring a name: free, not reserved, and told apart from what it must not hide."""

from __future__ import annotations

from spdsl.diagnostics import Span
from spdsl.semantics.expressions import Evaluator
from spdsl.semantics.scope import ARGUMENTS, BUILTINS, TYPES, WORDS
from spdsl.semantics.values import POISON, Value
from spdsl.semantics.wording import a_kind


def declare(ev: Evaluator, name: str, value: Value, span: Span | None, kind: str) -> bool:
    """Add a name to the scope unless it is taken or reserved."""
    from spdsl.semantics.functions import FUNCTIONS

    if name in BUILTINS or name in WORDS or name in FUNCTIONS or name in TYPES:
        ev.error(
            "SP202", f"`{name}` already means something in the language", span, help=f"give the {kind} another name"
        )
        if name not in BUILTINS:
            ev.scope.declare(name, POISON, span, kind)
        return False
    if kind in ("parameter", "input") and name in ARGUMENTS:
        ev.error(
            "SP202",
            f"no {kind} may be called `{name}`",
            span,
            help="calls from Python have an argument of that name; choose another",
        )
        if name not in BUILTINS:
            ev.scope.declare(name, POISON, span, kind)
        return False
    earlier = ev.scope.entries.get(name)
    if earlier is not None:
        line = f"{a_kind(earlier.kind)} since line {earlier.span.line}" if earlier.span else ""
        ev.error("SP202", f"`{name}` is declared twice", span, note=line, help="give one of them another name")
        return False
    if name in ev.unit.library.defs or name in ev.unit.library.patterns:
        what = "def" if name in ev.unit.library.defs else "pattern"
        ev.error("SP202", f"`{name}` is the name of a {what}", span, help=f"give the {kind} another name")
        return False
    ev.scope.declare(name, value, span, kind)
    return True
