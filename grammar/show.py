"""From a tree to an indented listing of its nodes: what ``spdsl show --emit ast`` prints."""

from __future__ import annotations

from dataclasses import fields

from spdsl.grammar.nodes import Node


def dump(node: Node) -> str:
    """One node a line: its class and its plain fields; below it, behind their field's name, the nodes it holds."""
    return "\n".join(_lines(node, "", 0)) + "\n"


def _lines(node: Node, label: str, indent: int) -> list[str]:
    plain: list[str] = []
    below: list[str] = []
    for field in fields(node):
        value = getattr(node, field.name)
        if not field.repr or value is None or value == ():
            continue
        if isinstance(value, Node):
            below += _lines(value, f"{field.name}: ", indent + 1)
        elif isinstance(value, tuple) and isinstance(value[0], Node):
            below.append("  " * (indent + 1) + field.name)
            for item in value:
                below += _lines(item, "", indent + 2)
        elif isinstance(value, tuple):
            plain.append(" ".join(str(item) for item in value))
        else:
            plain.append(f'"{value}"' if type(node).__name__ in ("String", "Use") else _plain(field.name, value))
    return [" ".join(["  " * indent + label + type(node).__name__, *plain]), *below]


def _plain(name: str, value: object) -> str:
    if name == "sorted":
        return "sorted" if value else "unsorted"
    return f"{name}={value}" if name in ("low", "high") else str(value)
