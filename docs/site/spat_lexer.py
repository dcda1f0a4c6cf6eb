"""Colours for `.spat` texts on the site, from the words of the grammar."""

from __future__ import annotations

from typing import ClassVar

from pygments.lexer import RegexLexer, words
from pygments.lexers import LEXERS
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Text

from spdsl.semantics import meanings

__all__ = ("SpatLexer",)  # where Pygments looks for it


class SpatLexer(RegexLexer):
    """The lexical grammar of a pattern."""

    name = "spat"
    aliases: ClassVar[list[str]] = ["spat"]
    filenames: ClassVar[list[str]] = ["*.spat"]
    tokens: ClassVar = {
        "root": [
            (r"\s+", Text),
            (r"#[^\n]*", Comment.Single),
            (r'"[^"\n]*"', String),
            (r"\d+(\.\d+)?([eE][+-]?\d+)?", Number),
            (words(sorted(meanings.WORDS), prefix=r"\b", suffix=r"\b"), Keyword),
            (words(sorted(meanings.TYPES), prefix=r"\b", suffix=r"\b"), Keyword.Type),
            (words(sorted(meanings.FUNCTIONS), prefix=r"\b", suffix=r"\b(?=\s*\()"), Name.Function),
            (words(sorted(meanings.NAMES), prefix=r"\b", suffix=r"\b"), Name.Builtin),
            (r"[A-Za-z_]\w*", Name),
            (r"\|>|\.\.|\*\*|//|[<>=!]=|[-+*/%<>=]", Operator),
            (r"[(){}\[\],.:]", Punctuation),
        ]
    }


def register() -> None:
    """Let Pygments find it by its name."""
    LEXERS["SpatLexer"] = (__name__, "spat", ("spat",), ("*.spat",), ())
