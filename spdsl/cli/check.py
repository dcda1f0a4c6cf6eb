"""`spdsl check`: is the text a pattern?"""

from __future__ import annotations

import typer

from spdsl.cli.files import read
from spdsl.cli.options import FilesArgument, JsonOption
from spdsl.cli.output import as_record, print_json, show_diagnostics
from spdsl.diagnostics import Diagnostic, SpatError
from spdsl.grammar.parse import parse
from spdsl.remarks import doubts_of
from spdsl.semantics.check import check as check_one
from spdsl.semantics.check import check_all


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
                typer.echo(f"{word}: {_verdict(patterns)}")
    if as_json:
        print_json({"ok": not failed, "files": records})
    raise typer.Exit(int(failed))


def _one(word: str) -> tuple[list[str], tuple[Diagnostic, ...]]:
    """The names of the patterns of a text that are right, and everything that is to be said about it."""
    try:
        given = read(word)
        program = parse(given.text, given.name)
        if given.pattern is not None:
            checked = check_one(program, given.pattern, resolve=given.resolve)
            return [checked.name], doubts_of((checked,))
        patterns, diagnostics = check_all(program, resolve=given.resolve)
    except SpatError as mistake:
        return [], mistake.diagnostics
    return [each.name for each in patterns], (*diagnostics, *doubts_of(patterns))


def _verdict(patterns: list[str]) -> str:
    match patterns:
        case []:
            return "its definitions are fine"
        case [only]:
            return f"{only} is fine"
        case _:
            return f"{', '.join(patterns)} are fine"
