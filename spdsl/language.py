"""The words of the language as names of Python, for editors and linters: `from spdsl.language import axis, score, top`.

Functions under `@spdsl.pattern` may use these words with or without such an import.  They are read, never called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from spdsl.diagnostics import error
from spdsl.grammar.python_expressions import BODIES, STATEMENTS
from spdsl.semantics.functions import FUNCTIONS
from spdsl.semantics.scope import BUILTINS
from spdsl.semantics.unsupported import UNSUPPORTED

__all__ = sorted({*BODIES, *STATEMENTS, *FUNCTIONS, *UNSUPPORTED, *BUILTINS} - {"true", "false"})


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the language."""

    name: str

    def __call__(self, *args: object, **keywords: object) -> NoReturn:
        """Not a function of Python.

        Raises:
            SpatError: always (SP110).
        """
        del args, keywords
        found = f"`{self.name}` is a word of the language of patterns, and cannot be called"
        raise error("SP110", found, help="use it in a function under `@spdsl.pattern`")


def __getattr__(name: str) -> Any:
    if name in __all__:
        return Word(name)
    raise AttributeError(f"the language has no word {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
