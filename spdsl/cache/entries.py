"""One entry of the cache: a folder of files under a key, with a manifest that has the hash of each, and its own.

An entry appears whole, by one rename, and is never changed.  Reading one checks everything; what does not fit is not an
entry.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spdsl.cache.places import is_private

MANIFEST = "entry.json"
FORMAT = 1

_KEY = re.compile(r"[0-9a-f]{32}\Z")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}\Z")


class DamagedError(Exception):
    """An entry that must not be used, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is kept under ``key``: files in ``folder`` with their SHA-256, and ``about``, what the maker says of them.

    ``kind`` is ``plan``, ``template``, ``source``, ``kernel`` or ``launcher``; ``name`` is for people; ``size`` counts
    the bytes of the files; ``created`` is in seconds since 1970, and no
    part of what is kept, so that the same work leaves the same bytes.
    """

    key: str
    kind: str
    name: str
    folder: Path
    files: dict[str, str]
    about: dict[str, Any]
    size: int
    created: float

    def path(self, name: str) -> Path:
        """Where a file of the entry is."""
        return self.folder / name


def digest(*parts: str) -> str:
    """A key from texts: 32 hexadecimal digits of their SHA-256."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def is_key(text: str) -> bool:
    """Whether ``text`` has the form of a key."""
    return _KEY.match(text) is not None


def folder_of(root: Path, key: str) -> Path:
    """Where the entry of ``key`` is kept under ``root``."""
    return root / "entries" / key[:2] / key


def write_entry(
    root: Path, key: str, *, kind: str, name: str, files: Mapping[str, bytes], about: Mapping[str, Any]
) -> Entry:
    """Keep ``files`` under ``key``; where another process was faster, its entry stays.

    Raises:
        OSError: the folder cannot be written.
    """
    assert is_key(key)
    assert all(_NAME.match(each) and each != MANIFEST for each in files)
    final, scratch = folder_of(root, key), root / "tmp"
    for folder in (final.parent.parent, final.parent, scratch):
        folder.mkdir(mode=0o700, exist_ok=True)
    record = {
        "format": FORMAT,
        "key": key,
        "kind": kind,
        "name": name,
        "size": sum(map(len, files.values())),
        "files": {each: hashlib.sha256(content).hexdigest() for each, content in sorted(files.items())},
        "about": dict(about),
    }
    made = Path(tempfile.mkdtemp(dir=scratch, prefix=f"{key}."))
    for each, content in files.items():
        _write(made / each, content)
    _write(made / MANIFEST, _sealed(record))
    try:
        made.rename(final)
    except OSError:
        # The folder of an entry is never empty, so it cannot be replaced.
        remove(made)
        if not final.is_dir():
            raise
    return read_entry(root, key)


def read_entry(root: Path, key: str, owners: tuple[int, ...] | None = None) -> Entry:
    """The entry of ``key``, every byte of it checked.

    Raises:
        DamagedError: it is there, but not as it was written, or others could have written it.
        FileNotFoundError: there is none.
    """
    folder = folder_of(root, key)
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    record = _record(folder, key, owners)
    for name, expected in record["files"].items():
        if _NAME.match(name) is None:
            raise DamagedError(f"the name `{name}` is not one of a file")
        if hashlib.sha256(_read(folder / name, owners)).hexdigest() != expected:
            raise DamagedError(f"`{name}` is not what was written")
    if {each.name for each in folder.iterdir()} != {MANIFEST, *record["files"]}:
        raise DamagedError("there are files that do not belong to it")
    names = ("key", "kind", "name", "files", "about", "size")
    created = (folder / MANIFEST).stat().st_mtime
    return Entry(folder=folder, created=created, **{each: record[each] for each in names})


def remove(folder: Path) -> None:
    """Delete the folder of an entry; its manifest goes first, so that half of an entry is none."""
    (folder / MANIFEST).unlink(missing_ok=True)
    with suppress(OSError):
        for each in folder.iterdir():
            each.unlink(missing_ok=True)
        folder.rmdir()


def _record(folder: Path, key: str, owners: tuple[int, ...] | None) -> dict[str, Any]:
    if not is_private(folder, owners):
        raise DamagedError("others own it, or can write it")
    text = _read(folder / MANIFEST, owners)
    try:
        record = json.loads(text)
        sealed = _sealed({name: value for name, value in record.items() if name != "seal"})
    except (ValueError, AttributeError):
        raise DamagedError(f"`{MANIFEST}` cannot be read") from None
    # Byte by byte, so that not even a space may change.
    if text != sealed or record["format"] != FORMAT or record["key"] != key:
        raise DamagedError(f"`{MANIFEST}` is not what was written")
    return dict(record)


def _sealed(record: Mapping[str, Any]) -> bytes:
    """The manifest as it is written, with the hash of itself."""
    plain = json.dumps(record, sort_keys=True, separators=(",", ":"))
    seal = hashlib.sha256(plain.encode()).hexdigest()
    return (json.dumps({**record, "seal": seal}, sort_keys=True, indent=1) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def _read(path: Path, owners: tuple[int, ...] | None) -> bytes:
    if not path.exists():
        raise DamagedError(f"`{path.name}` is missing")
    if not is_private(path, owners):
        raise DamagedError(f"others own `{path.name}`, or can write it")
    try:
        return path.read_bytes()
    except OSError as refused:
        raise DamagedError(f"`{path.name}` cannot be read: {refused.strerror}") from None
