"""`spdsl fmt`: files in the one layout."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

import typer

from spdsl.cli.files import Given, read, write_whole
from spdsl.cli.options import FilesArgument, JsonOption
from spdsl.cli.output import as_record, print_json, show_error
from spdsl.diagnostics import SpatError, error


def fmt(
    files: FilesArgument,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a file would change.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Write nothing; print what would change.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Lay out files in the one style; comments stay.  `-` reads standard input and writes standard output.

    \b
    Examples:
      spdsl fmt local.spat
      spdsl fmt --check patterns/*.spat
      spdsl fmt --diff local.spat
    """
    records: list[dict[str, Any]] = []
    failed = False
    for word in files:
        try:
            given = read(word)
            if given.path is None and word != "-" and not (check or diff):
                raise error("SP606", f"`{word}` belongs to the library", help="Copy it with `spdsl new NAME --like …`.")
            changed = _one(given, check=check, diff=diff, quiet=as_json)
        except SpatError as mistake:
            failed = True
            records.append({"file": word, "diagnostics": [as_record(each) for each in mistake.diagnostics]})
            if not as_json:
                show_error(mistake, as_json=False)
            continue
        failed |= changed and check
        records.append({"file": word, "changed": changed})
    if as_json:
        print_json({"ok": not failed, "files": records})
    else:
        _sum_up(
            [each["changed"] for each in records if "changed" in each and each["file"] != "-"],
            wrote=not (check or diff),
        )
    raise typer.Exit(int(failed))


def _sum_up(changed: list[bool], *, wrote: bool) -> None:
    """Say how many files there were of either kind; results alone go to standard output."""
    words = ("formatted", "left as it was", "left as they were") if wrote else ("to format", "in order", "in order")
    both = ((sum(changed), words[0], words[0]), (len(changed) - sum(changed), *words[1:]))
    found = [f"1 file {one}" if count == 1 else f"{count} files {many}" for count, one, many in both if count]
    if found:
        typer.echo(", ".join(found), err=True)


def _one(given: Given, *, check: bool, diff: bool, quiet: bool) -> bool:
    """Whether the file is laid out differently from how it should be; writes it unless told not to."""
    from spdsl.grammar.format import format_text

    text = format_text(given.text, given.name)
    changed = text != given.text
    if diff and changed and not quiet:
        names = given.name, f"{given.name}, laid out"
        lines = difflib.unified_diff(given.text.splitlines(keepends=True), text.splitlines(keepends=True), *names)
        # As diff does where a file does not end with a line.
        whole = (line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
        typer.echo("".join(whole), nl=False)
    if check and changed and not quiet:
        typer.echo(f"would change {given.name}", err=True)
    if check or diff:
        return changed
    if given.path is None:
        if not quiet:
            typer.echo(text, nl=False)
    elif changed:
        write_whole(given.path, text)
        if not quiet:
            typer.echo(f"formatted {given.name}", err=True)
    return changed
