"""Several softmaxes as one value: merged by their LSEs, and one for each member of a free axis, until it is closed."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from spdsl.grammar import nodes as syntax
from spdsl.semantics import build, spaces
from spdsl.semantics.branches import merged, stage_of
from spdsl.semantics.expressions import Evaluator, Invocation
from spdsl.semantics.fold import fold
from spdsl.semantics.graph import Pool, is_free, ordered
from spdsl.semantics.nodes import Const, Expr, Index
from spdsl.semantics.report import listing
from spdsl.semantics.rewrite import substitute
from spdsl.semantics.selections import axis_of
from spdsl.semantics.values import POISON, Branch, Merged, Poison, Scalar, Value
from spdsl.semantics.wording import excerpt


def merge(ev: Evaluator, call: Invocation) -> Value:
    """``merge(a, b, …)``, ``merge(a, over = i)``: one softmax over the keys of several, by their LSEs."""
    counted = stopped = False
    for name, argument in call.keywords.items():
        match name, argument.value:
            case "overlap", syntax.Name(id="counted"):
                counted = True
            case "grad", syntax.Name(id="stop"):
                stopped = True
            case "over", _:
                pass
            case _:
                ev.mark_used(argument)
                return ev.error(
                    "SP204",
                    f"`merge` takes no argument `{name}`, or not so",
                    argument.span,
                    help="it takes `overlap = counted`, `grad = stop` and `over = …`, a free axis",
                )
    if any(isinstance(arg.value, Poison) for arg in call.args):
        return POISON
    if "over" in call.keywords:
        return members(ev, call, counted=counted, stopped=stopped)
    if len(call.args) < 2:
        return ev.error("SP204", "`merge` takes two or more softmaxes", call.span, help="write `merge(near, far)`")
    parts: list[Merged] = []
    for arg in call.args:
        match arg.value:
            case Branch() | Merged() as branch:
                made = stage_of(ev, branch)
                if made is None:
                    return POISON
                parts.append(made)
            case _:
                return ev.error(
                    "SP221",
                    f"{excerpt(arg.node)} has no LSE",
                    arg.node.span,
                    note=ev.note(arg),
                    help="`merge` weighs softmaxes by their LSEs: merge first, then compute with the result",
                )
    return merged(ev, parts, counted=counted, stopped=stopped) or POISON


def members(ev: Evaluator, call: Invocation, *, counted: bool = False, stopped: bool = False) -> Value:
    """``merge(x, over = i)``, ``mean(x, over = c)`` and ``sum(x, over = c)`` of a softmax for each member."""
    argument = call.keywords["over"]
    axis = axis_of(ev.evaluate(argument.value))
    branch = call.args[0].value if len(call.args) == 1 else None
    if not isinstance(branch, Branch | Merged):
        what = f"`{call.name}` with `over = …` takes one softmax"
        return ev.error("SP204", what, call.span, help=f"write `{call.name}(attend {{ … }}, over = c)`")
    axes = branch.axes if isinstance(branch, Branch) else branch.value.axes
    if axis is None or axis not in axes or not is_free(axis):
        return ev.error(
            "SP203",
            f"{excerpt(argument.value)} is no free axis of the softmax",
            argument.span,
            note=f"its free axes are {listing([each for each in ordered(axes) if is_free(each)])}",
            help="a set inside of `attend { … }` must vary along it",
        )
    if call.name not in ("merge", "mean", "sum"):
        return ev.unsupported(f"`{call.name}` of softmaxes", call.span, help="`merge`, `mean` and `sum` are")
    parts = _each_member(ev, branch, axis)
    if parts is None:
        return POISON
    over = None if axis in ev.unit.members else axis
    if call.name == "merge" and over is not None and not counted:
        return ev.error(
            "SP415",
            f"the softmaxes along `{axis}` may share pairs",
            call.span,
            help="say that such a pair counts as often: `merge(…, overlap = counted)`",
        )
    if call.name == "sum":
        return _summed(ev, call, parts, over)
    by: Literal["lse", "mean"] = "lse" if call.name == "merge" else "mean"
    found = merged(ev, parts, counted=counted, over=over, by=by, stopped=stopped)
    # A mean has no LSE, and is a number like others.
    return POISON if found is None else found if by == "lse" else found.value


def _summed(ev: Evaluator, call: Invocation, parts: list[Merged], over: str | None) -> Value:
    if over is not None:
        stage = Pool(
            name=ev.unit.stage_name(),
            axes=ordered(parts[0].value.axes - {over}),
            kind="sum",
            value=parts[0].value.expr,
            only=build.TRUE,
            over=over,
            per=None,
            windows=None,
            dtype="float",
            span=call.span,
        )
        return spaces.add(ev, stage)
    whole: Value = parts[0].value
    for part in parts[1:]:
        if isinstance(whole, Scalar):
            whole = ev.combine("add", (whole, part.value), call.span)
    return whole


def _each_member(ev: Evaluator, branch: Branch | Merged, axis: str) -> list[Merged] | None:
    """The softmaxes along a free axis: one stage for all, or, of the items of a tuple, one for each."""
    if axis not in ev.unit.members or isinstance(branch, Merged):
        made = stage_of(ev, branch)
        return None if made is None else [made]
    found = []
    for number in range(ev.unit.members[axis]):
        made = stage_of(ev, _member(branch, axis, number))
        if made is None:
            return None
        found.append(made)
    return found


def _member(branch: Branch, axis: str, number: int) -> Branch:
    def fix(expr: Expr | None) -> Expr | None:
        return None if expr is None else fold(substitute(expr, {Index(name=axis): Const(value=number)}))

    attend = branch.attend
    keep = fix(attend.keep)
    assert keep is not None
    return replace(
        branch,
        attend=replace(attend, keep=keep, bias=fix(attend.bias), sink_logit=fix(attend.sink_logit)),
        axes=branch.axes - {axis},
        streams=tuple(_member(stream, axis, number) for stream in branch.streams),
    )
