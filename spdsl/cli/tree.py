"""Any intermediate result of the compiler as an indented tree of text, or as JSON.

Expressions are written as in the language.  Places are left out, and so are fields that have their default value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args

from spdsl.semantics.nodes import Expr
from spdsl.semantics.show import print_expr

_HIDDEN = ("span", "source", "text", "union")
_WIDTH = 100


def tree(node: object) -> str:
    """The tree as text, one construct to a line where it fits."""
    return "\n".join(_lines(node, "", ""))


def record(node: object) -> Any:
    """The tree as values that JSON knows; ``kind`` is the class of a node."""
    match node:
        case tuple() | list() | set() | frozenset():
            return [record(each) for each in node]
        case dict():
            return {str(key): record(value) for key, value in node.items()}
        case None | bool() | int() | float() | str():
            return node
    if dataclasses.is_dataclass(node):
        return {"kind": type(node).__name__} | {name: record(value) for name, value in _fields(node)}
    return str(node)


def _fields(node: object) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(node):  # type: ignore[arg-type]  # callers know it for a dataclass
        value = getattr(node, field.name)
        if field.name in _HIDDEN or (field.default is not dataclasses.MISSING and value == field.default):
            continue
        yield field.name, value


def _short(node: object) -> str:
    match node:
        case tuple() | list():
            return "(" + ", ".join(_short(each) for each in node) + ")"
        case dict():
            return "{" + ", ".join(f"{key}: {_short(value)}" for key, value in node.items()) + "}"
    if isinstance(node, get_args(Expr)):
        return print_expr(node)
    if dataclasses.is_dataclass(node):
        return f"{type(node).__name__}(" + ", ".join(f"{name}={_short(value)}" for name, value in _fields(node)) + ")"
    return repr(node)


def _lines(node: object, indent: str, label: str) -> Iterator[str]:
    short = _short(node)
    if len(indent) + len(label) + len(short) <= _WIDTH or isinstance(node, get_args(Expr)):
        yield f"{indent}{label}{short}"
        return
    deeper = indent + "  "
    head = f"{indent}{label}".rstrip()
    match node:
        case tuple() | list():
            yield head
            for each in node:
                yield from _lines(each, deeper, "- ")
            return
        case dict():
            if head:
                yield head
            for key, value in node.items():
                yield from _lines(value, deeper, f"{key}: ")
            return
    if dataclasses.is_dataclass(node):
        yield f"{indent}{label}{type(node).__name__}"
        for name, value in _fields(node):
            yield from _lines(value, deeper, f"{name}: ")
        return
    yield f"{indent}{label}{short}"
