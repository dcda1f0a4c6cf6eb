"""From what a user names on the command line to a text: files, standard input, the library."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spdsl.diagnostics import SpatError, error
from spdsl.grammar.parse import MAX_BYTES, decode
from spdsl.library import names, read_file, resolver, text_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A text, what messages call it, the pattern picked in it, and what its `use` lines find.

    ``path`` is None for the library and standard input.
    """

    name: str
    text: str
    pattern: str | None
    path: Path | None
    resolve: Callable[[str], str]


def read(word: str) -> Given:
    """What ``word`` names: ``-``, ``file.spat``, ``file.spat:NAME`` or a pattern of the library.

    Raises:
        SpatError: nothing has that name, or it cannot be read as text (SP6xx, SP107, SP108).
    """
    if word == "-":
        text = decode(sys.stdin.buffer.read(MAX_BYTES + 1), "<stdin>")
        return Given(name="<stdin>", text=text, pattern=None, path=None, resolve=resolver(None))
    place, picked = word, None
    if not Path(word).exists() and ".spat:" in word:
        place, _, picked = word.rpartition(":")
    path = Path(place)
    if place in names() and not path.is_file():
        return Given(name=f"{place}.spat", text=text_of(place), pattern=place, path=None, resolve=resolver(None))
    text = read_file(path)
    return Given(name=place, text=text, pattern=picked, path=path, resolve=resolver(path.parent))


def write_whole(path: Path, text: str) -> None:
    """Replace the content of a file, or leave it as it was.

    Raises:
        SpatError: the file cannot be written (SP605).
    """
    target = path.resolve()  # a symbolic link stays one
    temporary = None
    try:
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        with tempfile.NamedTemporaryFile("wb", dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(text.encode())
        temporary.chmod(mode)
        temporary.replace(target)
    except OSError as refused:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, refused) from None


def cannot_write(path: Path, refused: OSError) -> SpatError:
    """What a user reads when ``path`` cannot be written."""
    return error(
        "SP605",
        f"`{path}` cannot be written: {refused.strerror}",
        help="Check that the folder exists, and its permissions.",
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
