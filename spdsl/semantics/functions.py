"""Built-in functions, one handler each, in one table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from spdsl.semantics.branches import at
from spdsl.semantics.build import lift
from spdsl.semantics.expressions import Arg, Evaluator, Invocation
from spdsl.semantics.members import merge
from spdsl.semantics.reductions import REDUCTIONS, noise, reduce, top
from spdsl.semantics.selections import force, only, score, select, softmax
from spdsl.semantics.values import POISON, Poison, Scalar, Value
from spdsl.semantics.vectors import descend, mix, norm, smooth, unit

Handler: TypeAlias = Callable[[Evaluator, Invocation], Value]


def plain_arguments(ev: Evaluator, call: Invocation, least: int, most: int | None = None) -> bool:
    """Whether a call has the right number of arguments and none by name; records the mistake."""
    most = least if most is None else most
    for name, argument in call.keywords.items():
        ev.error("SP204", f"`{call.name}` takes no argument `{name}`", argument.span, help="leave it out")
        return False
    if not least <= len(call.args) <= most:
        wanted = str(least) if most == least else f"{least} or more"
        plural = "" if wanted == "1" else "s"
        ev.error(
            "SP204",
            f"`{call.name}` takes {wanted} argument{plural}, not {len(call.args)}",
            call.span,
            help=f"write `{call.name}({', '.join('xyz'[:least])})`",
        )
        return False
    return not any(isinstance(arg.value, Poison) for arg in call.args)


def _unary(op: str) -> Handler:
    def handler(ev: Evaluator, call: Invocation) -> Value:
        if not plain_arguments(ev, call, 1):
            return POISON
        return ev.operate(op, call.args, call.span, f"`{call.name}`")

    return handler


def _extreme(op: str) -> Handler:
    def handler(ev: Evaluator, call: Invocation) -> Value:
        if {"per", "over", "upto"} & set(call.keywords):
            return reduce(ev, call)
        if len(call.args) == 1 and not call.keywords and not isinstance(call.args[0].value, Poison):
            return ev.error(
                "SP204",
                f"`{call.name}` of one value needs to know over what",
                call.span,
                help=f"write `{call.name}(x, per = q.blk)`, `{call.name}(x, over = k)`, or give several values",
            )
        if not plain_arguments(ev, call, 1, 64):
            return POISON
        whole = call.args[0]
        for arg in call.args[1:]:
            value = ev.operate(op, (whole, arg), call.span, f"`{call.name}`")
            whole = Arg(value=value, node=whole.node)
        return whole.value

    return handler


def _clamp(ev: Evaluator, call: Invocation) -> Value:
    if not plain_arguments(ev, call, 3):
        return POISON
    value, low, high = call.args
    raised = ev.operate("max", (value, low), call.span, "`clamp`")
    return ev.operate("min", (Arg(value=raised, node=value.node), high), call.span, "`clamp`")


def _round(op: str) -> Handler:
    def handler(ev: Evaluator, call: Invocation) -> Value:
        if not plain_arguments(ev, call, 1):
            return POISON
        value = call.args[0].value
        if isinstance(value, Scalar) and value.dtype == "int":
            # An int is its own floor.
            return value
        return ev.operate(op, call.args, call.span, f"`{call.name}`")

    return handler


def _relu(ev: Evaluator, call: Invocation) -> Value:
    if not plain_arguments(ev, call, 1):
        return POISON
    zero = Arg(value=Scalar(expr=lift(0.0)), node=call.args[0].node)
    return ev.operate("max", (call.args[0], zero), call.span, "`relu`")


FUNCTIONS: dict[str, Handler] = {
    **{name: _unary(name) for name in ("abs", "isqrt", "is_pow2", "bitlen", "sqrt", "exp", "log", "float")},
    **{name: _round(name) for name in ("floor", "ceil")},
    **{name: _extreme(name) for name in ("min", "max")},
    **{name: reduce for name in REDUCTIONS if name not in ("min", "max")},
    "clamp": _clamp,
    "noise": noise,
    "only": only,
    "top": top,
    "top_p": select,
    "force": force,
    "score": score,
    "softmax": softmax,
    "relu": _relu,
    "at": at,
    "merge": merge,
    "unit": unit,
    "norm": norm,
    "mix": mix,
    "smooth": smooth,
    "descend": descend,
}
"""Handlers by name; what the grammar reads beyond these is in `unsupported`."""
