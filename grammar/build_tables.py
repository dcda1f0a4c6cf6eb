"""From ``spat.lark`` to ``tables.json``: Lark checks the grammar and computes the LALR(1) tables, this file writes
them down.

Parsing needs neither Lark nor this file: `engine` runs the tables.  Run ``python -m spdsl.grammar.build_tables``
after a change of the grammar; a test compares the saved tables with freshly built ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GRAMMAR = HERE / "spat.lark"
TABLES = HERE / "tables.json"


def build() -> str:
    """The text of ``tables.json`` for the present grammar.

    Raises `lark.exceptions.GrammarError` where the grammar is not strictly LALR(1) or two terminals collide.
    """
    from lark import Lark

    lark = Lark(GRAMMAR.read_text(), start="program", parser="lalr", strict=True)
    front: Any = lark.parser
    table = front.parser._parse_table  # noqa: SLF001  (Lark shows its table nowhere else)
    rules = sorted(lark.rules, key=lambda rule: (rule.origin.name, [symbol.name for symbol in rule.expansion]))
    order = _state_order(table)
    lexer = front.lexer
    return _write(
        {
            "start": order[table.start_states["program"]],
            "end": order[table.end_states["program"]],
            "ignored": sorted(lark.ignore_tokens),
            "terminals": [[t.name, t.pattern.to_regexp()] for t in lexer.root_lexer.terminals],
            "rules": [_rule(rule) for rule in rules],
            "states": [_state(table.states[old], rules, order) for old in order],
        }
    )


def _state_order(table: Any) -> dict[int, int]:
    """New numbers for the states, breadth first from the start, so that the file does not depend on Lark's internal
    order."""
    from lark.parsers.lalr_analysis import Shift

    order = {table.start_states["program"]: 0}
    for old in (queue := list(order)):
        for _, (action, target) in sorted(table.states[old].items()):
            if action is Shift and target not in order:
                order[target] = len(order)
                queue.append(target)
    return order


def _state(entries: dict[str, Any], rules: list[Any], order: dict[int, int]) -> dict[str, int]:
    """Symbol → what to do: a state to go to, or ``-1 - rule`` to reduce."""
    from lark.parsers.lalr_analysis import Shift

    return {
        symbol: order[target] if action is Shift else -1 - rules.index(target)
        for symbol, (action, target) in sorted(entries.items())
    }


def _rule(rule: Any) -> list[Any]:
    """``[origin, node, length, children]``; ``node`` is None where the rule only passes its children on.

    ``children`` lists positions that the node keeps, and None for an optional part that this expansion leaves out.
    """
    name = rule.alias or rule.origin.name
    passes = name.startswith("_") or (rule.options.expand1 and not rule.alias)
    return [rule.origin.name, None if passes else name, len(rule.expansion), _children(rule)]


def _children(rule: Any) -> list[int | None]:
    left_out = rule.options.empty_indices or (False,) * len(rule.expansion)
    positions = iter(enumerate(rule.expansion))
    children: list[int | None] = []
    for absent in left_out:
        if absent:
            children.append(None)
            continue
        position, symbol = next(positions)
        if not (symbol.is_term and symbol.filter_out):
            children.append(position)
    return children


def _write(tables: dict[str, Any]) -> str:
    """JSON with one rule, terminal or state per line, so that a change of the grammar is a readable difference."""
    parts = []
    for key, value in tables.items():
        if key in ("terminals", "rules", "states"):
            rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in value)
            parts.append(f'"{key}": [\n{rows}\n]')
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    TABLES.write_text(build())
