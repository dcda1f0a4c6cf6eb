"""From the words of the grammar and of the checker to a TextMate grammar, for colours in editors.

``python -m spdsl.editor.textmate`` writes it into the extension for VS Code; a test compares the two.  A flat list of
patterns: a colour depends on a word and its neighbours alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spdsl.grammar.engine import load_tables
from spdsl.semantics import meanings

FILE = Path(__file__).parent / "vscode" / "syntaxes" / "spat.tmLanguage.json"

# What the words of the grammar are to a reader; the rest are clauses.
DECLARATIONS = ("use", "def", "pattern", "input", "grid", "axis", "let", "export")
CONTROL = ("if", "then", "else", "return", "keep", "attend", "linear")
LOGIC = ("and", "or", "not", "in")
SETS = ("causal", "all", "true", "false")


def words() -> frozenset[str]:
    """All words of the grammar."""
    patterns = (regexp for regexp in load_tables().terminals.values() if regexp.endswith("\\b"))
    return frozenset(word for regexp in patterns for word in regexp.removesuffix("\\b").strip("()").split("|"))


def signs() -> tuple[str, ...]:
    """All signs that are operators, as regular expressions, longer ones first."""
    brackets = {r"\(", r"\)", r"\[", r"\]", r"\{", r"\}", ",", ":", r"\."}
    terminals = load_tables().terminals
    named = {"NUMBER", "NAME", "STRING", "BLANK", "COMMENT"}
    found = {regexp for kind, regexp in terminals.items() if kind not in named and not regexp.endswith("\\b")}
    return tuple(sorted(found - brackets, key=lambda each: (-len(each.replace("\\", "")), each)))


def grammar() -> dict[str, Any]:
    """The TextMate grammar of the language."""
    terminals = load_tables().terminals
    clauses = sorted(words() - {*DECLARATIONS, *CONTROL, *LOGIC})
    names = sorted(meanings.NAMES.keys() - set(SETS))
    functions = sorted(meanings.FUNCTIONS)
    return {
        "$schema": "https://raw.githubusercontent.com/martinring/tmlanguage/master/tmlanguage.json",
        "name": "spat",
        "scopeName": "source.spat",
        "fileTypes": ["spat"],
        "patterns": [
            {"name": "comment.line.number-sign.spat", "match": terminals["COMMENT"]},
            {"name": "string.quoted.double.spat", "match": terminals["STRING"]},
            {
                "match": rf"\b(def|pattern)\b\s+({terminals['NAME']})",
                "captures": {
                    "1": {"name": "storage.type.spat"},
                    "2": {"name": "entity.name.function.spat"},
                },
            },
            {
                "match": rf"(\.)(?<!\.\.)\s*({terminals['NAME']})",
                "captures": {"2": {"name": "variable.other.member.spat"}},
            },
            {"name": "support.function.spat", "match": rf"{_any(functions)}(?=\s*\()"},
            {
                "match": rf"(\|>)\s*({terminals['NAME']})",
                "captures": {
                    "1": {"name": "keyword.operator.spat"},
                    "2": {"name": "support.function.spat"},
                },
            },
            {"name": "storage.type.spat", "match": _any(DECLARATIONS)},
            {"name": "keyword.control.spat", "match": _any(CONTROL)},
            {"name": "keyword.operator.word.spat", "match": _any(LOGIC)},
            # A name may be spelt like a clause where no clause can stand: behind `let`, or before a sign.
            {"name": "keyword.other.spat", "match": rf"{_any(clauses)}(?!\s*[=:,)\]])"},
            {"name": "constant.language.spat", "match": _any(SETS)},
            {"name": "support.type.spat", "match": _any(meanings.TYPES)},
            {"name": "variable.language.spat", "match": _any(names)},
            {"name": "constant.numeric.spat", "match": rf"\b{terminals['NUMBER']}"},
            {"name": "entity.name.function.spat", "match": rf"\b{terminals['NAME']}(?=\s*\()"},
            {"name": "variable.other.spat", "match": rf"\b{terminals['NAME']}"},
            {"name": "keyword.operator.spat", "match": "|".join(signs())},
        ],
    }


def _any(chosen: Iterable[str]) -> str:
    return rf"\b({'|'.join(chosen)})\b"


def text() -> str:
    """The grammar as it is written to its file."""
    return json.dumps(grammar(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
