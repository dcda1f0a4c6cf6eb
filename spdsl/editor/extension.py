"""The extension for VS Code, which comes with the package as plain files."""

from __future__ import annotations

from pathlib import Path

from spdsl.diagnostics import error

SOURCE = Path(__file__).parent / "vscode"


def write_extension(folder: Path) -> tuple[str, ...]:
    """Copy the extension to ``folder`` and return the names of its files; what else stands there stays.

    Raises:
        SpatError: it cannot be written (SP605).
    """
    names = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*") if path.is_file())
    target = folder.expanduser()
    try:
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((SOURCE / name).read_bytes())
    except OSError as refused:
        reason = refused.strerror or str(refused)
        raise error("SP605", f"`{folder}` cannot be written: {reason}", help="Choose another folder.") from None
    return tuple(names)
