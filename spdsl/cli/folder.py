"""The folder that `spdsl compile` writes: whole, or not at all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spdsl import __version__
from spdsl.cli.files import Given, cannot_write
from spdsl.cli.options import Value
from spdsl.cli.stages import Wish, checked_pattern
from spdsl.diagnostics import error

if TYPE_CHECKING:
    from spdsl.semantics.nodes import BoundPattern

MANIFEST = "manifest.json"
LOADER = "loader.py"
FORMAT = 2


def head_of(name: str, text: str, pattern: BoundPattern, wish: Wish) -> dict[str, Any]:
    """What the manifest of every folder begins with: versions, the pattern ``name`` in the file ``text``, and sizes."""
    import triton

    own = {key: value for key, value in asdict(wish).items() if key not in ("parameters", "shape", "tiles")}
    return {
        "format": FORMAT,
        "spdsl": __version__,
        "triton": triton.__version__,
        "pattern": name,
        "text": text,
        "parameters": {key: list(value) if isinstance(value, tuple) else value for key, value in pattern.parameters},
        **own,
    }


def sealed_manifest(manifest: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """The manifest with the hashes of all files, to which it is added."""
    found = manifest | {"files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}}
    files[MANIFEST] = (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode()
    return found


def text_file(given: Given) -> tuple[str, Given]:
    """The file of the pattern's text, and what is read of it: kernels and plans tell the lines of the text, so that the
    loader must read the same.  A text that uses others of the user's is written out."""
    name = Path(given.name).name if given.name.endswith(".spat") else "pattern.spat"
    if given.path is not None and re.search(r"^\s*use\b", given.text, re.MULTILINE):
        checked = checked_pattern(given)
        return name, replace(given, name=name, text=checked.text, pattern=checked.name, path=None)
    return name, replace(given, name=name, path=None)


def loader_of(text: str, own: Given, parameters: Mapping[str, Value], layer: int | None) -> str:
    """A program that makes attention with the kernels of its folder."""
    return f'''"""Attention with the kernels of this folder, which are not compiled again.

    from loader import attention
    out = attention(q, k, v)
"""

import os
from pathlib import Path

HERE = Path(__file__).resolve().parent
before = os.environ.get("SPDSL_CACHE_PATH")
os.environ["SPDSL_CACHE_PATH"] = str(HERE) if not before else os.pathsep.join([str(HERE), before])

import spdsl  # noqa: E402  # it reads the path above
from spdsl.loading import packed  # noqa: E402

attention = spdsl.compile(packed(HERE / {text!r}, {own.pattern!r}), layer={layer!r}, **{dict(parameters)!r})
'''


def refuse_other_folder(output: Path) -> None:
    """Refuse to replace what `spdsl compile` did not write.  Raises `SpatError` (SP614)."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise error("SP614", f"`{output}` is not a folder", help="Name a folder that is new, or was written before.")
    if not output.is_dir() or not any(output.iterdir()):
        return
    try:
        known = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        names = {MANIFEST, *known["files"]}
        tops = {name.partition("/")[0] for name in names}
        ours = known["format"] <= FORMAT and {each.name for each in output.iterdir()} <= tops
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise error(
            "SP614",
            f"the folder `{output}` holds files that `spdsl compile` did not write",
            help="Name a folder that is new, or was written before.",
        )


def write_folder(output: Path, files: dict[str, bytes]) -> None:
    """Write files by name, all or none, in the place of those of an earlier folder.

    Raises:
        SpatError: it cannot be written (SP605).
    """
    temporary = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
        for name, content in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o644)  # others may read the folder, but kernels that they can write are not run
        for each in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
            each.chmod(0o755)
        if output.exists():
            # A folder cannot be replaced in one step; the old one steps aside first.
            old = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.old."))
            output.rename(old / "was")
            temporary.rename(output)
            shutil.rmtree(old)
        else:
            temporary.rename(output)
    except OSError as refused:
        raise cannot_write(output, refused) from None
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
