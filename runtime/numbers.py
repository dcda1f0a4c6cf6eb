"""Which numbers of an absent GPU's tensors the host knows, and what it takes the others for.

From: a function of torch and its arguments.  To: its result.  What is made of positions, sizes and constants alone is
computed here, in memory of the host that is marked as the GPU's; what kernels or the caller fill has no memory.  Where
the host reads a number that only a run knows, it is *assumed*, and the place is noted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from spdsl.runtime.seen import Note, written_by

_META = torch.device("meta")
_CPU = torch.device("cpu")

_LARGE = 1 << 24
"""Numbers of a tensor from which on they are not computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What numbers that only a run knows are taken for; ``places`` are the functions that asked for one.

    Triton has other binaries for 1 and for multiples of 16, so that two assumptions tell what a number decides.
    """

    number: int
    places: set[str] = field(default_factory=set)


class Standing(TorchFunctionMode):
    """Lets tensors say that they are of the absent GPU ``device``, and makes them where they have to be."""

    def __init__(self, *, device: torch.device, assumed: Assumed, tell: Callable[[Note], None]) -> None:
        super().__init__()
        self._device, self._assumed, self._tell = device, assumed, tell
        # By the address of a storage, which is not used again as long as there is a reference.
        self._held: dict[int, StorageWeakRef] = {}
        self._lost: dict[int, StorageWeakRef] = {}

    def during(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with this mode."""

        def inside(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return inside

    @property
    def name(self) -> object:
        """What tells it apart from others that watch."""
        return id(self)

    def add(self, note: Note) -> None:
        """A kernel was launched: nothing is known of the numbers that it has written."""
        self._tell(note)
        for each in written_by(note):
            self._lose(each)

    def trust(self, value: object) -> None:
        """Something older depends on no tensor."""

    def _lose(self, tensor: Tensor) -> None:
        if not _is_meta(tensor):
            self._lost[_storage(tensor)] = StorageWeakRef(tensor.untyped_storage())

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What the function gives on the GPU."""
        del types
        named = dict(kwargs or {})
        if func is torch.device or func in _AS_THEY_ARE:
            return func(*args, **named)
        tensors = [each for each in tree_flatten((args, named))[0] if isinstance(each, Tensor)]
        unknown = any(self._is_unknown(each) for each in tensors)
        ours = unknown or any(self._is_held(each) for each in tensors)
        if func in _TOLD and ours:
            return _TOLD[func](args[0], self._device)
        asked = next((each for each in (*args, *named.values()) if _is_device(each)), None)
        if unknown:
            return self._without_numbers(func, args, named)
        named.pop("pin_memory", None)  # there is no driver that could
        if not ours and (asked is None or torch.device(asked).type != "cuda"):
            return func(*args, **named)
        return self._with_numbers(func, args, named, tensors, asked)

    # ------------------------------------------------------------ with numbers

    def _with_numbers(
        self, func: Any, args: tuple[Any, ...], named: dict[str, Any], tensors: list[Tensor], asked: Any
    ) -> Any:
        """Of tensors whose numbers are known, or of none."""
        to_gpu = asked is not None and torch.device(asked).type == "cuda"
        if to_gpu and not tensors and (func in _EMPTY or _is_short(named.get("dtype"), func)):
            return func(*_on(_META, args), **_on(_META, named))
        found = func(*_on(_CPU, args), **_on(_CPU, named))
        if func in _READS:
            return found
        leaves = func is Tensor.cpu or (asked is not None and not to_gpu)
        if isinstance(found, Tensor) and (leaves or to_gpu) and any(_storage(found) == _storage(x) for x in tensors):
            found = found.clone()  # a copy is in other memory
        return found if leaves else tree_map(self._taken, found)

    def _taken(self, value: Any) -> Any:
        """A result, as a tensor of the GPU."""
        if not isinstance(value, Tensor) or _is_meta(value):
            return value
        if value.numel() > _LARGE:
            return value.to(_META)
        self._held[_storage(value)] = StorageWeakRef(value.untyped_storage())
        return value

    # ------------------------------------------------------------ without

    def _without_numbers(self, func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Of tensors, one of which at least has none."""
        if func in _READS:
            self._assumed.places.add(_place())
            return self._assume(func, args[0])
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        changes = func is Tensor.__setitem__ or (name.endswith("_") and not name.endswith("__"))
        if changes and isinstance(first, Tensor) and not _is_meta(first):
            self._lose(first)
            return first
        if func is Tensor.__getitem__:
            return func(self._bare(first), self._index(args[1]))
        if func in _SIZED:
            self._assumed.places.add(_place())
            return _SIZED[func](*map(self._bare, args), **{n: self._bare(each) for n, each in named.items()})
        bare = [self._bare(each) for each in args]
        return func(*_on(_META, bare), **_on(_META, {n: self._bare(each) for n, each in named.items()}))

    def _assume(self, func: Any, tensor: Tensor) -> Any:
        value: Any = False if tensor.dtype == torch.bool else self._assumed.number
        value = float(value) if tensor.is_floating_point() else value
        if func is Tensor.tolist:
            return torch.full(tuple(tensor.shape), value, dtype=tensor.dtype).tolist()
        return bool(value) if func is Tensor.__bool__ else value

    def _index(self, index: Any) -> Any:
        """An index; torch takes the number of one without dimensions."""

        def one(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.dim():
                return self._bare(value)
            return 0 if self._is_unknown(value) else value

        return tuple(one(each) for each in index) if isinstance(index, tuple) else one(index)

    def _bare(self, value: Any) -> Any:
        """An argument, without numbers."""
        return tree_map(lambda each: each.to(_META) if isinstance(each, Tensor) else each, value)

    # ------------------------------------------------------------ whose it is

    def _is_unknown(self, tensor: Tensor) -> bool:
        return _is_meta(tensor) or _storage(tensor) in self._lost

    def _is_held(self, tensor: Tensor) -> bool:
        return _storage(tensor) in self._held


_is_meta: Callable[[Tensor], bool] = getattr(Tensor, "is_meta").__get__  # noqa: B009  # types know its value alone


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001  # torch has no public name


def _address(tensor: Tensor) -> int:
    """An address: memory begins at multiples of 16, and places in it lie where they do in other memory."""
    return (_storage(tensor) << 8) + int(tensor.storage_offset()) * tensor.element_size()


def _is_device(value: object) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu"))


def _on(device: torch.device, values: Any) -> Any:
    """Arguments that name this device in place of another."""
    if isinstance(values, Mapping):
        return {name: device if _is_device(each) else each for name, each in values.items()}
    return [device if _is_device(each) else each for each in values]


def _place() -> str:
    """The function of ours that is being carried out."""
    frame = sys._getframe(1)  # noqa: SLF001
    while frame.f_back is not None and (frame.f_code.co_filename == __file__ or "torch" in frame.f_globals["__name__"]):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"


def _asked(name: str) -> Any:
    """What a mode is told where a tensor is asked for an attribute."""
    return getattr(Tensor, name).__get__


_TOLD: Mapping[Any, Callable[[Tensor, torch.device], Any]] = {
    _asked("device"): lambda _, device: device,
    _asked("is_cuda"): lambda _, device: True,  # noqa: ARG005
    _asked("is_cpu"): lambda _, device: False,  # noqa: ARG005
    _asked("is_meta"): lambda _, device: False,  # noqa: ARG005
    Tensor.data_ptr: lambda tensor, _: _address(tensor),
    Tensor.get_device: lambda _, device: device.index,
}
"""What a tensor says of where it is."""

_AS_THEY_ARE = frozenset(map(_asked, ("shape", "dtype", "requires_grad", "grad_fn", "is_leaf", "ndim"))) | {
    Tensor.dim,
    Tensor.size,
    Tensor.stride,
    Tensor.numel,
    Tensor.element_size,
    Tensor.untyped_storage,
}
"""What does not depend on where a tensor is, and is asked most often."""

_READS = frozenset(
    {
        Tensor.tolist,
        Tensor.item,
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__float__,
        Tensor.__index__,
    }
)
"""What gives the host numbers."""


def _repeated(x: Tensor, repeats: Tensor | int | None = None, dim: int | None = None, **rest: Any) -> Tensor:
    """Each once, on average."""
    if not isinstance(repeats, Tensor):
        return torch.repeat_interleave(x, repeats, dim, **rest)  # type: ignore[arg-type]
    return torch.repeat_interleave(x, repeats, dim, output_size=repeats.numel())


def _unique(x: Tensor, *args: Any, return_counts: bool = False, return_inverse: bool = False, **rest: Any) -> Any:
    """All are different."""
    del args, rest
    more = [x.new_empty(x.shape, dtype=torch.int64)] if return_inverse else []
    more += [x.new_empty(x.numel(), dtype=torch.int64)] if return_counts else []
    return (x.flatten(), *more) if more else x.flatten()


def _counted(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """None is larger than what is known to come."""
    return x.new_empty(max(1, minlength), dtype=torch.int64 if weights is None else torch.float64)


_SIZED: Mapping[Any, Callable[..., Any]] = {
    torch.repeat_interleave: _repeated,
    Tensor.repeat_interleave: _repeated,
    torch.unique: _unique,
    Tensor.unique: _unique,
    torch.bincount: _counted,
    Tensor.bincount: _counted,
}
"""What makes tensors whose sizes are numbers of others; of `nonzero` torch itself takes all for true."""

_EMPTY = frozenset({torch.empty, torch.empty_strided})
"""What makes memory that something else fills."""

_FILLED = frozenset({torch.zeros, torch.ones, torch.full})
"""What makes memory that something else goes on with, where it holds floats."""


def _is_short(dtype: torch.dtype | None, func: Any) -> bool:
    """Whether a function makes results, outputs and gradients: places and sizes are ints, or numbers of 64 bits."""
    if dtype is None and func is torch.full:  # its type is that of the number
        return False
    floats = torch.get_default_dtype() if dtype is None else dtype
    return func in _FILLED and floats in (torch.float32, torch.float16, torch.bfloat16)
