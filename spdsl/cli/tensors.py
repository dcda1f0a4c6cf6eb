"""Tensors for `run` and `view`: read from .npz, .npy and .pt files, or made up from what a pattern declares."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import typer
from torch import Tensor
from typing_extensions import assert_never

from spdsl.cli.options import Value
from spdsl.cli.output import note
from spdsl.diagnostics import error
from spdsl.semantics.nodes import BoundPattern, Const, Extent, Table, TableAxis

if TYPE_CHECKING:
    from spdsl.api import Pattern
    from spdsl.runtime.lines import Lines

ENDINGS = (".npz", ".npy", ".pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of a call."""

    batch: int
    heads: int
    groups: int
    nq: int
    n: int
    head_dim: int = 64


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a file; a file that holds one without a name gives it the name ``""``.

    Raises:
        SpatError: there is no such file (SP601), its ending is unknown (SP610) or its content is not that (SP611).
    """
    if path.suffix not in ENDINGS:
        raise error("SP610", f"`{path}` does not end in .npz, .npy or .pt", help="Save it with numpy or torch.")
    if not path.is_file():
        raise error("SP601", f"there is no file `{path}`", help="Check the path.")
    try:
        found = _read_torch(path) if path.suffix == ".pt" else _read_numpy(path)
    except (ValueError, TypeError, OSError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile) as refused:
        raise _not_tensors(path, str(refused)) from None
    except Exception as refused:  # noqa: BLE001 — pickle raises what it likes on a file that is not one
        raise _not_tensors(path, type(refused).__name__) from None
    return found


def _not_tensors(path: Path, reason: str) -> Exception:
    reason = (reason.strip().splitlines() or ["unknown reason"])[0].rstrip(".")[:200]
    return error("SP611", f"`{path}` cannot be read as tensors: {reason}", help="Save it with numpy or `torch.save`.")


def _read_torch(path: Path) -> dict[str, Tensor]:
    found = torch.load(path, map_location="cpu", weights_only=True)
    named = {"": found} if isinstance(found, Tensor) else found
    if not isinstance(named, Mapping) or not all(isinstance(each, Tensor) for each in named.values()):
        raise ValueError("it holds neither a tensor nor a dictionary of tensors")
    return {str(name): tensor for name, tensor in named.items()}


def _read_numpy(path: Path) -> dict[str, Tensor]:
    import numpy as np

    found = np.load(path, allow_pickle=False)
    if path.suffix == ".npy":
        return {"": torch.from_numpy(found)}
    with found:
        return {name: torch.from_numpy(found[name]) for name in found.files}


def make_inputs(
    pattern: Pattern,
    parameters: Mapping[str, Value],
    given: Sequence[str] | None,
    sizes: Sizes,
    *,
    layer: int | None,
    seed: int,
    file: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The declared inputs, and the names of those made up.

    They come from ``--input NAME=FILE`` first, then from ``file`` by name; what is still missing is random within its
    declared range: ids that rise every 64 tokens or so where a table is sorted, one true in ten, small numbers.

    Raises:
        SpatError: an input that the pattern does not have (SP301), or a file without it.
        typer.BadParameter: a word that is not NAME=FILE.
    """
    read = {name: tensor for name, tensor in (file or {}).items() if name in pattern.inputs}
    for word in given or ():
        name, equals, path = word.partition("=")
        if not equals:
            raise typer.BadParameter(f"`{word}` is not of the form NAME=FILE, for example `--input doc=ids.npz`")
        if name not in pattern.inputs:
            has = ", ".join(f"`{each}`" for each in pattern.inputs) or "none"
            raise error("SP301", f"`{pattern.name}` has no input `{name}`", help=f"Its inputs: {has}.")
        read[name] = _pick(read_tensors(Path(path)), name, path)
    bound = _bound(pattern, parameters, layer, sizes)
    generator = torch.Generator().manual_seed(seed)
    tables: dict[str, Tensor] = {}
    made = []
    for table in sorted(bound.tables, key=lambda each: not each.sorted):
        # Sorted tables come first: axes by them have as many members as their last value says.
        tables[table.name] = read[table.name] if table.name in read else _random(table, bound, tables, sizes, generator)
        made += [table.name] if table.name not in read else []
    return {name: tables[name] for name in pattern.inputs}, tuple(name for name in pattern.inputs if name in made)


