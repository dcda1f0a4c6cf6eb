"""Small results in SQLite: what was measured, and when entries were last used.

Every operation opens the database anew, so that processes may fork, and ends before it returns.  Each value has its
hash beside it.  A database that is damaged is put aside with a warning and begun anew: what it held can be measured
again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from spdsl.cache.places import is_private, warn

NAME = "index.sqlite"

RESULTS = "results.json"
"""Results as a file, in archives and in folders that are only read."""

_WAIT = 10.0
"""Seconds to wait for another process that writes."""

_TABLES = """
CREATE TABLE IF NOT EXISTS results (
  kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, hash TEXT NOT NULL, created REAL NOT NULL,
  PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uses (key TEXT PRIMARY KEY, used REAL NOT NULL) WITHOUT ROWID;
"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One result: ``kind`` and ``key`` name it, ``value`` is JSON, ``created`` in seconds since 1970."""

    kind: str
    key: str
    value: Any
    created: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The database in a folder."""

    root: Path

    @property
    def path(self) -> Path:
        """The file of the database; SQLite keeps others beside it while it is open."""
        return self.root / NAME

    def get(self, kind: str, key: str) -> Any | None:
        """The value of a result, or None."""
        found = self._do(lambda db: db.execute(_ONE, (kind, key)).fetchone(), None)
        if found is None:
            return None
        if hashlib.sha256(_hashed(kind, key, found[0])).hexdigest() != found[1]:
            warn("SP506", f"a result of kind `{kind}` in `{self.path}` is damaged, and was dropped", _AGAIN)
            self._do(lambda db: db.execute("DELETE FROM results WHERE kind = ? AND key = ?", (kind, key)), None)
            return None
        return json.loads(found[0])

    def put(self, kind: str, key: str, value: Any) -> None:
        """Keep a value, in place of an earlier one."""
        text = json.dumps(value, sort_keys=True)
        row = (kind, key, text, hashlib.sha256(_hashed(kind, key, text)).hexdigest(), time.time())
        self._do(lambda db: db.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)", row), None)

    def all(self, kind: str | None = None) -> tuple[Result, ...]:
        """All results that are as they were written, by kind and key."""
        rows: list[Any] = self._do(lambda db: db.execute("SELECT * FROM results ORDER BY kind, key").fetchall(), [])
        return tuple(
            Result(kind=row[0], key=row[1], value=json.loads(row[2]), created=row[4])
            for row in rows
            if kind in (None, row[0]) and hashlib.sha256(_hashed(*row[:3])).hexdigest() == row[3]
        )

    def drop(self, kind: str, key: str) -> None:
        """Forget a result."""
        self._do(lambda db: db.execute("DELETE FROM results WHERE kind = ? AND key = ?", (kind, key)), None)

    def touch(self, key: str) -> None:
        """Note that an entry is used; to the hour, so that most calls write nothing."""
        now = time.time()

        def note(db: sqlite3.Connection) -> None:
            known = db.execute("SELECT used FROM uses WHERE key = ?", (key,)).fetchone()
            if known is None or known[0] < now - 3600:
                db.execute("INSERT OR REPLACE INTO uses VALUES (?, ?)", (key, now))

        self._do(note, None)

    def uses(self) -> dict[str, float]:
        """When entries were last used, in seconds since 1970."""
        return dict(self._do(lambda db: db.execute("SELECT key, used FROM uses").fetchall(), []))

    def forget_uses(self, keys: list[str]) -> None:
        """Forget entries that are gone."""
        self._do(lambda db: db.executemany("DELETE FROM uses WHERE key = ?", [(key,) for key in keys]), None)

    def problems(self) -> tuple[str, ...]:
        """What is wrong with the database, in words."""
        if not self.path.exists():
            return ()
        if not is_private(self.path):
            return (f"{NAME}: others own it, or can write it",)
        try:
            with self._open() as db:
                found = [row[0] for row in db.execute("PRAGMA integrity_check").fetchall() if row[0] != "ok"]
                rows = db.execute("SELECT * FROM results").fetchall()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as damage:
            return (f"{NAME}: {damage}",)
        wrong = [
            f"result {row[0]} {row[1]}"
            for row in rows
            if hashlib.sha256(_hashed(*map(str, row[:3]))).hexdigest() != row[3]
        ]
        return tuple(f"{NAME}: {each}" for each in found + wrong)

    def put_aside(self) -> None:
        """Begin the database anew."""
        for ending in ("", "-wal", "-shm"):
            self.path.with_name(NAME + ending).unlink(missing_ok=True)

    def _do(self, action: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        try:
            if self.path.exists() and not is_private(self.path):
                raise sqlite3.DatabaseError("others own it, or can write it")
            with self._open() as db:
                return action(db)
        except OSError:
            return otherwise  # the file cannot be made
        except sqlite3.OperationalError as refused:
            if not _is_damage(refused):
                return otherwise  # busy, full or read-only: results are only a gain
            damage: Exception = refused
        except (sqlite3.DatabaseError, UnicodeDecodeError) as found:
            damage = found
        warn("SP506", f"`{self.path}` is damaged ({damage}), and was begun anew", _AGAIN)
        self.put_aside()
        return otherwise

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        if not self.path.exists():
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600))
        with closing(sqlite3.connect(self.path, timeout=_WAIT)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_TABLES)
            with db:
                yield db


def sealed(results: list[list[Any]]) -> bytes:
    """Results, each ``[kind, key, value]``, as a file with their hash."""
    text = json.dumps(results, sort_keys=True)
    return json.dumps({"results": results, "hash": hashlib.sha256(text.encode()).hexdigest()}, sort_keys=True).encode()


def unsealed(content: bytes) -> list[list[Any]] | None:
    """Results as `sealed` wrote them; None if they are not."""
    try:
        found: list[list[Any]] = json.loads(content)["results"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if content == sealed(found) else None


_ONE = "SELECT value, hash FROM results WHERE kind = ? AND key = ?"
_AGAIN = "it will be measured again; check the disk if this happens often"


def _hashed(kind: str, key: str, text: str) -> bytes:
    return json.dumps([kind, key, text]).encode()


def _is_damage(refused: sqlite3.OperationalError) -> bool:
    words = ("malformed", "no such table", "no such column", "not a database", "corrupt", "syntax error", "disk image")
    return any(word in str(refused) for word in words)
