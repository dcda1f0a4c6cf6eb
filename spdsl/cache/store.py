"""The cache: entries of files under keys, small results, locks between processes, and a limit of size.

```
v1/entries/ab/<key>/…     sources, binaries, with a manifest of hashes
v1/index.sqlite           results of measurements, and when entries were used
v1/locks/<key>            taken while an entry is being made
v1/tmp/                   what is being written or deleted; what a killed process leaves here is pruned
```
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from spdsl.cache.entries import DamagedError, Entry, folder_of, is_key, read_entry, remove, write_entry
from spdsl.cache.places import cache_root, is_private, made_root, shared_roots, temporary, trusted_owners, warn
from spdsl.cache.results import RESULTS, Results, unsealed
from spdsl.diagnostics import error

LIMIT = 2 << 30
"""Bytes of all entries together, unless ``SPDSL_CACHE_LIMIT`` says otherwise."""

_LEFTOVER = 3600.0
"""Seconds after which what stands in `tmp` belongs to nobody."""

_KEPT = 0.8
"""The share of the limit to which entries are pruned, so that not every new one prunes."""

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """The cache in a folder; ``shared`` are folders that are read only."""

    root: Path
    shared: tuple[Path, ...] = ()
    limit: int = LIMIT
    _sizes: dict[str, int] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)
    _watchers: list[dict[str, Entry]] = field(default_factory=list)

    @property
    def results(self) -> Results:
        """The results of measurements."""
        return Results(root=self.root)

    def get(self, key: str) -> Entry | None:
        """The entry of ``key``, checked; None if there is none.  One that is damaged is dropped with a warning."""
        found = self._read(key)
        if found is not None and key not in self._used:
            self._used.add(key)
            self.results.touch(key)
        found = found if found is not None else self._read_shared(key)
        return found if found is None else self._seen(found)

    def put(self, key: str, *, kind: str, name: str, files: Mapping[str, bytes], about: Mapping[str, Any]) -> Entry:
        """Keep files under ``key``; an entry that is there already stays."""
        made = write_entry(self.root, key, kind=kind, name=name, files=files, about=about)
        self._used.add(key)
        self.results.touch(key)
        self._stay_below(made)
        return self._seen(made)

    @contextmanager
    def watched(self) -> Iterator[dict[str, Entry]]:
        """The entries, by key, that are got or put while this lasts."""
        seen: dict[str, Entry] = {}
        self._watchers.append(seen)
        try:
            yield seen
        finally:
            self._watchers.remove(seen)

    def result(self, kind: str, key: str) -> Any | None:
        """A result of this cache, else of those that are only read."""
        found = self.results.get(kind, key)
        for root in self.shared if found is None else ():
            found = found if found is not None else shared_results(root).get((kind, key))
        return found

    @contextmanager
    def making(self, key: str) -> Iterator[None]:
        """Hold the lock of ``key``: of all processes one makes the entry, and the others wait for it."""
        folder = self.root / "locks"
        folder.mkdir(mode=0o700, exist_ok=True)
        with FileLock(folder / key, mode=0o600):
            yield

    def made(self, key: str, make: Callable[[], Mapping[str, bytes]], *, kind: str, name: str, **about: Any) -> Entry:
        """The entry of ``key``, made by one process if there is none.

        What cannot be kept here, on a full disk say, is kept for this process alone, with a warning.
        """
        found = self.get(key)
        if found is not None:
            return found
        try:
            with self.making(key):
                found = self.get(key)
                if found is not None:
                    return found
                files, refused = make(), None
                try:
                    return self.put(key, kind=kind, name=name, files=files, about=about)
                except OSError as problem:
                    refused = problem
        except PermissionError as problem:  # of the lock
            files, refused = make(), problem
        aside = Store(root=temporary(self.root, str(refused.strerror)))
        return aside.get(key) or aside.put(key, kind=kind, name=name, files=files, about=about)

    def keys(self) -> Iterator[str]:
        """The keys of all entries, damaged or not."""
        folder = self.root / "entries"
        if folder.is_dir():
            for group in sorted(folder.iterdir()):
                yield from (each.name for each in sorted(group.iterdir()) if is_key(each.name))

    def entries(self) -> Iterator[Entry]:
        """All entries; those that are damaged are dropped with a warning."""
        for key in self.keys():
            found = self._read(key)
            if found is not None:
                yield found

    def verify(self) -> tuple[str, ...]:
        """Every byte checked: what is damaged, in words.  Damaged entries are dropped, to be made again."""
        found = []
        for key in list(self.keys()):
            damage = _damage(self.root, key)
            if damage:
                found.append(f"entry {key}: {damage}")
                self.drop(key)
        wrong = self.results.problems()
        if wrong:
            self.results.put_aside()
        return (*found, *wrong)

    def drop(self, key: str) -> None:
        """Take an entry away, in one step."""
        folder, aside = folder_of(self.root, key), self.root / "tmp" / f"{key}.{uuid4().hex}"
        aside.parent.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            folder.rename(aside)
            remove(aside)

    def prune(self, limit: int | None = None) -> tuple[int, int]:
        """Drop the entries least recently used until ``limit`` bytes are left, and what killed processes left.

        Returns:
            How many entries were dropped, and their bytes.
        """
        self._sweep()
        uses = self.results.uses()
        ages = sorted((uses.get(each.key, each.created), each.key, each.size) for each in self.entries())
        left, limit, gone = sum(size for _, _, size in ages), self.limit if limit is None else limit, []
        for _, key, size in ages:
            if left <= limit:
                break
            self.drop(key)
            left -= size
            gone.append((key, size))
        self.results.forget_uses([key for key, _ in gone])
        self._sizes.clear()
        return len(gone), sum(size for _, size in gone)

    def _seen(self, entry: Entry) -> Entry:
        for each in self._watchers:
            each[entry.key] = entry
        return entry

    def _stay_below(self, made: Entry) -> None:
        if not self._sizes:
            self._sizes["all"] = sum(_size(self.root, key) for key in self.keys())
        else:
            self._sizes["all"] += made.size
        if self._sizes["all"] > self.limit:
            with suppress(OSError):
                self.prune(int(self.limit * _KEPT))

    def _sweep(self) -> None:
        """Delete leftovers of killed processes, and locks that nobody holds."""
        before = time.time() - _LEFTOVER
        for folder in ("tmp", "locks"):
            for each in sorted((self.root / folder).glob("*")):
                with suppress(OSError, Timeout):
                    if each.lstat().st_mtime >= before:
                        continue
                    if folder == "tmp":
                        remove(each)
                    else:
                        with FileLock(each, timeout=0):
                            each.unlink()

    def _read(self, key: str) -> Entry | None:
        try:
            return read_entry(self.root, key)
        except FileNotFoundError:
            return None
        except DamagedError as damage:
            if folder_of(self.root, key).is_dir():  # else another process has just dropped it
                warn("SP506", f"the entry `{key}` of the kernel cache is damaged ({damage}), and was dropped", _AGAIN)
                self.drop(key)
            return None

    def _read_shared(self, key: str) -> Entry | None:
        for root in self.shared:
            damage = _damage(root, key, trusted_owners())
            if damage is None:
                return read_entry(root, key, trusted_owners())
            if damage:
                warn("SP506", f"the entry `{key}` in `{root}` is damaged ({damage}), and is not used", _AGAIN)
        return None


_AGAIN = "it will be made again; check the disk if this happens often"


def store() -> Store:
    """The cache of this process.

    Raises:
        SpatError: others own its folder or can write it (SP507), or a setting cannot be read (SP509).
    """
    return _store(cache_root(), shared_roots(), os.environ.get("SPDSL_CACHE_LIMIT", ""))


@lru_cache(maxsize=8)
def _store(root: Path, shared: tuple[Path, ...], limit: str) -> Store:
    for each in shared:
        if each.exists() and not is_private(each, trusted_owners()):
            raise error(
                "SP507",
                f"the folder `{each}` of SPDSL_CACHE_PATH can be written by others than you and root",
                help=f"`chmod -R go-w {each}` if its content can be trusted, or copy it: `spdsl cache import {each}`",
            )
    return Store(root=made_root(root), shared=shared, limit=bytes_of(limit) if limit else LIMIT)


@lru_cache(maxsize=8)
def shared_results(root: Path) -> dict[tuple[str, str], Any]:
    """The results in a folder that is only read, by kind and key; none where their file is not as it was written."""
    path = root / RESULTS
    if not is_private(path, trusted_owners()):
        return {}
    found = unsealed(path.read_bytes())
    if found is None:
        warn("SP506", f"`{path}` is damaged, and is not used", _AGAIN)
    return {(kind, key): value for kind, key, value in found or ()}


def bytes_of(text: str) -> int:
    """A number of bytes: ``500M``, ``2G``, ``1.5 GB``.

    Raises:
        SpatError: it is not one (SP509).
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    if found is None:
        raise error("SP509", f"`{text}` is not a number of bytes", help="write for example `500M` or `2G`")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _damage(root: Path, key: str, owners: tuple[int, ...] | None = None) -> str | None:
    """What is wrong with an entry, in words; an empty text if there is none, None if it is right."""
    try:
        read_entry(root, key, owners)
    except DamagedError as damage:
        return str(damage)
    except FileNotFoundError:
        return ""
    return None


def _size(root: Path, key: str) -> int:
    with suppress(OSError):
        return sum(each.stat().st_size for each in folder_of(root, key).iterdir())
    return 0
