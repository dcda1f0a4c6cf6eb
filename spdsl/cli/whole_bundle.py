"""From a pattern with stages to a folder of the kernels of whole calls: selections, lists, attention, results.

Which kernels these are the calls themselves tell (`spdsl.ahead`).  The folder also holds what calls look for before
they launch: plans, generated sources, the tiles that were chosen, and the modules that start kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spdsl.cache.entries import MANIFEST as ENTRY
from spdsl.cache.results import RESULTS, sealed
from spdsl.cache.store import store
from spdsl.cli.files import Given
from spdsl.cli.folder import LOADER, head_of, loader_of, sealed_manifest, text_file, write_folder
from spdsl.cli.options import fit_tuples
from spdsl.cli.progress import Watch
from spdsl.cli.stages import Wish, bound_pattern, checked_pattern
from spdsl.cli.tree import record

if TYPE_CHECKING:
    from spdsl.ahead import Ahead, Wanted
    from spdsl.cache.entries import Entry
    from spdsl.codegen.asked import AskedKernel

_KINDS = ("kernel", "launcher", "plan", "source")
"""Entries of the cache that a call looks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Calls of a pattern with stages, beside what a `Wish` says: ``given`` are words NAME=FILE, of whose tensors shapes
    and types count, ``floats`` the type of float inputs that are not given."""

    batch: int = 1
    backward: bool = True
    given: tuple[str, ...] = ()
    floats: str = "fp32"

    @property
    def words(self) -> str:
        """The options that ask for others than there are by default."""
        told = {
            "`--batch`": self.batch != 1,
            "`--no-backward`": not self.backward,
            "`--input`": bool(self.given),
            "`--input-dtype`": self.floats != "fp32",
        }
        return ", ".join(word for word, holds in told.items() if holds)


def write_whole_bundle(
    given: Given,
    wish: Wish,
    calls: Calls,
    output: Path,
    *,
    lengths: Sequence[tuple[int, int]],
    gpu: str | None,
    by_model: bool,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Compile what such calls launch on a GPU, write ``output``, and return its manifest.

    ``lengths`` are those of queries and keys, of one kind of calls each; ``by_model`` lets the model choose
    the tiles of softmaxes for it, where nothing was measured.

    Raises:
        SpatError: the pattern is wrong, calls like these would fail, what they launch cannot be told (SP519), or the
            folder cannot be written (SP605).
    """
    from spdsl.ahead import Wanted, ahead
    from spdsl.api import Attention, Pattern
    from spdsl.cli.tensors import make_inputs
    from spdsl.codegen.launchers import build_launchers
    from spdsl.costs import device_for
    from spdsl.runtime.calls import DTYPES
    from spdsl.samples import Sizes

    text, own = text_file(given)
    pattern = Pattern(checked_pattern(own))
    bound = bound_pattern(pattern.checked, wish)
    parameters = fit_tuples(pattern.checked, wish.parameters)
    device = device_for(wish.target, gpu)
    wanted = []
    for nq, n in lengths:
        sizes = Sizes(batch=calls.batch, heads=wish.heads, groups=wish.groups, nq=nq, n=n, head_dim=wish.head_dim)
        inputs, made_up = make_inputs(pattern, parameters, calls.given, sizes, layer=wish.layer, seed=0)
        floats = {name for name in made_up if inputs[name].is_floating_point()}
        one = Wanted(
            attention=Attention(pattern, parameters, layer=wish.layer),
            sizes=sizes,
            value_dim=wish.value_dim,
            dtype=DTYPES[wish.dtype],
            inputs={name: each.to(DTYPES[calls.floats]) if name in floats else each for name, each in inputs.items()},
            backward=calls.backward,
            told="" if len(lengths) == 1 else f" of {n} keys",
        )
        wanted.append(one)
    with store().watched() as entries:
        found = ahead(wanted, device, by_model=by_model, watch=watch)
        launchers = build_launchers([each.made for _, each in found.kernels])
    files = {text: own.text.encode(), RESULTS: sealed([each.record for each in found.choices])}
    files |= _of_cache(entries.values())
    files[LOADER] = loader_of(text, own, parameters, wish.layer).encode()
    manifest: dict[str, Any] = {
        **head_of(pattern.name, text, bound, wish),
        "gpu": device.name,
        "calls": [_described(each) for each in wanted],
        "inputs": [record(each) for each in pattern.checked.tables],
        "choices": [
            {"softmax": _softmax(each.situation.key), "by": each.by, **each.record[2]["tiles"]}
            for each in found.choices
        ],
        # Functions of the run time that read a number which only a run knows.  Kernels are here for what was assumed:
        # one that is a multiple of 16, for which Triton has binaries of their own, and one that is not.
        "decided_by_data": list(found.decided),
        "launchers": launchers,
        "kernels": _kernels(found, wish, files),
    }
    sealed_with = sealed_manifest(manifest, files)
    write_folder(output, files)
    return sealed_with


def _of_cache(entries: Sequence[Entry] | Any) -> dict[str, bytes]:
    """The files of entries, where a cache that is only read has them."""
    return {
        f"entries/{entry.key[:2]}/{entry.key}/{name}": entry.path(name).read_bytes()
        for entry in entries
        if entry.kind in _KINDS
        for name in (*entry.files, ENTRY)
    }


def _kernels(found: Ahead, wish: Wish, files: dict[str, bytes]) -> list[dict[str, Any]]:
    """What the manifest says of each kernel, whose files are added."""
    from spdsl.codegen.aot import resources

    described = []
    for key, each in found.kernels:
        assert each.made is not None
        source = Path(each.source.fn.fn.__code__.co_filename)
        extension = "hsaco" if wish.target.startswith("gfx") else "cubin"
        made, binary = each.made.metadata, f"{each.source.name}.{key[:12]}.{extension}"
        files[binary] = each.made.asm[extension]
        files[source.name] = source.read_bytes()
        registers, spills = resources(each.made, wish.target)
        described.append(
            {
                "name": each.source.name,
                "calls": each.calls,
                "source": source.name,
                "binary": binary,
                "entry": made.name,
                "key": key,
                "warps": made.num_warps,
                "stages": made.num_stages,
                "shared_bytes": made.shared,
                "registers": registers,
                "spills": spills,
                "arguments": _arguments(each),
                "constants": _constants(each),
            }
        )
    return described


def _arguments(kernel: AskedKernel) -> list[str]:
    """The arguments of a launch with their types; ``/16`` says that the number, or the address, is a multiple of 16."""
    names = kernel.source.fn.arg_names
    even = {path[0] for path, given in kernel.source.attrs.items() if ["tt.divisibility", 16] in given}
    signature = kernel.source.signature.items()
    return [f"{name}: {kind}{'/16' if names.index(name) in even else ''}" for name, kind in signature]


def _constants(kernel: AskedKernel) -> dict[str, Any]:
    names = kernel.source.fn.arg_names
    return {names[path[0]]: value for path, value in kernel.source.constants.items() if len(path) == 1}


def _described(wanted: Wanted) -> dict[str, Any]:
    sizes = wanted.sizes
    inputs = {
        name: {"dtype": str(each.dtype).removeprefix("torch."), "shape": list(each.shape)}
        for name, each in wanted.inputs.items()
    }
    told = {"batch": sizes.batch, "queries": sizes.nq, "keys": sizes.n}
    return {**told, "backward": wanted.backward, "inputs": inputs}


def _softmax(key: str) -> str:
    import json

    return str(json.loads(key).get("softmax", ""))
