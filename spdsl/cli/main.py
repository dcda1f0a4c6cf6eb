"""The command `spdsl`: its commands by name, and the boundary past which no Python traceback goes.

Exit status: 0 done, 1 the pattern, the input or the result is wrong, 2 the command line is wrong, 3 a fault of spdsl.
`spdsl prove` alone: 0 proven, 1 refuted, 2 a mistake anywhere, 4 cannot be decided.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import typer

from spdsl import __version__
from spdsl.cli import (
    bench,
    cache,
    check,
    compile_,
    doctor,
    explain,
    fmt,
    library,
    lsp,
    prove,
    reuse,
    run_,
    show,
    tune,
    view,
)
from spdsl.cli.output import help_of, print_json, show_error, show_fault, show_warning
from spdsl.diagnostics import SpatError, error

EPILOG = (
    "Start with `spdsl new local` and `spdsl check local.spat`. Every command has examples: `spdsl run --help`. "
    "`spdsl doctor` says what works here; `spdsl --install-completion` completes words in your shell."
)

app = typer.Typer(
    name="spdsl",
    help="Sparsity patterns for attention: check, look at, run and compile them.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"spdsl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Sparsity patterns for attention: check, look at, run and compile them."""


COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("new", library.new),
    ("list", library.list_),
    ("check", check.check),
    ("fmt", fmt.fmt),
    ("show", show.show),
    ("view", view.view),
    ("explain", explain.explain),
    ("prove", prove.prove),
    ("run", run_.run),
    ("bench", bench.bench),
    ("compile", compile_.compile_),
    ("tune", tune.tune),
    ("reuse", reuse.reuse),
    ("doctor", doctor.doctor),
    ("lsp", lsp.lsp),
)
"""In the order in which they are listed."""

for _name, _command in COMMANDS:
    app.command(_name, help=help_of(_command))(_command)
app.add_typer(cache.app, name="cache")


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line, without the program's name, and return its exit status."""
    as_json = "--json" in arguments
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries say to programmers is not for users of the command
        warnings.showwarning = show_warning
        warnings.simplefilter("always", _spat_warning())
        try:
            if as_json:
                done = app(args=list(arguments), prog_name="spdsl", standalone_mode=False)
                return done if isinstance(done, int) else 0
            app(args=list(arguments), prog_name="spdsl")
        except _WRONG_WORDS as wrong:
            print_json({"ok": False, "usage": wrong.format_message()})
            return 2
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except SpatError as mistake:
            show_error(mistake, as_json=as_json)
            return 1
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:
            # The reader of a pipe has gone, as in `spdsl list | head -1`; Python must not flush into it again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as fault:  # noqa: BLE001 — the boundary: whatever it is, the user gets a message
            if os.environ.get("SPDSL_TRACEBACK") == "1":
                traceback.print_exc()
            if _is_lack_of_memory(fault):
                show_error(_too_large(fault), as_json=as_json)
                return 1
            show_fault(fault, as_json=as_json)
            return 3
    return 0


# What typer raises for a command line that is wrong; it has no public name of its own.
_WRONG_WORDS: type[Any] = typer.BadParameter.__mro__[1]


def _is_lack_of_memory(fault: Exception) -> bool:
    """Whether an allocation failed; torch has an error of its own for it on GPUs alone."""
    named = type(fault).__name__ == "OutOfMemoryError"
    return named or isinstance(fault, MemoryError) or _ASKED.search(str(fault)) is not None


def _too_large(fault: Exception) -> SpatError:
    asked = _ASKED.search(str(fault))
    what = f"{int(asked[1]):,} bytes at once are" if asked else "this is"
    return error("SP616", f"{what} more memory than there is", help="Use fewer tokens or heads.")


_ASKED = re.compile(r"tried to allocate (\d+) bytes")


def _spat_warning() -> type[Warning]:
    from spdsl.diagnostics import SpatWarning

    return SpatWarning


def main() -> None:
    """The entry point of the installed command."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
