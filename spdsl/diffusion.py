"""Patterns in models of Hugging Face's diffusers: `spdsl.models.use(unet, "neighborhood_2d", extents=(64, 64), …)`.

Every attention of such a model has a *processor*, which projects, turns and normalises in a way of the model's own and
then calls torch's `scaled_dot_product_attention`.  Ours runs the one that is there and takes the place of that call
alone, so that it serves models which it does not know.  Models halve their grid from level to level: sizes of a
pattern's grid are divided where tokens are fewer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from spdsl.api import Attention, Pattern, compile
from spdsl.diagnostics import error
from spdsl.semantics.nodes import Param

_LEVELS = 8
"""How often a grid may have been halved."""


def use(
    model: Any, pattern: Pattern, settings: Mapping[str, Any], layers: Callable[[str, Any], bool] | None = None
) -> None:
    """Let a pattern be the self-attention of a diffusers model, in place.

    Attention over a text (fewer or more keys than queries) stays as it is.

    Args:
        model: a model whose attention modules have processors.
        pattern: the pattern.
        settings: its parameters, and settings of `spdsl.compile`; sizes of its grid are those of the largest level.
        layers: which attention modules, by name and module; all that are no cross attention by default.

    Raises:
        SpatError: a model without such modules, or a processor with weights of its own (SP642).
    """
    chosen = [(name, module) for name, module in modules(model) if not getattr(module, "is_cross_attention", False)]
    chosen = [(name, module) for name, module in chosen if layers is None or layers(name, module)]
    if not chosen:
        found = f"{type(model).__name__} has no self-attention" + ("" if layers is None else " that `layers` chooses")
        raise error("SP642", found, help="attention modules are those with a `processor`")
    attentions = Levels(pattern, settings)
    made = {name: _processor(name, module.processor, attentions) for name, module in chosen}
    for name, module in chosen:
        module.set_processor(made[name])


def restore(model: Any) -> None:
    """Give back the processors that were there before `use`."""
    for _, module in modules(model):
        if isinstance(module.processor, Processor):
            module.set_processor(module.processor.inner)


def modules(model: Any) -> Iterator[tuple[str, Any]]:
    """The attention modules of a model that take processors, by name."""
    for name, module in model.named_modules() if isinstance(model, torch.nn.Module) else ():
        if callable(getattr(module, "set_processor", None)) and callable(getattr(module, "processor", None)):
            yield name, module


class Levels:
    """A pattern for grids of several sizes."""

    def __init__(self, pattern: Pattern, settings: Mapping[str, Any]) -> None:
        self.pattern, self.settings = pattern, dict(settings)
        self._made = {0: compile(pattern, **settings)}

    def attention(self, tokens: int) -> Attention:
        """The attention of the level that has so many tokens.

        Raises:
            SpatError: there is no such level (SP642).
        """
        sizes = self._sizes(0)
        if not sizes or prod(sizes) == tokens:
            return self._made[0]
        for level in range(1, _LEVELS):
            if prod(self._sizes(level)) == tokens:
                if level not in self._made:
                    self._made[level] = compile(self.pattern, **self._settings(level))
                return self._made[level]
        shown = " × ".join(map(str, sizes))
        raise error(
            "SP642",
            f"an attention has {tokens} tokens, but the grid of `{self.pattern.name}` is {shown}, however often halved",
            help="give the sizes of what the first attention sees, in tokens; `layers` leaves out others",
        )

    def _sizes(self, level: int) -> list[int]:
        """The sizes of the unnamed grid of the pattern; empty if it has none."""
        given = self._settings(level)
        unnamed = [grid for grid in self.pattern.checked.grids if grid.name is None]
        sizes: list[int] = []
        for _, size in unnamed[0].coordinates if unnamed else ():
            if not isinstance(size, Param):
                return []
            value: Any = given.get(size.name, self.pattern.parameters[size.name])
            sizes.append(int(value if size.item is None else value[size.item]))
        return sizes

    def _settings(self, level: int) -> dict[str, Any]:
        """The settings, with the last two sizes of the grid halved so often."""
        found = dict(self.settings)
        for grid in self.pattern.checked.grids if level else ():
            for _, size in grid.coordinates[-2:] if grid.name is None else ():
                if not isinstance(size, Param):
                    continue
                value: Any = found.get(size.name, self.pattern.parameters[size.name])
                if size.item is None:
                    found[size.name] = _halved(value, level)
                else:
                    items = list(value)
                    items[size.item] = _halved(items[size.item], level)
                    found[size.name] = tuple(items)
        return found


def _halved(size: int, level: int) -> int:
    return -(-size // (1 << level))


# ---------------------------------------------------------------- what diffusers calls


class Processor:
    """Runs a processor of diffusers with a pattern in the place of torch's attention."""

    def __init__(self, name: str, inner: Any, attentions: Levels) -> None:
        self.name, self.inner, self.attentions = name, inner, attentions

    def __call__(self, *given: Any, **named: Any) -> Any:
        """As the processor that was there before.

        Raises:
            SpatError: it asks for what the pattern does not do, or does not call torch's attention (SP642).
        """
        found, seen = _run(self.inner, self.attentions, given, named)
        if not seen:
            raise error(
                "SP642",
                f"{type(self.inner).__name__} of `{self.name}` does not call torch's `scaled_dot_product_attention`",
                help='choose one that does: `model.set_attention_backend("native")`, or `AttnProcessor2_0`',
            )
        return found


