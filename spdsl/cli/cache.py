"""`spdsl cache`: what is kept of earlier work, looked at, checked, cut down, and carried to other machines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from spdsl.cli.options import JsonOption
from spdsl.cli.output import print_json, print_table
from spdsl.cli.progress import progress

app = typer.Typer(
    no_args_is_help=True, help="List, check, prune and carry over the kernels and measurements that are kept."
)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="The archive, for example `kernels.tar.gz`.")]


@app.command("path")
def path(as_json: JsonOption = False) -> None:
    """Print the folder of the cache."""
    from spdsl.cache.store import store

    if as_json:
        print_json({"ok": True, "folder": str(store().root)})
    else:
        typer.echo(store().root)


@app.command("ls")
def ls(as_json: JsonOption = False) -> None:
    """List the entries: sources, kernels, launchers, and results of measurements."""
    from spdsl.cache.store import store

    here = store()
    uses = here.results.uses()
    entries = list(here.entries())
    results = here.results.all()
    if as_json:
        records = [
            {
                "key": each.key,
                "kind": each.kind,
                "name": each.name,
                "bytes": each.size,
                "created": each.created,
                "used": uses.get(each.key),
                "about": each.about,
            }
            for each in entries
        ]
        kept = [{"kind": each.kind, "key": each.key, "value": each.value} for each in results]
        print_json({"ok": True, "folder": str(here.root), "entries": records, "results": kept})
        return
    rows = [
        (each.key, each.kind, each.name, _bytes(each.size), _ago(uses.get(each.key, each.created)), _about(each.about))
        for each in entries
    ]
    if rows:
        print_table(("key", "kind", "name", "size", "used", "made for"), rows)
    kinds = ", ".join(f"{sum(r.kind == kind for r in results)} {kind}" for kind in sorted({r.kind for r in results}))
    total = sum(each.size for each in entries)
    typer.echo(f"{len(entries)} entries, {_bytes(total)} of {_bytes(here.limit)}; results: {kinds or 'none'}")


@app.command("verify")
def verify(as_json: JsonOption = False) -> None:
    """Check every byte against its hash. What is damaged is dropped and will be made again; then the status is 1."""
    from spdsl.cache.store import store

    with progress("checking every byte", quiet=as_json):
        found = store().verify()
    if as_json:
        print_json({"ok": not found, "damaged": list(found)})
    else:
        for each in found:
            typer.echo(f"damaged, and dropped: {each}")
        if not found:
            typer.echo("everything is as it was written")
    if found:
        raise typer.Exit(1)


@app.command("prune")
def prune(
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="SIZE", help="What may stay: `500M`; the limit by default."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Drop the entries least recently used until the rest fits, and what killed processes left behind."""
    from spdsl.cache.store import bytes_of, store

    count, size = store().prune(None if to is None else bytes_of(to))
    if as_json:
        print_json({"ok": True, "dropped": count, "bytes": size})
    else:
        typer.echo(f"dropped {count} entries, {_bytes(size)}")


@app.command("export")
def export(file: FileArgument, as_json: JsonOption = False) -> None:
    """Write all entries and results to one file, from which other machines start without compiling or tuning."""
    from spdsl.cache.archive import export as write
    from spdsl.cache.store import store

    with progress("writing", quiet=as_json):
        counts = write(store(), file)
    _report("wrote", file, counts, as_json)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE|FOLDER", help="An archive, or a folder of `spdsl compile`.")],
    as_json: JsonOption = False,
) -> None:
    """Take what another machine has made; everything is checked, and what is already here stays.

    Kernels are run: import only what comes from someone you trust.
    """
    from spdsl.cache.archive import import_ as take
    from spdsl.cache.store import store

    with progress("checking and taking over", quiet=as_json):
        counts = take(store(), source)
    _report("took from", source, counts, as_json)


def _report(verb: str, where: Path, counts: tuple[int, int], as_json: bool) -> None:
    entries, results = counts
    if as_json:
        print_json({"ok": True, "path": str(where), "entries": entries, "results": results})
    else:
        typer.echo(f"{verb} {where}: {entries} entries, {results} results")


def _about(about: dict[str, object]) -> str:
    return str(about.get("target", ""))


def _bytes(size: int) -> str:
    for unit, least in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)):
        if size >= least:
            return f"{size / least:.1f} {unit}"
    return f"{size} bytes"


def _ago(then: float) -> str:
    seconds = max(0.0, time.time() - then)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "now"
