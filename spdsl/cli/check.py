"""`spdsl check`: is the text a pattern?"""

from __future__ import annotations

from typing import Any

import typer

from spdsl.cli.files import Given, read
from spdsl.cli.options import FilesArgument, JsonOption
from spdsl.cli.output import as_record, print_json, show_diagnostics
from spdsl.diagnostics import Diagnostic, SpatError


def check(files: FilesArgument, as_json: JsonOption = False) -> None:
    """Check files: syntax, names, types and static meaning.  Every mistake is shown at once.

    \b
    Examples:
      spdsl check local.spat
      spdsl check patterns/*.spat --json
      spdsl check -  < local.spat
    """
    failed, records = False, []
    for word in files:
        patterns, diagnostics = _one(word)
        wrong = any(each.severity == "error" for each in diagnostics)
        failed |= wrong
        records.append(
            {"file": word, "ok": not wrong, "patterns": patterns, "diagnostics": [as_record(d) for d in diagnostics]}
        )
        if not as_json:
            show_diagnostics(diagnostics)
            if not wrong:
                typer.echo(f"{word}: {', '.join(patterns)} {'is' if len(patterns) == 1 else 'are'} fine")
    if as_json:
        print_json({"ok": not failed, "files": records})
    raise typer.Exit(int(failed))


def _one(word: str) -> tuple[list[str], tuple[Diagnostic, ...]]:
    """The patterns of a text and everything that is to be said about it."""
    try:
        given = read(word)
        return _patterns(given)
    except SpatError as mistake:
        return [], mistake.diagnostics
