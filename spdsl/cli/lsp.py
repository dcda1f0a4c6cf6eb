"""`spdsl lsp`: the language server, and the extension that starts it in VS Code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

from spdsl.cli.options import JsonOption
from spdsl.cli.output import note, print_json
from spdsl.diagnostics import error


def lsp(
    vscode: Annotated[
        Path | None,
        typer.Option("--vscode", metavar="FOLDER", help="Write the extension for VS Code to this folder instead."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Serve an editor: mistakes while typing, meanings, completion, definitions, layout, new names.

    Editors start it themselves and speak to it over standard input and output; `docs/editors.md` says how each is
    told to.  It needs `pip install "spdsl[editor]"`.

    \b
    Examples:
      spdsl lsp
      spdsl lsp --vscode ~/.vscode/extensions/spdsl
    """
    if vscode is not None:
        from spdsl.editor.extension import write_extension

        files = write_extension(vscode)
        if as_json:
            print_json({"ok": True, "folder": str(vscode), "files": list(files)})
        else:
            typer.echo(f"wrote {vscode}: {', '.join(files)}")
            typer.echo(f"next: `npm install --omit=dev` in {vscode}, then restart VS Code")
        return
    if importlib.util.find_spec("pygls") is None:
        raise error("SP630", "the language server needs pygls", help='Install it: `pip install "spdsl[editor]"`.')
    from spdsl.editor.server import serve

    if sys.stdin.isatty():
        note("this speaks to an editor, which starts it by itself; Ctrl-C ends it (docs/editors.md)")
    serve()
