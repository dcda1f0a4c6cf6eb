"""From a pattern to a folder of kernels: sources, binaries and a manifest, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spdsl.cache.entries import MANIFEST as ENTRY
from spdsl.cache.results import RESULTS, sealed
from spdsl.cache.store import store
from spdsl.cli.files import Given, read
from spdsl.cli.folder import LOADER, head_of, loader_of, refuse_other_folder, sealed_manifest, text_file, write_folder
from spdsl.cli.options import LENGTH, fit_tuples
from spdsl.cli.progress import Watch
from spdsl.cli.stages import Wish, bound_pattern, checked_pattern, made_plan
from spdsl.cli.tree import record
from spdsl.cli.whole_bundle import Calls
from spdsl.diagnostics import error

if TYPE_CHECKING:
    from spdsl.analysis.plans import Plan
    from spdsl.codegen.aot import Binary
    from spdsl.semantics.nodes import CheckedPattern


def write_bundle(
    word: str,
    wishes: Sequence[Wish],
    output: Path,
    *,
    gpu: str | None = None,
    lengths: Sequence[tuple[int, int]] = (),
    calls: Calls | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Compile the pattern that ``word`` names for every wish, write ``output``, and return its manifest.

    ``calls`` says more of those of a pattern with stages, which has one wish.

    With ``lengths`` (of queries and keys, several for a pattern with stages) kernels take the tiles that the model
    chooses for them on ``gpu``.  The folder is also a cache that is only read, so that processes need not compile.  It
    appears when everything has been compiled; one that exists is replaced if it is empty or was written by this
    function before.

    Raises:
        SpatError: the pattern is wrong, triton is not installed (SP505), the folder holds something else (SP614), or it
            cannot be written (SP605).
    """
    given = read(word)
    pattern = checked_pattern(given)
    bound = bound_pattern(pattern, wishes[0])
    refuse_other_folder(output)
    if find_spec("triton") is None:
        raise error("SP505", "kernels are compiled by triton, which is not installed", help="Install triton.")
    if pattern.graph is not None:
        return _whole(given, pattern, wishes, calls, output, gpu=gpu, lengths=lengths, watch=watch)
    if calls is not None or len(lengths) > 1:
        words = "all but one `-n`" if calls is None else calls.words
        raise error(
            "SP513",
            f"`{pattern.name}` selects nothing by queries and keys, so that its kernels do not depend on calls",
            pattern.span,
            help=f"leave out {words}",
        )
    text, own = text_file(given)
    pattern = checked_pattern(own)
    files: dict[str, bytes] = {text: own.text.encode()}
    results: list[list[Any]] = []
    if lengths:
        wishes = [_with_choice(pattern, wish, gpu, lengths[0], results) for wish in wishes]
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
    files[LOADER] = loader_of(text, own, fit_tuples(pattern, wishes[0].parameters), wishes[0].layer).encode()
    manifest: dict[str, Any] = {
        **head_of(pattern.name, text, bound, wishes[0]),
        "tiles": {wish.shape: {kind: asdict(tiles) for kind, tiles in wish.tiles} for wish in wishes},
        "inputs": [record(table) for table in bound.tables],
        "kernels": kernels,
    }
    found = sealed_manifest(manifest, files)
    write_folder(output, files)
    return found


def _whole(
    given: Given,
    pattern: CheckedPattern,
    wishes: Sequence[Wish],
    calls: Calls | None,
    output: Path,
    *,
    gpu: str | None,
    lengths: Sequence[tuple[int, int]],
    watch: Watch | None,
) -> dict[str, Any]:
    """The folder of a pattern with stages, whose shape follows from the lengths."""
    from spdsl.cli.tensors import length_of
    from spdsl.cli.whole_bundle import write_whole_bundle

    if [wish.shape for wish in wishes] != ["square"]:
        raise error(
            "SP513",
            f"kernels of whole calls of `{pattern.name}` follow from their lengths; places given as tensors, for each "
            "sequence, are not supported",
            pattern.span,
            help="leave out `--shape`, and say `-n` and `--nq`",
        )
    from spdsl.api import Pattern

    parameters = fit_tuples(pattern, wishes[0].parameters)
    n = length_of(Pattern(pattern), parameters, None, LENGTH, wishes[0].layer)
    return write_whole_bundle(
        given,
        wishes[0],
        calls or Calls(),
        output,
        lengths=lengths or [(n, n)],
        gpu=gpu,
        by_model=bool(lengths),
        watch=watch,
    )


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
    from spdsl.pipeline import bound, key_of, opened
    from spdsl.runtime.requests import rounded_up

    key, values = opened(key_of(pattern, fit_tuples(pattern, wish.parameters), wish.layer, None, False))
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


def _text_file(kernel: Binary, wish: Wish) -> str:
    """The file of a kernel that does not stand in the one of all others."""
    return f"{kernel.source.name}.{wish.shape}.py"


def _refuse_too_large(kernel: str, shared: int, wish: Wish) -> None:
    from spdsl.analysis.candidates import SHARED_BYTES

    most = SHARED_BYTES[wish.target]
    if shared > most:
        raise error(
            "SP504",
            f"the kernel `{kernel}` needs {shared:,} bytes of shared memory, but {wish.target} has {most:,}",
            help=f"Choose a head dim below {max(wish.head_dim, wish.value_dim)}, or bf16.",
        )
