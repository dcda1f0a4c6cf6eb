"""What a shell offers after a Tab: patterns of the library, files, and the parameters of the pattern that is named."""

from __future__ import annotations

from pathlib import Path

import typer

from spdsl.diagnostics import SpatError


def patterns(incomplete: str) -> list[str]:
    """Files, folders on the way to them, and names of the library."""
    from spdsl.library import names

    folder, _, _ = incomplete.rpartition("/")
    found = sorted(Path().glob(f"{incomplete}*") if not incomplete.startswith(("/", "~")) else _absolute(incomplete))
    files = [f"{each}/" if each.is_dir() else str(each) for each in found if each.is_dir() or each.suffix == ".spat"]
    visible = [each for each in files if not Path(each).name.startswith(".")]
    return [*(visible if folder or incomplete else [each for each in visible if each.endswith(".spat")]), *names()]


def _absolute(incomplete: str) -> list[Path]:
    path = Path(incomplete).expanduser()
    folder, start = (path, "") if incomplete.endswith("/") else (path.parent, path.name)
    return [each for each in folder.glob("*") if each.name.startswith(start)] if folder.is_dir() else []


def parameters(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """``name=`` for each parameter of the pattern on the line, with its declaration."""
    from spdsl.cli.files import read
    from spdsl.editor.notes import headline
    from spdsl.editor.project import File

    # A line that is not complete is not taken apart: its words without options are left in `args`.
    word = ctx.params.get("pattern") or next(iter(ctx.args), None)
    if not word or "=" in incomplete:
        return []
    try:
        given = read(word)
    except SpatError:
        return []
    file = File(Path(given.name), given.text)
    items = [each for each in file.outline.items() if each.kind == "pattern"]
    chosen = next((each for each in items if each.name == given.pattern), items[-1] if items else None)
    found = file.outline.members(chosen.name if chosen else None)
    return [(f"{each.name}=", headline(file, each)) for each in found if each.kind == "parameter"]
