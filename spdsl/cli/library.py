"""`spdsl list` and `spdsl new`: the patterns that come with the package, and a file to start from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from spdsl.cli.files import cannot_write
from spdsl.cli.options import JsonOption
from spdsl.cli.output import print_json, print_table
from spdsl.diagnostics import error
from spdsl.library import names, resolver, text_of

STARTER = """\
# What a query keeps: a window of tokens before it, and the first tokens of the text.
# `q` and `k` are the positions of the query and of the key; `causal` means `k <= q`.
pattern {name}(window: int in 1.. = 256, sinks: int in 0.. = 4) {{
  keep causal and (q - k < window or k < sinks)
}}
"""


def list_(as_json: JsonOption = False) -> None:
    """List the library; `spdsl show NAME` prints one of its patterns.

    \b
    Examples:
      spdsl list
      spdsl list --json
    """
    rows = [(name, _heading(name), _summary(name)) for name in names()]
    if as_json:
        fields = ("name", "declaration", "summary")
        print_json({"ok": True, "patterns": [dict(zip(fields, row, strict=True)) for row in rows]})
    else:
        print_table(("name", "what it keeps"), [(name, summary) for name, _, summary in rows])


def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The pattern's name, or a path that ends in it.", show_default=False)
    ],
    like: Annotated[str | None, typer.Option(help="Start from this pattern of the library.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a pattern to start from.

    \b
    Examples:
      spdsl new local
      spdsl new patterns/mine.spat --like documents
    """
    path = Path(f"{name.removesuffix('.spat')}.spat")
    if not re.fullmatch(r"[A-Za-z_]\w*", path.stem, re.ASCII):
        raise typer.BadParameter(f"`{name}` does not end in a name: letters, digits and `_`, no digit first")
    text = STARTER.format(name=path.stem)
    if like is not None:
        text = re.sub(rf"^pattern {like}\b", f"pattern {path.stem}", text_of(like), flags=re.MULTILINE)
    text = _proved(text, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise error("SP607", f"`{path}` exists", help="Choose another name, or use `--force` to replace it.") from None
    except OSError as refused:
        raise cannot_write(path, refused) from None
    if as_json:
        print_json({"ok": True, "file": str(path)})
    else:
        typer.echo(f"wrote {path}; next: `spdsl check {path}`, `spdsl view {path}`")


def _proved(text: str, path: Path) -> str:
    """The text, laid out; refuses a name that the language keeps for itself before anything is written."""
    from spdsl.grammar.format import format_text
    from spdsl.pipeline import read

    read(text, source=str(path), resolve=resolver(None))
    return format_text(text, str(path))


def _heading(name: str) -> str:
    found = re.search(rf"^pattern {name}\b[^{{]*", text_of(name), re.MULTILINE)
    return " ".join(found.group().split()) if found else f"pattern {name}"


def _summary(name: str) -> str:
    """The first sentence of the comment right above the pattern, or else of the file."""
    lines = text_of(name).splitlines()
    start = next(number for number, line in enumerate(lines) if re.match(rf"pattern {name}\b", line))
    above = start
    while above and lines[above - 1].startswith("#"):
        above -= 1
    comment = " ".join(line.lstrip("# ").strip() for line in lines[above:start])
    if not comment:
        comment = " ".join(line.lstrip("# ").strip() for line in lines if line.startswith("#"))
    return re.split(r"(?<=\.)\s", comment, maxsplit=1)[0].rstrip(".")
