"""The patterns that come with the package, and files next to them or to the user's own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from spdsl.diagnostics import error
from spdsl.grammar.parse import decode


def names() -> tuple[str, ...]:
    """The names of the library's patterns, in alphabetical order."""
    return tuple(sorted(name for name in _files() if _defines(name)))


def text_of(name: str) -> str:
    """The `.spat` text of a library file.

    Raises:
        SpatError: there is no such pattern (SP601).
    """
    if name not in _files():
        close = difflib.get_close_matches(name, names(), n=1)
        raise error(
            "SP601",
            f"there is no library pattern `{name}`",
            help=f"did you mean `{close[0]}`?" if close else "`spdsl list` shows the library; a file needs its `.spat`",
        )
    return (resources.files("spdsl") / "patterns" / f"{name}.spat").read_text(encoding="utf-8")


def resolver(folder: Path | None) -> Callable[[str], str]:
    """What `use "path"` finds: a file beside the text that uses it, else one of the library."""

    def resolve(path: str) -> str:
        if folder is not None and (folder / path).is_file():
            return decode((folder / path).read_bytes(), str(folder / path))
        stem = path.removesuffix(".spat")
        if stem in _files():
            return text_of(stem)
        raise error("SP602", f"`{path}` is neither a file beside this one nor in the library", help="check the path")

    return resolve


def _files() -> frozenset[str]:
    return frozenset(
        entry.name.removesuffix(".spat")
        for entry in (resources.files("spdsl") / "patterns").iterdir()
        if entry.name.endswith(".spat")
    )


def _defines(name: str) -> bool:
    return re.search(rf"^pattern {name}\b", text_of(name), re.MULTILINE) is not None
