"""From a tree to lines of at most 100 columns, with the comments that belong between them.

A node that fits stays on its line.  What does not fit is broken at its loosest operators: ``and`` and ``or`` stand
right-aligned before their operands, pipes under the value, arguments after their bracket, the clauses of a branch one
a line. The tree is never changed, and where the source broke its lines does not matter, save where a comment stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise

from spdsl.grammar import nodes
from spdsl.grammar import print as one_line
from spdsl.grammar.comments import END, START, Comments, Place, end_of, start_of
from spdsl.grammar.nodes import (
    Argument,
    Attribute,
    Binary,
    Body,
    Call,
    Choose,
    Compare,
    Expr,
    Node,
    Pattern,
    Pipe,
    Program,
    Subscript,
    Tuple,
    Unary,
)

WIDTH = 100
INDENT = 2
SHORT = 8


def lay_out(program: Program, comments: Comments | None = None) -> str:
    """The whole text of a program, with its comments where they stood."""
    return "".join(f"{line}\n" for line in _Statements(comments or Comments()).program(program))


class _Expressions:
    """Lines of expressions.

    Every method returns lines; the first lacks what stands left of ``column``, where the expression begins.
    ``indent`` is where the line itself begins, ``tail`` how many columns must stay free after the last line.
    """

    def __init__(self, comments: Comments) -> None:
        self.comments = comments

    def lines(self, expr: Expr, indent: int, column: int, tail: int) -> list[str]:
        """An expression: on one line if it fits, else broken at its loosest operator."""
        if self.has_commented_parts(expr):
            return self.chain(expr, indent, column, tail)
        flat = one_line.expression(expr)
        if column + len(flat) + tail <= WIDTH and not self.must_break(expr):
            return [flat]
        match expr:
            case Binary(op="and" | "or") | Pipe():
                return self.chain(expr, indent, column, tail)
            case Binary() | Compare():
                return self.arithmetic(expr, indent, column, tail)
            case Choose():
                return self.choose(expr, column, tail)
            case Call(function=function, arguments=given):
                head = self.operand(function, one_line.POSTFIX, indent, column, 1)
                return self.bracketed(head, given, "()", indent, column, tail)
            case Subscript(value=value, indices=indices):
                head = self.operand(value, one_line.POSTFIX, indent, column, 1)
                return self.bracketed(head, indices, "[]", indent, column, tail)
            case Tuple(items=items):
                return self.bracketed([""], items, "()", indent, column, tail)
            case Attribute(value=value, name=name):
                return _append(self.operand(value, one_line.POSTFIX, indent, column, len(name) + 1 + tail), f".{name}")
            case Unary(op=op, operand=inner):
                sign = "not " if op == "not" else op
                return _prepend(sign, self.operand(inner, one_line.level(expr), indent, column + len(sign), tail))
            case Body():
                return self.body(expr, indent, column)
            case _:
                return [flat]

    def operand(self, expr: Expr, least: int, indent: int, column: int, tail: int) -> list[str]:
        """An expression where one of at least this level must stand."""
        if one_line.level(expr) >= least:
            return self.lines(expr, indent, column, tail)
        return _prepend("(", _append(self.lines(expr, indent, column + 1, tail + 1), ")"))

    def must_break(self, expr: Expr) -> bool:
        """Whether a comment stands among the clauses of a branch, which then has to be written clause by clause."""
        if not self.comments.between(start_of(expr), end_of(expr)):
            return False
        return any(self.comments.between(_opening(body), end_of(body)) for body in _bodies(expr))

    def has_commented_parts(self, expr: Expr) -> bool:
        """Whether a comment stands between the operands of ``and`` or ``or``, or between the stages of a pipe."""
        if not isinstance(expr, Pipe) and not (isinstance(expr, Binary) and expr.op in ("and", "or")):
            return False
        if not self.comments.between(start_of(expr), end_of(expr)):
            return False
        parts = _parts(expr)
        return any(self.comments.between(a.end, b.start) for a, b in pairwise(parts)) or any(
            self.has_commented_parts(part.expr) for part in parts if not part.stage
        )

    def chain(self, expr: Expr, indent: int, column: int, tail: int) -> list[str]:
        """``a and b and c``, or a value and its stages, with the comments between them."""
        first, *others = _parts(expr)
        lines = self.operand(first.expr, first.least, indent, column, tail if not others else 0)
        end = first.end
        for part in others:
            room = tail if part is others[-1] else 0
            notes = self.comments.take(end, part.start)
            fill = bool(part.stage) and not notes
            if notes and not notes[0].alone:
                lines[-1] += f"  {notes.pop(0).text}"
            lines += [" " * column + note.text for note in notes]
            used = len(lines[-1]) + (column if len(lines) == 1 else 0)
            if fill and used + len(" |> ") + len(part.stage) + room <= WIDTH:
                lines[-1] += f" |> {part.stage}"
            else:
                start = column if part.stage else max(0, column - len(part.word) - 1)
                at = start + len(part.word) + 1
                lines += _prepend(" " * start + part.word + " ", self.part(part, indent, at, room))
            end = part.end
        return lines

    def part(self, part: _Part, indent: int, column: int, tail: int) -> list[str]:
        match part.expr:
            case Pipe(stage=stage, arguments=given) if part.stage:
                if not given or column + len(part.stage) + tail <= WIDTH:
                    return [part.stage]
                return self.bracketed([stage.id], given, "()", indent, column, tail)
            case _:
                return self.operand(part.expr, part.least, indent, column, tail)

    def arithmetic(self, expr: Expr, indent: int, column: int, tail: int) -> list[str]:
        """Sums, products and comparisons: as many operands a line as fit, the others below them behind their
        operators."""
        first, *others = _parts(expr)
        lines = self.operand(first.expr, first.least, indent, column, 0)
        for part in others:
            room = tail if part is others[-1] else 0
            at = len(lines[-1]) + (column if len(lines) == 1 else 0) + len(part.word) + 2
            flat = one_line.operand(part.expr, part.least)
            # What is short (`0 <= …`) never stands on a line of its own.
            if (at + len(flat) + room <= WIDTH and not self.must_break(part.expr)) or at - column <= SHORT:
                word = f" {part.word} "
                first_line, *rest = self.operand(part.expr, part.least, indent, at, room)
                lines[-1] += word + first_line
                lines += rest
            else:
                inner = self.operand(part.expr, part.least, column, column + len(part.word) + 1, room)
                lines += _prepend(" " * column + part.word + " ", inner)
        return lines

    def choose(self, expr: Choose, column: int, tail: int) -> list[str]:
        """``if … then …`` above ``else …``; three lines where the first two parts do not fit on one."""
        margin = " " * column
        head = f"if {one_line.expression(expr.condition)} then "
        otherwise = _prepend(f"{margin}else ", self.lines(expr.no, column, column + len("else "), tail))
        if column + len(head) + len(one_line.expression(expr.yes)) <= WIDTH and not self.must_break(expr.condition):
            return _prepend(head, self.lines(expr.yes, column, column + len(head), 0)) + otherwise
        condition = _prepend("if ", self.lines(expr.condition, column, column + len("if "), 0))
        yes = _prepend(f"{margin}then ", self.lines(expr.yes, column, column + len("then "), 0))
        return condition + yes + otherwise

    def bracketed(
        self, head: list[str], items: Sequence[Expr | Argument], brackets: str, indent: int, column: int, tail: int
    ) -> list[str]:
        """As many items a line as fit, below each other after the opening bracket."""
        lines = _append(head, brackets[0])
        base = len(lines[-1]) + (column if len(lines) == 1 else 0)
        if not items:
            return _append(lines, brackets[1])
        for number, item in enumerate(items, 1):
            mark, room = (",", 1) if number < len(items) else (brackets[1], 1 + tail)
            name, value = (item.name, item.value) if isinstance(item, Argument) else (None, item)
            label = f"{name} = " if name else ""
            at = len(lines[-1]) + (column if len(lines) == 1 else 0)
            if number > 1:
                if at + 1 + len(label) + len(one_line.expression(value)) + room > WIDTH:
                    lines.append(" " * base)
                    at = base
                else:
                    lines[-1] += " "
                    at += 1
            first, *rest = self.lines(value, indent, at + len(label), room)
            lines[-1] += label + first
            lines += rest
            lines[-1] += mark
        return lines

    def body(self, body: Body, indent: int, column: int) -> list[str]:
        """A branch, one clause a line."""
        lines = [body.kind]
        if body.arguments:
            lines = self.bracketed(lines, body.arguments, "()", indent, column, len(" {"))
        lines[-1] += " {"
        return [*_Statements(self.comments).block(lines, body.clauses, indent + INDENT, body), " " * indent + "}"]


class _Statements(_Expressions):
    """Lines of whole statements and items, complete from the left margin."""

    def program(self, program: Program) -> list[str]:
        lines: list[str] = []
        previous: Node | None = None
        for item in program.items:
            apart = previous is not None and (isinstance(item, Pattern) or type(item) is not type(previous))
            lay_out_item = partial(self.pattern, item) if isinstance(item, Pattern) else partial(self.plain_item, item)
            lines += self.placed(item, lay_out_item, 0, not lines, apart)
            previous = item
        return lines + self.remaining(END, 0, not lines)

    def plain_item(self, item: nodes.Use | nodes.Def) -> list[str]:
        if isinstance(item, nodes.Use):
            return [f'use "{item.path}"']
        head = f"def {item.name}({', '.join(item.parameters)}) ="
        at = len(head) + 1
        if at + len(one_line.expression(item.value)) <= WIDTH and not self.has_commented_parts(item.value):
            return _prepend(f"{head} ", self.lines(item.value, 0, at, 0))
        # `and` and `or` hang left of their operands and need the room.
        column = INDENT + (len("and ") if isinstance(item.value, Binary) and item.value.op in ("and", "or") else 0)
        return [head, *_prepend(" " * column, self.lines(item.value, INDENT, column, 0))]

    def pattern(self, pattern: Pattern) -> list[str]:
        head = self.head(pattern)
        if not pattern.statements and not self.comments.between(start_of(pattern), end_of(pattern)):
            return _append(head, " {}")
        return [*self.block(_append(head, " {"), pattern.statements, INDENT, pattern), "}"]

    def head(self, pattern: Pattern) -> list[str]:
        """``pattern name(parameters)``; a comment among the parameters gives each of them a line."""
        lines = [f"pattern {pattern.name}("]
        base = len(lines[0])
        texts = [one_line.param(param) + "," for param in pattern.parameters]
        ends = [start_of(param) for param in pattern.parameters[1:]]
        if pattern.parameters and self.comments.between(start_of(pattern), start_of(pattern.parameters[-1])):
            for param, text, end in zip(pattern.parameters, texts, [*ends, START], strict=True):
                above = [" " * base + note.text for note in self.comments.take(START, start_of(param))]
                lines = (
                    _append(lines, text)
                    if lines[-1].endswith("(") and not above
                    else [*lines, *above, " " * base + text]
                )
                lines[-1] += self.comments.take_beside(end_of(param), end)
        else:
            for number, text in enumerate(texts):
                if number == 0 or len(lines[-1]) + len(text) + len(" ) {") <= WIDTH:
                    lines[-1] += f" {text}" if number else text
                else:
                    lines.append(" " * base + text)
        return _append([*lines[:-1], lines[-1].removesuffix(",")], ")")

    def block(self, head: list[str], items: Sequence[nodes.Statement], indent: int, owner: Pattern | Body) -> list[str]:
        """A head that ends in ``{`` and the statements behind it, without the closing brace."""
        opening = self.comments.take_beside(_opening(owner), start_of(items[0]) if items else end_of(owner))
        lines: list[str] = []
        for item in items:
            lines += self.placed(item, partial(self.statement, item, indent), indent, not lines, False)
        return _append(head, opening) + lines + self.remaining(end_of(owner), indent, not lines)

    def statement(self, node: nodes.Statement, indent: int) -> list[str]:
        before, value, after = one_line.statement_parts(node)
        margin = " " * indent
        if value is None:
            return [margin + before]
        column = indent + len(before)
        return _append(_prepend(margin + before, self.lines(value, indent, column, len(after))), after)

    def placed(self, node: Node, inner: Callable[[], list[str]], indent: int, first: bool, apart: bool) -> list[str]:
        """An item with the comments before it, those inside it that found no place of their own, and the one after it.

        ``inner`` lays out the item itself; it runs after the comments before the item are taken.
        """
        lines: list[str] = []
        for note in self.comments.take(START, start_of(node)):
            blank = not first and (apart or self.comments.blank_above(note.at))
            lines += ["", " " * indent + note.text] if blank else [" " * indent + note.text]
            first = apart = False
        blank = not first and (apart or self.comments.blank_above(start_of(node)))
        item = inner()
        lines += [""] if blank else []
        lines += [" " * indent + note.text for note in self.comments.take(start_of(node), end_of(node))]
        return lines + _append(item, self.comments.take_trailing(end_of(node)))

    def remaining(self, end: Place, indent: int, first: bool) -> list[str]:
        """The comments left before the end of a block or of the text."""
        lines: list[str] = []
        for note in self.comments.take(START, end):
            lines += [""] if not first and self.comments.blank_above(note.at) else []
            lines.append(" " * indent + note.text)
            first = False
        return lines


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One operand of a chain, or one stage of a pipe: then ``stage`` is its text, and ``expr`` the `Pipe` that ends
    in it."""

    word: str
    expr: Expr
    least: int
    start: Place
    end: Place
    stage: str = ""


def _parts(expr: Expr) -> list[_Part]:
    """The operands of a chain of operators that hold equally tightly, with the operator before each."""
    match expr:
        case Pipe(value=value, arguments=given):
            stage = _Part(
                word="|>",
                expr=expr,
                least=one_line.PIPE,
                start=start_of(given[0]) if given else end_of(expr),
                end=end_of(expr),
                stage=one_line.stage(expr),
            )
            return [*(_parts(value) if isinstance(value, Pipe) else [_operand("", value, one_line.PIPE)]), stage]
        case Binary(op=op, left=left, right=right):
            level, at_left, at_right = one_line.levels(op)
            # `**` holds from the right: its left operand is never another one without parentheses.
            same = isinstance(left, Binary) and one_line.level(left) == level and at_left == level
            return [*(_parts(left) if same else [_operand("", left, at_left)]), _operand(op, right, at_right)]
        case Compare(ops=ops, operands=operands):
            return [_operand(op, one, one_line.SUM) for op, one in zip(("", *ops), operands, strict=True)]
        case _:
            raise TypeError(f"{expr} is not a chain")


def _operand(word: str, expr: Expr, least: int) -> _Part:
    return _Part(word=word, expr=expr, least=least, start=start_of(expr), end=end_of(expr))


def _opening(owner: Pattern | Body) -> Place:
    """A place between whatever stands in the head of a block and its opening brace."""
    before: Sequence[Node] = owner.parameters if isinstance(owner, Pattern) else owner.arguments
    return end_of(before[-1]) if before else start_of(owner)


def _bodies(node: Node) -> Iterator[Body]:
    if isinstance(node, Body):
        yield node
    for field in fields(node):
        value = getattr(node, field.name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Node):
                yield from _bodies(one)


def _prepend(text: str, lines: list[str]) -> list[str]:
    return [text + lines[0], *lines[1:]]


def _append(lines: list[str], text: str) -> list[str]:
    return [*lines[:-1], lines[-1] + text]
