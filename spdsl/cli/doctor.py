"""`spdsl doctor`: what works here, and what to do about what does not."""

from __future__ import annotations

import textwrap

import typer

from spdsl.cli.options import JsonOption
from spdsl.cli.output import print_json, styled, width
from spdsl.cli.progress import progress

_MARKS = {"works": ("✓", "green"), "note": ("•", "yellow"), "fails": ("✗", "red")}
_LABEL = 18


def doctor(as_json: JsonOption = False) -> None:
    """Look at this machine: versions, GPU, back ends, cache, settings; and say what to do.

    The back ends compute a small attention with its gradients, compared with the reference. Nothing is changed. The
    exit status is 1 if something fails.

    \b
    Examples:
      spdsl doctor
      spdsl doctor --json
    """
    from spdsl.doctor import Check, examine

    checks: list[Check] = []
    with progress("looking", quiet=as_json):
        checks.extend(examine())
    failed = any(each.status == "fails" for each in checks)
    if as_json:
        fields = ("name", "status", "found", "help")
        print_json({"ok": not failed, "checks": [{field: getattr(each, field) for field in fields} for each in checks]})
    else:
        for each in checks:
            mark, colour = _MARKS[each.status]
            _print(styled(mark, fg=colour, bold=True), each.name, each.found)
            if each.help:
                _print(" ", "", f"→ {each.help}")
    raise typer.Exit(int(failed))


def _print(mark: str, name: str, text: str) -> None:
    room = max(40, width() - _LABEL - 2)
    first, *rest = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    typer.echo(f"{mark} {name:<{_LABEL}}{first}")
    for line in rest:
        typer.echo(" " * (_LABEL + 2) + line)