def shaped(sizes: Sizes, value_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors q, k and v of which only shapes and types matter: one element stands for all."""

    def like(count: int, length: int, dim: int) -> Tensor:
        return torch.zeros((), dtype=dtype).expand(sizes.batch, count, length, dim)

    q, k = like(sizes.heads, sizes.nq, sizes.head_dim), like(sizes.groups, sizes.n, sizes.head_dim)
    return q, k, like(sizes.groups, sizes.n, value_dim)


def drawn(sizes: Sizes, value_dim: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random tensors q, k and v, for patterns that select by them."""
    generator = torch.Generator().manual_seed(seed)

    def like(count: int, length: int, dim: int) -> Tensor:
        return torch.randn(sizes.batch, count, length, dim, generator=generator).to(dtype)

    q, k = like(sizes.heads, sizes.nq, sizes.head_dim), like(sizes.groups, sizes.n, sizes.head_dim)
    return q, k, like(sizes.groups, sizes.n, value_dim)


def note_generated(names: tuple[str, ...]) -> None:
    """Tell the user which inputs were made up."""
    for name in names:
        random = f"`{name}` is random: what stages choose depends on it"
        note(random if name in ("q", "k") else f"the input `{name}` is made up; give it with `--input {name}=FILE`")


def _pick(found: Mapping[str, Tensor], name: str, path: str) -> Tensor:
    if name in found:
        return found[name]
    if len(found) == 1:
        return next(iter(found.values()))
    raise error("SP612", f"`{path}` holds {', '.join(found) or 'nothing'}, not `{name}`", help=f"Name one `{name}`.")


def _bound(pattern: Pattern, parameters: Mapping[str, Value], layer: int | None, sizes: Sizes) -> BoundPattern:
    from spdsl.semantics.bind import bind

    return bind(
        pattern.checked,
        dict(parameters),
        layer=layer,
        heads=sizes.heads,
        groups=sizes.groups,
        head_dim=sizes.head_dim,
    )


def _random(
    table: Table, bound: BoundPattern, known: Mapping[str, Tensor], sizes: Sizes, generator: torch.Generator
) -> Tensor:
    shape = [_extent(axis, bound, known, sizes) for axis in table.axes]
    low, high = (table.bounds.low, table.bounds.high) if table.bounds else (None, None)
    if table.dtype == "bool":
        return torch.rand(shape, generator=generator) < 0.1
    if table.dtype == "float":
        drawn = torch.rand(shape, generator=generator)
        start = float(low) if low is not None else 0.0
        stop = float(high) if high is not None else start + 1.0
        return start + drawn * (stop - start)
    start = int(low) if low is not None else 0
    if table.sorted and shape:
        ids = start + (torch.rand(shape, generator=generator) < 1 / 64).long().cumsum(-1)
        return ids.clamp(max=int(high)) if high is not None else ids
    stop = int(high) if high is not None else max(start, sizes.n // 4)
    return torch.randint(start, stop + 1, shape, generator=generator)


def _extent(axis: TableAxis, bound: BoundPattern, known: Mapping[str, Tensor], sizes: Sizes) -> int:
    match axis.kind:
        case "token":
            return sizes.n
        case "q":
            return sizes.nq
        case "h":
            return sizes.heads
        case "g":
            return sizes.groups
        case "b":
            return sizes.batch
        case "axis":
            return _lines(bound, known, sizes).size(axis.label)
        case "free":
            return _free(axis.label, bound, known, sizes)
        case "own":
            size = axis.size
        case _:
            assert_never(axis.kind)
    match size:
        case Const(value=value):
            return int(value)
        case Extent(name="nq"):
            return sizes.nq
        case _:
            return sizes.n


def _lines(bound: BoundPattern, known: Mapping[str, Tensor], sizes: Sizes) -> Lines:
    from spdsl.runtime.lines import Lines
    from spdsl.runtime.operator import with_batch

    return Lines(
        pattern=bound,
        tables={table.name: with_batch(table, known[table.name]) for table in bound.tables if table.name in known},
        batch=sizes.batch,
        nq=sizes.nq,
        n=sizes.n,
        q_start=sizes.n - sizes.nq,
        device=torch.device("cpu"),
    )


def _free(label: str, bound: BoundPattern, known: Mapping[str, Tensor], sizes: Sizes) -> int:
    """The size of a free axis: of a tensor that is there, as declared, or like the features of heads."""
    places = [(table, place) for table in bound.tables for place, axis in enumerate(table.axes) if axis.label == label]
    for table, place in places:
        if table.name in known:
            return known[table.name].shape[place - len(table.axes)]
    for table, place in places:
        match table.axes[place].size:
            case Const(value=value):
                return int(value)
            case _:
                pass
    return sizes.head_dim
