"""From an expression of the syntax tree to its value: names resolved, types checked, nothing simplified but constants.

What functions mean is in `functions` and `reductions`, what calls of `def` and patterns mean in `calls`, what follows
``attend`` in `clauses`; this file knows names, operators, indices and attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from spdsl.diagnostics import Span
from spdsl.grammar import nodes as syntax
from spdsl.semantics import build
from spdsl.semantics.nodes import Const, Index
from spdsl.semantics.scope import BUILTINS, Scope
from spdsl.semantics.usage import names_of
from spdsl.semantics.values import (
    POISON,
    AxisRef,
    Branch,
    Candidates,
    FunctionRef,
    GridRef,
    Items,
    Merged,
    Poison,
    Scalar,
    TableRef,
    TensorRef,
    Value,
    describe,
)
from spdsl.semantics.wording import excerpt, plain, quoted

if TYPE_CHECKING:
    from spdsl.semantics.unit import Unit

Want = Literal["bool", "int", "number", "any"]

BINARY = {
    "+": "add",
    "-": "sub",
    "*": "mul",
    "/": "div",
    "//": "floordiv",
    "%": "mod",
    "**": "pow",
    "and": "and",
    "or": "or",
}
COMPARE = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg:
    """A value and the syntax it came from, for messages."""

    value: Value
    node: syntax.Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """A call or a pipe: what is called, the evaluated positional arguments, the named ones as they stand."""

    name: str
    span: Span | None
    args: tuple[Arg, ...]
    keywords: dict[str, syntax.Argument]


class Evaluator:
    """Gives values to expressions in one scope of one unit."""

    def __init__(self, unit: Unit, scope: Scope) -> None:
        self.unit = unit
        self.scope = scope

    # ------------------------------------------------------------ remarks

    def error(self, code: str, message: str, span: Span | None, *, note: str = "", help: str = "") -> Poison:
        """Record a mistake, with the call that led into a `def` or pattern, and give the value of what is wrong."""
        if self.unit.trail:
            name, place = self.unit.trail[-1]
            where = f"in `{name}`, called at {place}"
            help = f"{help}; {where}" if help else where
        self.unit.report.error(code, message, span, note=note, help=help)
        return POISON

    def unsupported(self, construct: str, span: Span | None, *, help: str = "") -> Poison:
        """Refuse a construct by name."""
        self.unit.report.unsupported(construct, span, help=help)
        return POISON

    def note(self, arg: Arg) -> str:
        """What the marked text is and where it was declared."""
        what = describe(arg.value).partition(" ")[2]
        if isinstance(arg.node, syntax.Name):
            entry = self.scope.entries.get(arg.node.id)
            if entry is not None and entry.span is not None:
                if entry.kind == "argument":
                    return what
                return f"{what}, declared on line {entry.span.line}"
        return what

    def free_name(self, name: str) -> bool:
        """Whether a lower-case name means nothing yet, or is a free axis: what may name an axis of free size."""
        entry = self.scope.entries.get(name)
        return name.islower() and name not in BUILTINS and (entry is None or entry.kind == "free axis")

    # ------------------------------------------------------------ evaluation

    def evaluate(self, node: syntax.Expr) -> Value:
        """The value of an expression; mistakes are recorded and give `POISON`."""
        self.unit.enter(node.span)
        try:
            value = self._evaluate(node)
        finally:
            self.unit.leave()
        self.unit.saw(node, value)
        return value

    def _evaluate(self, node: syntax.Expr) -> Value:
        from spdsl.semantics import access

        match node:
            case syntax.Name():
                return self._name(node)
            case syntax.Number(value=value):
                return self._number(value, node.span)
            case syntax.String():
                return self.error(
                    "SP203", "a text has no place in an expression", node.span, help="only `use` takes a text"
                )
            case syntax.Tuple(items=items):
                return Items(items=tuple(self.evaluate(item) for item in items))
            case syntax.Attribute():
                return access.attribute(self, node)
            case syntax.Subscript():
                return access.subscript(self, node)
            case syntax.Call() | syntax.Pipe():
                return self._invoke(node)
            case syntax.Unary():
                return self._unary(node)
            case syntax.Binary():
                return self._binary(node)
            case syntax.Compare():
                return self._compare(node)
            case syntax.Choose():
                return self._choose(node)
            case syntax.Body():
                from spdsl.semantics.clauses import body

                return body(self, node)

    def arg(self, node: syntax.Expr) -> Arg:
        """A value together with its syntax."""
        return Arg(value=self.evaluate(node), node=node)

    def scalar(self, node: syntax.Expr, want: Want, context: str) -> Scalar | None:
        """The value of an expression that must be an array of the wanted type; None if it is not."""
        return self.expect(self.arg(node), want, context)

    def expect(self, arg: Arg, want: Want, context: str) -> Scalar | None:
        """An argument as an array of the wanted type; None after a mistake."""
        value = self.settle(arg)
        if not isinstance(value, Scalar):
            if not isinstance(value, Poison):
                self._refuse(arg, value, want, context)
            return None
        fits = {
            "bool": value.dtype == "bool",
            "int": value.dtype == "int",
            "number": value.dtype != "bool",
            "any": True,
        }[want]
        if not fits:
            self._refuse(arg, value, want, context)
            return None
        return value

    def settle(self, arg: Arg) -> Value:
        """Things that stand for an array, as that array: tables with all axes implied, softmaxes as their sets."""
        match arg.value:
            case TableRef(table=table):
                from spdsl.semantics import access

                return access.load(self, table, (), arg.node)
            case TensorRef(name=name):
                from spdsl.semantics.selections import tensor

                return tensor(name, arg.node.span)
            case Branch(sources=tuple()) | Branch(streams=(_, *_)) | Merged():
                return self.error(
                    "SP203",
                    f"{excerpt(arg.node)} attends over other keys than those of the pattern, so it is no set",
                    arg.node.span,
                    note="softmax branch",
                    help="return it, or compute with it",
                )
            case Branch(attend=attend) as branch:
                settings = [
                    word for word in ("bias", "scale", "softcap", "sink_logit") if getattr(attend, word) is not None
                ]
                if settings:
                    return self.error(
                        "SP203",
                        f"{excerpt(arg.node)} has a `{settings[0]}`, so it is more than a set",
                        arg.node.span,
                        note="softmax branch",
                        help="only a pattern or `attend` whose clauses are all `keep` can stand for its set",
                    )
                return Scalar(expr=attend.keep, axes=branch.axes, size=branch.size)
            case value:
                return value

    def _refuse(self, arg: Arg, value: Value, want: Want, context: str) -> None:
        needs = {"bool": "a bool", "int": "an int", "number": "a number", "any": "an array"}[want]
        help = ""
        match value:
            case Scalar() if want == "bool":
                nested = isinstance(arg.node, syntax.Choose | syntax.Pipe)
                text = f"({plain(arg.node)})" if nested else plain(arg.node)
                help = f"compare it, for example {quoted(f'{text} > 0')}"
            case Scalar(dtype="bool") if isinstance(arg.value, Branch):
                help = "scores and their stages come before attention: they read `Q`, `K`, `V` and inputs"
            case Scalar(dtype="bool"):
                help = f"choose numbers by it, for example {quoted(f'if {plain(arg.node)} then 1 else 0')}"
            case Scalar():
                help = "round it with `floor` or `ceil`"
            case AxisRef(name=name):
                help = f"write `q.{name}` or `k.{name}` for a coordinate, or `{name}.count` for their number"
                help = "write `q` or `k` for a position, `n` for their number" if name == "token" else help
            case Candidates():
                help = "end the selection with `|> top(…)`"
            case Items():
                help = f"take an item, for example {quoted(f'{plain(arg.node)}[0]')}; `x in (a, b)` compares with each"
            case FunctionRef(kind=kind):
                help = f"call it: {quoted(f'{plain(arg.node)}(…)')}" if kind != "word" else ""
            case _:
                pass
        if isinstance(arg.value, Branch):
            value = arg.value
        what = describe(value)
        self.error(
            "SP203",
            f"{excerpt(arg.node)} is {what}, but {context} needs {needs}",
            arg.node.span,
            note=self.note(Arg(value=value, node=arg.node)),
            help=help,
        )

    # ------------------------------------------------------------ names and literals

    def _name(self, node: syntax.Name) -> Value:
        entry = self.scope.find(node.id)
        if entry is not None:
            return entry.value
        if node.id in BUILTINS:
            value = BUILTINS[node.id]
            if isinstance(value, Scalar):
                return Scalar(expr=build.place(value.expr, node.span), axes=value.axes, size=value.size)
            return value
        return self.unit.unknown(self, node)

    def _number(self, value: int | float, span: Span | None) -> Value:
        if isinstance(value, int) and value >= 2**63:
            return self.error("SP215", "this number does not fit into 64 bits", span, help="use a smaller one")
        if isinstance(value, float) and value == float("inf"):
            return self.error("SP215", "this number is larger than any float", span, help="use a smaller one")
        return Scalar(expr=Const(value=value, span=span))

    # ------------------------------------------------------------ operators

    def _unary(self, node: syntax.Unary) -> Value:
        return self.operate("not" if node.op == "not" else "neg", (self.arg(node.operand),), node.span, f"`{node.op}`")

    def _binary(self, node: syntax.Binary) -> Value:
        # Chains lean to the left: walk down their spine instead of recursing.
        spine: list[syntax.Binary] = [node]
        while isinstance(spine[-1].left, syntax.Binary):
            spine.append(spine[-1].left)
        left = self.arg(spine[-1].left)
        for link in reversed(spine):
            value = self.operate(BINARY[link.op], (left, self.arg(link.right)), link.span, f"`{link.op}`")
            self.unit.saw(link, value)
            left = Arg(value=value, node=link)
        return left.value

    def _compare(self, node: syntax.Compare) -> Value:
        args: list[Arg | None] = []
        for position, operand in enumerate(node.operands):
            members = position > 0 and node.ops[position - 1] == "in"
            args.append(None if members and isinstance(operand, syntax.Tuple) else self.arg(operand))
        links: list[Value] = []
        for position, op in enumerate(node.ops):
            left, right = args[position], args[position + 1]
            operand = node.operands[position + 1]
            if op == "in":
                if left is not None:
                    links.append(self._member(left, right or self.arg(operand), node.span))
            elif left is None or right is None:
                links.append(
                    self.error(
                        "SP203",
                        "a tuple cannot be compared",
                        operand.span,
                        help="write `x in (1, 2, 3)`, or compare item by item",
                    )
                )
            else:
                links.append(self.operate(COMPARE[op], (left, right), node.span, f"`{op}`"))
        return self._join("and", links, node.span)

    def _join(self, op: str, values: list[Value], span: Span | None) -> Value:
        if any(isinstance(value, Poison) for value in values):
            return POISON
        scalars = [value for value in values if isinstance(value, Scalar)]
        whole = scalars[0]
        for scalar in scalars[1:]:
            joined = self.combine(op, (whole, scalar), span)
            if not isinstance(joined, Scalar):
                return POISON
            whole = joined
        return whole

    def _member(self, left: Arg, right: Arg, span: Span | None) -> Value:
        match right.value:
            case Poison():
                return POISON
            case GridRef(name=name):
                match left.value:
                    case Scalar(expr=Index(name="q" | "k" as side)):
                        return self.unit.inside(side, name)
                    case Poison():
                        return POISON
                    case _:
                        return self.error(
                            "SP203",
                            f"{excerpt(left.node)} is not a position: only `q` and `k` are in a grid",
                            left.node.span,
                            help="write `q in …` or `k in …`",
                        )
            case Items(items=items):
                nodes = right.node.items if isinstance(right.node, syntax.Tuple) else (right.node,) * len(items)
                links = [
                    self.operate("eq", (left, Arg(value=item, node=node)), span, "`in`")
                    for item, node in zip(items, nodes, strict=True)
                ]
                return self._join("or", links, span)
            case _:
                return self.error(
                    "SP203",
                    f"{excerpt(right.node)} is {describe(right.value)}, but `in` needs a tuple or a grid",
                    right.node.span,
                    note=self.note(right),
                    help="write the members in brackets: `layer in (0, 1, 2)`",
                )

    def _choose(self, node: syntax.Choose) -> Value:
        condition = self.scalar(node.condition, "bool", "`if`")
        yes, no = self.arg(node.yes), self.arg(node.no)
        if condition is None or isinstance(yes.value, Poison) or isinstance(no.value, Poison):
            return POISON
        if isinstance(yes.value, Branch) and isinstance(no.value, Branch):
            from spdsl.semantics.clauses import choose_branch

            return choose_branch(self, condition, yes.value, no.value, node)
        return self.operate("where", (Arg(value=condition, node=node.condition), yes, no), node.span, "`if`")

    def operate(self, op: str, args: tuple[Arg, ...], span: Span | None, context: str) -> Value:
        """An operation on arguments, typed by its signature in `OPS`."""
        from spdsl.semantics import operators

        return operators.operate(self, op, args, span, context)

    def combine(self, op: str, scalars: tuple[Scalar, ...], span: Span | None) -> Value:
        """An operation on well-typed arrays."""
        from spdsl.semantics import operators

        return operators.combine(self, op, scalars, span)

    # ------------------------------------------------------------ calls

    def _invoke(self, node: syntax.Call | syntax.Pipe) -> Value:
        from spdsl.semantics.calls import invoke

        return invoke(self, node)

    def mark_used(self, node: syntax.Expr | syntax.Argument) -> None:
        """Count the names in an expression as used without looking at what they mean."""
        for name in names_of(node):
            self.scope.find(name)
            self.unit.mention(name)
