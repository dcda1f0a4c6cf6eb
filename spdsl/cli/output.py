"""How results and diagnostics reach a user: text with colour on a terminal, plain text elsewhere, or JSON."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TextIO

import typer

from spdsl import __version__
from spdsl.diagnostics import Diagnostic, SpatError, SpatWarning

_COLOURS = {"error": typer.colors.RED, "warning": typer.colors.YELLOW}


def styled(text: str, *, fg: str | None = None, bold: bool = False) -> str:
    """Text with colour and weight, unless NO_COLOR is set (https://no-color.org) or the terminal has none.

    Where no terminal is, `typer.echo` drops them.
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return typer.style(text, fg=fg, bold=bold or None)


def width() -> int:
    """Columns of the terminal, or what a page has."""
    return shutil.get_terminal_size((100, 24)).columns


def show_error(mistake: SpatError, *, as_json: bool) -> None:
    """All diagnostics of a mistake: on standard error, or as JSON on standard output."""
    found = [_in_words_of_options(each) for each in mistake.diagnostics]
    if as_json:
        print_json({"ok": False, "diagnostics": [as_record(each) for each in found]})
    else:
        show_diagnostics(found)


def _in_words_of_options(diagnostic: Diagnostic) -> Diagnostic:
    """The remark with arguments of Python in its help told as options: ``window=…`` is `-p window=…`."""
    help = diagnostic.help.replace("pass `layer=…`", "pass `--layer N`")
    return replace(diagnostic, help=re.sub(r"pass `(\w+=…)`", r"pass `-p \1`", help))


def help_of(command: Callable[..., object]) -> str:
    """The docstring of a command as typer's help: lines end where the terminal does, brackets are no markup."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    flowing = (each if each.startswith("\b") else " ".join(each.split()) for each in paragraphs)
    return "\n\n".join(flowing).replace("[", "\\[")


def note(text: str) -> None:
    """Tell the user something on standard error that is no mistake."""
    typer.echo(f"note: {text}", err=True)


def show_diagnostics(diagnostics: Iterable[Diagnostic]) -> None:
    """Diagnostics on standard error, one empty line between them."""
    for number, each in enumerate(diagnostics):
        if number:
            typer.echo(err=True)
        typer.echo(paint(each), err=True)


def paint(diagnostic: Diagnostic) -> str:
    """The rendered diagnostic, its head, gutter and carets coloured (typer drops colours that nobody would see)."""
    head, *rest = diagnostic.render().split("\n")
    colour = _COLOURS[diagnostic.severity]
    mark, colon, message = head.partition("]:")
    lines = [styled(mark + colon, fg=colour, bold=True) + styled(message, bold=True)]
    for line in rest:
        gutter, bar, text = line.partition("| ")
        if bar and not gutter.strip() and text.lstrip().startswith("^"):
            lines.append(styled(gutter + bar, fg=typer.colors.BLUE) + styled(text, fg=colour, bold=True))
        elif bar and gutter.strip(" 0123456789") == "":
            lines.append(styled(gutter + bar, fg=typer.colors.BLUE) + text)
        elif line.lstrip().startswith("= help:"):
            start = line.index("= help:") + len("= help:")
            lines.append(styled(line[:start], fg=typer.colors.CYAN) + line[start:])
        else:
            lines.append(line)
    return "\n".join(lines)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Stand in for `warnings.showwarning`: what spdsl warns of, without the line of Python that warned."""
    del filename, lineno, file, line
    if issubclass(category, SpatWarning):
        carried = message.args[0] if isinstance(message, Warning) and message.args else message
        typer.echo(paint(carried) if isinstance(carried, Diagnostic) else str(carried), err=True)


def show_fault(fault: Exception, *, as_json: bool) -> None:
    """A fault of spdsl itself: what happened in one line, and what to do about it."""
    what = f"{type(fault).__name__}: {fault}".split("\n", 1)[0][:300].rstrip(": ")
    if as_json:
        print_json({"ok": False, "fault": what})
        return
    typer.echo(styled("internal error: ", fg=typer.colors.RED, bold=True) + what, err=True)
    typer.echo(
        f"   = help: this is a fault of spdsl {__version__}, not yours; please report it with the pattern, the command "
        "and what `SPDSL_TRACEBACK=1` adds to this message",
        err=True,
    )


def as_record(diagnostic: Diagnostic) -> dict[str, Any]:
    """A diagnostic as JSON: places are 1-based, ``end_column`` exclusive; ``rendered`` is what a terminal shows."""
    span = diagnostic.span
    place = None
    if span is not None:
        place = {
            "file": span.source.name,
            "line": span.line,
            "column": span.column,
            "end_line": span.end_line,
            "end_column": span.end_column,
        }
    return {
        "severity": diagnostic.severity,
        "code": diagnostic.code,
        "message": diagnostic.message,
        "note": diagnostic.note,
        "help": diagnostic.help,
        "place": place,
        "rendered": diagnostic.render(),
    }


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Left-aligned columns under a head; on a terminal the last column ends where the line does."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)] + [0]
    room = shutil.get_terminal_size().columns if is_terminal() else None
    for number, line in enumerate(lines):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        if room is not None and len(text) > room:
            text = text[: room - 1] + "…"
        typer.echo(styled(text, bold=True) if number == 0 else text)


def is_terminal() -> bool:
    """Whether a person watches standard output."""
    return sys.stdout.isatty()