def _processor(name: str, inner: Any, attentions: Levels) -> Processor:
    """The processor in the place of ``inner``; diffusers looks at its signature to know what it may be given."""
    if isinstance(inner, Processor):
        inner = inner.inner
    if isinstance(inner, torch.nn.Module):
        found = f"the processor of `{name}`, {type(inner).__name__}, has weights of its own"
        raise error("SP642", found, help="`layers` leaves out such attention")

    @functools.wraps(type(inner).__call__)
    def call(self: Processor, *given: Any, **named: Any) -> Any:
        return Processor.__call__(self, *given, **named)

    made: Processor = type("Processor", (Processor,), {"__call__": call})(name, inner, attentions)
    return made


@torch.compiler.disable(reason="torch's compiler does not follow modes into the methods of tensors")  # type: ignore[untyped-decorator]
def _run(inner: Any, attentions: Levels, given: Sequence[Any], named: Mapping[str, Any]) -> tuple[Any, bool]:
    """What a processor gives with a pattern for attention, and whether it asked for any."""
    with _Instead(attentions) as instead:
        return inner(*given, **named), instead.seen


class _Instead(TorchFunctionMode):
    """While this lasts, self-attention of torch is that of a pattern."""

    def __init__(self, attentions: Levels) -> None:
        super().__init__()
        self.attentions, self.seen = attentions, False

    def __torch_function__(
        self, function: Any, types: Any, given: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = named or {}
        if function is not torch.nn.functional.scaled_dot_product_attention:
            return function(*given, **named)
        self.seen = True
        values = dict(zip(_NAMES, given, strict=False)) | dict(named)
        if values["query"].shape[-2] != values["key"].shape[-2]:
            return function(*given, **named)
        return self._attend(**values)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        del enable_gqa  # heads say so
        if attn_mask is not None or is_causal:
            raise error("SP642", "the model gives a mask beside a pattern", help="put the mask into the pattern")
        if dropout_p:
            raise error("SP642", f"attention drops {dropout_p:g} of its weights here", help="set the dropout to 0")
        if scale is not None:
            query = query * (scale * query.shape[-1] ** 0.5)
        out = self.attentions.attention(query.shape[-2])(query, key, value)
        assert isinstance(out, Tensor), "no LSE was asked for"
        return out


_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
