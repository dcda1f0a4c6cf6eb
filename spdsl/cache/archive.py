"""The cache as one file, and back: entries and results of one machine for all others.

An archive is a gzipped tar of entries as they stand in the cache and of `results.json`.  What is read is checked like
everything else of the cache; hashes find damage, not malice: who imports an archive trusts its maker.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from spdsl.cache.entries import MANIFEST, DamagedError, Entry, is_key, read_entry
from spdsl.cache.places import trusted_owners
from spdsl.cache.results import RESULTS, sealed, unsealed
from spdsl.cache.store import Store
from spdsl.diagnostics import SpatError, error

_MOST = 1 << 30
"""Bytes that one file of an archive may have."""


def export(store: Store, path: Path) -> tuple[int, int]:
    """Write all entries and results to ``path``, whole or not at all.

    Returns:
        How many entries and how many results were written.

    Raises:
        SpatError: the file cannot be written (SP605).
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as archive:
            count = 0
            for entry in store.entries():
                count += 1
                for each in (*entry.files, MANIFEST):
                    _add(archive, f"entries/{entry.key}/{each}", entry.path(each).read_bytes())
            results = [[each.kind, each.key, each.value] for each in store.results.all()]
            _add(archive, RESULTS, sealed(results))
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as refused:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        help = "check that the folder exists, and its permissions"
        raise error("SP605", f"`{path}` cannot be written: {refused.strerror}", help=help) from None
    return count, len(results)


def import_(store: Store, path: Path) -> tuple[int, int]:
    """Take what an archive holds, or a folder that `spdsl compile` wrote or that is a cache; what is there stays.

    Returns:
        How many entries and how many results were taken.

    Raises:
        SpatError: it is neither, or is damaged (SP617); then nothing that is damaged has been taken.
    """
    if path.is_dir():
        return _import_folder(store, path)
    entries: dict[str, dict[str, bytes]] = {}
    results: list[Any] = []
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                parts = PurePosixPath(member.name).parts
                content = _content(archive, member)
                if parts == (RESULTS,):
                    results = _unsealed(content, path)
                elif len(parts) == 3 and parts[0] == "entries" and is_key(parts[1]):
                    entries.setdefault(parts[1], {})[parts[2]] = content
                else:
                    raise _refused(path, f"`{member.name}` does not belong to it")
    except (OSError, EOFError, tarfile.TarError) as damage:
        raise _refused(path, str(damage)) from None
    with tempfile.TemporaryDirectory(prefix="spdsl-") as folder:
        for key, files in entries.items():
            _lay_out(Path(folder), key, files, path)
        return _take(store, Path(folder), sorted(entries), path), _take_results(store, results)


def _import_folder(store: Store, path: Path) -> tuple[int, int]:
    found = path / "entries"
    if not found.is_dir():
        raise _refused(path, "it has no folder `entries`")
    keys = [each.name for group in sorted(found.iterdir()) if group.is_dir() for each in sorted(group.iterdir())]
    results = path / RESULTS
    taken = _unsealed(results.read_bytes(), path) if results.is_file() else []
    return _take(store, path, [key for key in keys if is_key(key)], path), _take_results(store, taken)


def _take(store: Store, root: Path, keys: list[str], path: Path) -> int:
    count = 0
    for key in keys:
        entry = _checked(root, key, path)
        if store.get(key) is None:
            files = {name: entry.path(name).read_bytes() for name in entry.files}
            store.put(key, kind=entry.kind, name=entry.name, files=files, about=entry.about)
            count += 1
    return count


def _checked(root: Path, key: str, path: Path) -> Entry:
    try:
        return read_entry(root, key, trusted_owners())
    except (DamagedError, FileNotFoundError) as damage:
        raise _refused(path, f"entry {key}: {damage}") from None


def _take_results(store: Store, results: list[Any]) -> int:
    taken = [each for each in results if store.results.get(each[0], each[1]) is None]
    for kind, key, value in taken:
        store.results.put(kind, key, value)
    return len(taken)


def _lay_out(root: Path, key: str, files: dict[str, bytes], path: Path) -> None:
    folder = root / "entries" / key[:2] / key
    folder.mkdir(mode=0o700, parents=True)
    for name, content in files.items():
        if "/" in name or name in (".", ".."):
            raise _refused(path, f"`{name}` is no name of a file")
        with suppress(FileExistsError):
            (folder / name).touch(mode=0o600, exist_ok=False)
        (folder / name).write_bytes(content)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member) if member.isfile() and member.size <= _MOST else None
    if file is None:
        raise tarfile.TarError(f"`{member.name}` is no file, or too large")
    return file.read()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o600
    archive.addfile(member, io.BytesIO(content))


def _unsealed(content: bytes, path: Path) -> list[Any]:
    found = unsealed(content)
    if found is None:
        raise _refused(path, f"`{RESULTS}` is damaged")
    return found


def _refused(path: Path, reason: str) -> SpatError:
    help = "name a file of `spdsl cache export`, or a folder of `spdsl compile`; make it again if it is damaged"
    return error("SP617", f"`{path}` cannot be imported: {reason}", help=help)
