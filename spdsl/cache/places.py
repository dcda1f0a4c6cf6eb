"""Where the cache is, and whether what stands there can be trusted.

Kernels of the cache are run, so nothing in it may come from anybody but its owner: folders and files that others own or
can write are refused.
"""

from __future__ import annotations

import os
import stat
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

import platformdirs

from spdsl.diagnostics import Diagnostic, SpatError, SpatWarning, error

LAYOUT = "v1"
"""The name of the folder that has the layout described in `spdsl.cache.store`; another layout takes another name."""

_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def cache_root() -> Path:
    """The folder of the cache: in ``SPDSL_CACHE_DIR``, else in the user's cache directory."""
    return Path(os.environ.get("SPDSL_CACHE_DIR") or platformdirs.user_cache_dir("spdsl")) / LAYOUT


def shared_roots() -> tuple[Path, ...]:
    """Folders that are read and never written, from ``SPDSL_CACHE_PATH``: caches and what `spdsl compile` wrote."""
    return tuple(Path(each) for each in os.environ.get("SPDSL_CACHE_PATH", "").split(os.pathsep) if each)


def made_root(root: Path) -> Path:
    """``root``, made for its owner alone if it is not there; a private temporary folder where it cannot be made.

    Raises:
        SpatError: others own or can write it (SP507).
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        writable = os.access(root, os.W_OK | os.X_OK)
        reason = "it may not be written"
    except OSError as refused:
        writable, reason = False, str(refused.strerror)
    if not writable:
        return temporary(root, reason)
    if not is_private(root):
        raise _not_private(root)
    return root


def is_private(path: Path, owners: tuple[int, ...] | None = None) -> bool:
    """Whether a file or folder, and no link to one, belongs to this user (or ``owners``) and others cannot write it."""
    try:
        found = path.lstat()
    except OSError:
        return False
    if stat.S_ISLNK(found.st_mode):
        return False
    if not hasattr(os, "geteuid"):
        return True  # such systems guard the user's folders themselves
    return found.st_uid in (owners or (os.geteuid(),)) and not found.st_mode & _OTHERS


def trusted_owners() -> tuple[int, ...]:
    """Who may own a folder that is only read: this user, and the one who installs the machine's software."""
    return (os.geteuid(), 0) if hasattr(os, "geteuid") else ()


def warn(code: str, message: str, help: str) -> None:
    """Tell the user of something that was mended without him."""
    warned = SpatWarning(Diagnostic(code=code, message=message, help=help, severity="warning"))
    warnings.warn(warned, stacklevel=3)


def _not_private(root: Path) -> SpatError:
    return error(
        "SP507",
        f"the kernel cache `{root}` belongs to another user, or others can write it",
        help=f"`chmod -R go-w {root}` if nobody else has used it; else name another folder in SPDSL_CACHE_DIR",
    )


@lru_cache(maxsize=8)
def temporary(root: Path, reason: str) -> Path:
    """A folder of this process alone, in place of ``root``, which cannot be used for a ``reason``; warns of it once."""
    made = Path(tempfile.mkdtemp(prefix="spdsl-"))
    warn(
        "SP508",
        f"the kernel cache `{root}` cannot be used: {reason}; kernels of this process are kept in `{made}`",
        help="name a folder of your own in SPDSL_CACHE_DIR, or every process compiles anew",
    )
    return made
