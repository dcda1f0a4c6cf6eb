"""The patterns that come with the package, and files next to them or to the user's own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from spdsl.diagnostics import SpatError, error
from spdsl.grammar.parse import MAX_BYTES, decode


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


def read_file(path: Path) -> str:
    """The text of a file.

    Raises:
        SpatError: there is no such file (SP601), it is a folder or a device (SP603), it may not be read (SP604), or it
        is
            not the text of a pattern: too large (SP107) or not UTF-8 (SP108).
    """
    try:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise error("SP603", f"`{path}` is {kind}", help="Name a `.spat` file.")
        with path.open("rb") as file:
            return decode(file.read(MAX_BYTES + 1), str(path))
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError) as refused:  # ValueError: a null character in the name
        reason = getattr(refused, "strerror", None) or str(refused)
        raise error("SP604", f"`{path}` cannot be read: {reason}", help="Check its permissions and name.") from None


def resolver(folder: Path | None) -> Callable[[str], str]:
    """What `use "path"` finds: a file beside the text that uses it, else one of the library."""

    def resolve(path: str) -> str:
        if folder is not None and (folder / path).is_file():
            return read_file(folder / path)
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


def _missing(path: Path) -> SpatError:
    folder = path.parent
    beside = [each.name for each in folder.glob("*.spat")] if folder.is_dir() else []
    known = names() if path.name == str(path) and path.suffix != ".spat" else ()
    # By stems: the common ending would make short names alike.
    named = {each.removesuffix(".spat"): each for each in (*known, *beside)}
    close = difflib.get_close_matches(path.stem, named, n=1)
    if close:
        found = close[0] if named[close[0]] in known else str(path.with_name(named[close[0]]))
        return error("SP601", f"there is no file or library pattern `{path}`", help=f"Did you mean `{found}`?")
    return error(
        "SP601",
        f"there is no file or library pattern `{path}`",
        help="`spdsl list` shows the library; `spdsl new NAME` writes a pattern to start from.",
    )
