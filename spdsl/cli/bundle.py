"""From a pattern to a folder of kernels: sources, binaries and a manifest, all or nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spdsl import __version__
from spdsl.cache.entries import MANIFEST as ENTRY
from spdsl.cache.results import RESULTS, sealed
from spdsl.cache.store import store
from spdsl.cli.files import cannot_write, read
from spdsl.cli.options import fit_tuples
from spdsl.cli.progress import Watch
from spdsl.cli.stages import Wish, bound_pattern, checked_pattern, made_plan
from spdsl.cli.tree import record
from spdsl.diagnostics import error

if TYPE_CHECKING:
    from spdsl.analysis.plans import Plan
    from spdsl.codegen.aot import Binary
    from spdsl.semantics.nodes import CheckedPattern

MANIFEST = "manifest.json"
LOADER = "loader.py"
FORMAT = 2
SHARED_BYTES = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
"""What one program may have: NVIDIA's limits for compute capability 8.0, 9.0 and 10.0, and AMD's LDS."""


def write_bundle(
    word: str,
    wishes: Sequence[Wish],
    output: Path,
    *,
    gpu: str | None = None,
    lengths: tuple[int, int] | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Compile the pattern that ``word`` names for every wish, write ``output``, and return its manifest.

    With ``lengths`` (of queries and keys) kernels take the tiles that the model chooses for them on ``gpu``.  The
    folder is also a cache that is only read, so that processes need not compile.  It appears when everything has been
    compiled; one that exists is replaced if it is empty or was written by this function before.

    Raises:
        SpatError: the pattern is wrong, triton is not installed (SP505), the folder holds something else (SP614), or it
            cannot be written (SP605).
    """
    pattern = checked_pattern(read(word))
    bound = bound_pattern(pattern, wishes[0])
    _refuse_other_folder(output)
    try:
        import triton
    except ImportError:
        raise error("SP505", "kernels are compiled by triton, which is not installed", help="Install triton.") from None
    files: dict[str, bytes] = {f"{pattern.name}.spat": pattern.text.encode()}
    results: list[list[Any]] = []
    if lengths is not None:
        wishes = [_with_choice(pattern, wish, gpu, lengths, results) for wish in wishes]
    with store().watched() as made:
        kernels = []
        for number, wish in enumerate(wishes):
            if watch is not None:
                watch(f"kernels for {wish.target}, {wish.shape}", number, len(wishes))
            kernels += _compile(pattern, wish, files)
    files |= {
        f"entries/{entry.key[:2]}/{entry.key}/{name}": entry.path(name).read_bytes()
        for entry in made.values()
        if entry.kind == "kernel"
        for name in (*entry.files, ENTRY)
    }
    files[RESULTS] = sealed(results)
    files[LOADER] = _loader(pattern, wishes[0]).encode()
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "spdsl": __version__,
        "triton": triton.__version__,
        "pattern": pattern.name,
        "text": f"{pattern.name}.spat",
        "parameters": {name: list(value) if isinstance(value, tuple) else value for name, value in bound.parameters},
        **{name: value for name, value in asdict(wishes[0]).items() if name not in ("parameters", "shape", "tiles")},
        "tiles": {wish.shape: {kind: asdict(tiles) for kind, tiles in wish.tiles} for wish in wishes},
        "inputs": [record(table) for table in bound.tables],
        "kernels": kernels,
    }
    manifest["files"] = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    files[MANIFEST] = (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()
    _write(output, files)
    return manifest


def _compile(pattern: CheckedPattern, wish: Wish, files: dict[str, bytes]) -> list[dict[str, Any]]:
    """Add the files of one shape class to ``files`` and describe its kernels."""
    chosen = made_plan(pattern, wish)
    plan = chosen.plan
    # A tile of queries alone, before triton spends minutes on kernels that cannot fit.
    width = 1 << (max(wish.head_dim, wish.value_dim) - 1).bit_length()
    _refuse_too_large("forward", plan.forward.block_q * width * (4 if wish.dtype == "fp32" else 2), wish)
    return [each for part in plan.every for each in _compile_part(part, wish, chosen.variables, files)]


def _compile_part(
    plan: Plan, wish: Wish, variables: Mapping[str, int], files: dict[str, bytes]
) -> list[dict[str, Any]]:
    """As `_compile`, for one of the sets of a union."""
    from spdsl.codegen.aot import FUSED, compile_kernels
    from spdsl.codegen.lower import lower

    source, binaries = compile_kernels(plan, wish.target)
    if plan.fused is not None:
        binaries += compile_kernels(plan, wish.target, FUSED)[1]
    for each in binaries:
        _refuse_too_large(each.name, each.shared, wish)
    source_file = f"{source.name}.{wish.shape}.py"
    files[source_file] = source.text.encode()
    files |= {_text_file(each, wish): each.source.text.encode() for each in binaries if each.source is not source}
    kernels_by_name = {kernel.name: kernel for kernel in lower(plan).kernels}
    kernels = []
    for each in binaries:
        binary_file = f"{source.name}.{wish.shape}.{each.name}.{each.extension}"
        files[binary_file] = each.binary
        kernels.append(
            {
                "name": each.name,
                "shape": wish.shape,
                "part": plan.place,
                "source": source_file if each.source is source else _text_file(each, wish),
                "binary": binary_file,
                "entry": each.entry,
                "warps": each.warps,
                "stages": each.stages,
                "rows_per_program": kernels_by_name[each.name].block,
                "residue_classes": kernels_by_name[each.name].classes or 1,
                # Where long rows are split the grid is flat, and every part has so many numbers of its own.
                "numbers_per_part": dict(kernels_by_name[each.name].parts),
                "shared_bytes": each.shared,
                "registers": each.registers,
                "spills": each.spills,
                "arguments": [f"{name}: {kind}" for name, kind in each.signature],
                # The values given, of those parameters that are arguments.
                "run_time_parameters": {
                    name: value for name, value in variables.items() if name in dict(each.signature)
                },
            }
        )
    return kernels


def _with_choice(
    pattern: CheckedPattern, wish: Wish, gpu: str | None, lengths: tuple[int, int], results: list[list[Any]]
) -> Wish:
    """The wish with the tiles that the model chooses; what it chose is added to ``results``, where calls find it."""
    from spdsl.choices import Situation, by_model, record_of
    from spdsl.costs import device_for
    from spdsl.pipeline import bound, key_of, opened, refuse_stages
    from spdsl.runtime.requests import rounded_up

    whole = key_of(pattern, fit_tuples(pattern, wish.parameters), wish.layer, None, False)
    refuse_stages(whole)
    key, values = opened(whole)
    types = {"float": "float32", "int": "int32", "bool": "bool"}
    device = device_for(wish.target, gpu)
    situation = Situation(
        key=key,
        near=tuple(map(rounded_up, values)),
        dtype=wish.dtype,  # type: ignore[arg-type]  # the command has checked it
        heads=wish.heads,
        groups=wish.groups,
        head_dim=wish.head_dim,
        value_dim=wish.value_dim,
        shape=wish.shape,  # type: ignore[arg-type]  # the command has checked it
        tables=tuple(types[each.dtype] for each in bound(key, wish.heads, wish.groups, wish.head_dim).tables),
        lengths=(rounded_up(lengths[0]), rounded_up(lengths[1])),
        gpu=device.name,
        target=wish.target,
    )
    found = by_model(situation, device)
    if found:
        results.append(["tuning", situation.identity, {"tiles": record_of(found), "gpu": device.name, "by": "model"}])
    return replace(wish, tiles=found)


def _loader(pattern: CheckedPattern, wish: Wish) -> str:
    """A program that makes attention with the kernels of its folder."""
    given = fit_tuples(pattern, wish.parameters)
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

attention = spdsl.compile(HERE / "{pattern.name}.spat", layer={wish.layer!r}, **{given!r})
'''


def _text_file(kernel: Binary, wish: Wish) -> str:
    """The file of a kernel that does not stand in the one of all others."""
    return f"{kernel.source.name}.{wish.shape}.py"


def _refuse_too_large(kernel: str, shared: int, wish: Wish) -> None:
    most = SHARED_BYTES[wish.target]
    if shared > most:
        raise error(
            "SP504",
            f"the kernel `{kernel}` needs {shared:,} bytes of shared memory, but {wish.target} has {most:,}",
            help=f"Choose a head dim below {max(wish.head_dim, wish.value_dim)}, or bf16.",
        )


def _refuse_other_folder(output: Path) -> None:
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


def _write(output: Path, files: dict[str, bytes]) -> None:
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
