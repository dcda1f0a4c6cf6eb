"""Tensors for `run` and `view`: read from .npz, .npy and .pt files, or made up from what a pattern declares."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import typer
from torch import Tensor

from spdsl.cli.options import Value
from spdsl.cli.output import note
from spdsl.diagnostics import error
from spdsl.samples import Sizes, sample_inputs

if TYPE_CHECKING:
    from spdsl.api import Pattern

MANY = 1 << 22
"""Floats of an input of which one stands for all where only counts are asked for."""

ENDINGS = (".npz", ".npy", ".pt")


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
    most: int | None = None,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The declared inputs, and the names of those made up; in these one number may stand for more than ``most``.

    They come from ``--input NAME=FILE`` first, then from ``file`` by name; `sample_inputs` makes up what is missing.

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
    tables = sample_inputs(pattern.checked, parameters, sizes, layer=layer, seed=seed, known=read, most=most)
    return tables, tuple(name for name in tables if name not in read)


def shorter_inputs(
    pattern: Pattern,
    parameters: Mapping[str, Value],
    inputs: Mapping[str, Tensor],
    generated: Sequence[str],
    sizes: Sizes,
    layer: int | None,
    seed: int,
) -> dict[str, Tensor]:
    """The inputs of a shorter call: those that were ``generated`` anew, the first entries of those given."""
    given = {name: each for name, each in inputs.items() if name not in generated}
    made = sample_inputs(pattern.checked, parameters, sizes, layer=layer, seed=seed, most=MANY)
    for name, whole in given.items():
        axes = range(whole.dim() - made[name].dim(), whole.dim())  # one of sequences may come first
        for axis, size in zip(axes, made[name].shape, strict=True):
            whole = whole.narrow(axis, 0, min(size, whole.shape[axis]))
        made[name] = whole
    return made


def queries_and_keys(path: Path) -> tuple[Tensor, Tensor]:
    """``q`` and ``k`` of a file, ``[1, heads, tokens, dim]``; there they may lack the first axis.

    Raises:
        SpatError: there are no such tensors (SP612), or they have other axes (SP340).
    """
    found = read_tensors(path)
    made = []
    for name in ("q", "k"):
        if name not in found:
            there = ", ".join(f"`{each}`" for each in found if each) or "one tensor without a name"
            raise error("SP612", f"`{path}` holds {there}, not `{name}`", help="Save `q` and `k` under these names.")
        each = found[name] if found[name].dim() == 4 else found[name][None]
        if each.dim() != 4 or each.shape[0] != 1 or not each.is_floating_point():
            shape = f"`{name}` of `{path}` is {found[name].dtype} {list(found[name].shape)}"
            raise error("SP340", shape, help="Save floats [heads, tokens, dim] of one sequence.")
        made.append(each)
    return made[0], made[1]


def length_of(pattern: Pattern, parameters: Mapping[str, Value], n: int | None, default: int, layer: int | None) -> int:
    """How many keys there are: ``n``, else as many as an unnamed grid of the pattern has places, else ``default``.

    Raises:
        SpatError: parameters that do not fit.
    """
    return n or fixed_length(pattern, parameters, layer) or default


def fixed_length(pattern: Pattern, parameters: Mapping[str, Value], layer: int | None) -> int | None:
    """How many tokens an unnamed grid of the pattern asks for, if it has one.

    Raises:
        SpatError: parameters that do not fit.
    """
    from spdsl.analysis.plan import grid_length
    from spdsl.semantics.bind import bind

    return grid_length(bind(pattern.checked, dict(parameters), layer=layer, heads=1, groups=1, head_dim=64))


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
