"""Patterns in models of Hugging Face's transformers: `spdsl.models.use(model, "streaming", window=256, sinks=4)`;
those of diffusers are told apart and go to `spdsl.diffusion`.

transformers asks an *attention function* for every layer, and, once for each call of a model, a *mask function* what
its 2-d padding mask and cache mean.  Ours says where queries and keys stand (`places`), so that no mask of pairs is
ever made: positions of the pattern count a sequence's own tokens, wherever padding puts them.  See "Attention
Interface" in the documentation of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spdsl import diffusion
from spdsl.api import Attention, Pattern, compile, load
from spdsl.diagnostics import SpatError, error
from spdsl.grammar import nodes
from spdsl.grammar.parse import parse

__all__ = ["restore", "use"]

NAME = "spdsl"
"""What transformers calls our functions; ``model.set_attn_implementation("sdpa")`` goes back to its own."""


def use(
    model: Any,
    pattern: str | Path | Pattern | Attention | Sequence[str | Path | Pattern | Attention],
    /,
    *,
    backend: str | None = None,
    deterministic: bool | None = None,
    layers: Callable[[str, Any], bool] | None = None,
    **parameters: Any,
) -> None:
    """Let a pattern be the attention of a model of transformers or diffusers, in place; weights stay as they are.

    The pattern takes the place of the model's own mask, its sliding windows too, and is used in training, prefill and
    generation with a cache.  Padding on either side is told by ``attention_mask`` as usual.  Inputs of the pattern are
    keyword arguments of the model: ``model(ids, doc=doc)``.  An input that is named like an export of a layer before
    it comes from the nearest such layer, so that layers read what others have chosen; sets travel as lists.

    Args:
        model: any model whose attention goes through transformers' `AttentionInterface`, or a model of diffusers, whose
            self-attention is exchanged.
        pattern: as for `spdsl.compile`, or a sequence with one for each layer.  A pattern that names `layer` is given
            the number of each.
        backend: as for `spdsl.compile`.
        deterministic: as for `spdsl.compile`.
        layers: of a diffusers model, which attention modules, by name and module: ``lambda name, _: "down" in name``.
        parameters: the pattern's parameters by name; none where `Attention`s are given.

    Raises:
        SpatError: no transformers (SP641), a model that does not take attention functions or has another number of
            layers (SP642), and what `spdsl.compile` raises.
    """
    settings = {"backend": backend, "deterministic": deterministic, **parameters}
    if next(diffusion.modules(model), None) is not None:
        if isinstance(pattern, Attention) or (isinstance(pattern, Sequence) and not isinstance(pattern, str)):
            help = "give a pattern and its parameters; `layers` chooses among layers"
            raise error("SP642", "a diffusers model takes one pattern, of which each level has its own grid", help=help)
        diffusion.use(model, pattern if isinstance(pattern, Pattern) else load(pattern), settings, layers)
        return
    if layers is not None:
        found = "`layers` is for models of diffusers"
        raise error("SP642", found, help="give a sequence with a pattern for each layer")
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError:
        help = "`pip install transformers`; without it, `spdsl.nn.SelfAttention` is a module of torch alone"
        raise error("SP641", "transformers is not installed", help=help) from None
    modules = list(_layers(model))
    count = 1 + max((number for number, _ in modules), default=-1)
    if not hasattr(model, "set_attn_implementation") or not count:
        found = f"{type(model).__name__} has no layers whose attention transformers would ask for"
        raise error("SP642", found, help="give a `PreTrainedModel`; `spdsl.nn.SelfAttention` is a module to build with")
    several = pattern if isinstance(pattern, Sequence) and not isinstance(pattern, str) else [pattern] * count
    if len(several) != count:
        found = f"{len(several)} patterns for the {count} layers of {type(model).__name__}"
        raise error("SP642", found, help="give one for all layers, or one for each")
    # All are made before the first is put into place, so that a mistake leaves the model as it was.
    made: dict[object, Attention] = {}
    chosen = [_attention(each, number, settings, made) for number, each in enumerate(several)]
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, places)
    before = model.config._attn_implementation  # noqa: SLF001  # transformers has no public name for it
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:  # noqa: SLF001  # transformers warns, and has no other answer
        found = f"{type(model).__name__} does not take attention functions"
        raise error("SP642", found, help="transformers lists what does under `AttentionInterface`")
    relay = Relay.between(chosen)
    for number, module in modules:
        module.spdsl_attention = chosen[number]
        module.spdsl_relay = relay
    if before != NAME:
        model.spdsl_before = before


def restore(model: Any) -> None:
    """Give a model the attention back that it had before `use`."""
    diffusion.restore(model)
    if hasattr(model, "spdsl_before"):
        model.set_attn_implementation(model.spdsl_before)
        del model.spdsl_before
        for _, module in _layers(model):
            del module.spdsl_attention, module.spdsl_relay


@dataclass(slots=True, kw_only=True)
class Relay:
    """What the layers of a model hand on.

    Args:
        sources: for each layer the inputs that it reads from earlier ones, and which these are.
        held: what those have exported in the latest call, by layer.  It stays until the next one, so that layers that
            are run again for their gradients find it.
    """

    sources: dict[int, dict[str, int]]
    held: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def between(cls, attentions: Sequence[Attention]) -> Relay:
        """Inputs are read from the nearest earlier layer that exports something of their name."""
        exporters: dict[str, int] = {}
        sources = {}
        for layer, attention in enumerate(attentions):
            pattern = attention.pattern
            sources[layer] = {name: exporters[name] for name in pattern.inputs if name in exporters}
            exporters |= dict.fromkeys(pattern.exports, layer)
        return cls(sources=sources)

    def inputs(self, layer: int) -> dict[str, Tensor]:
        """What a layer reads from earlier ones, by name."""
        return {name: self.held[source][name] for name, source in self.sources[layer].items()}

    def is_read(self, layer: int) -> bool:
        """Whether a later layer reads what this one exports."""
        return any(layer in sources.values() for sources in self.sources.values())


def _layers(model: Any) -> Iterator[tuple[int, Any]]:
    """The modules of a model that know the number of their layer."""
    for module in model.modules() if isinstance(model, torch.nn.Module) else ():
        number = getattr(module, "layer_idx", None)
        if isinstance(number, int):
            yield number, module


def _attention(given: object, layer: int, settings: dict[str, Any], made: dict[object, Attention]) -> Attention:
    """The attention of one layer; layers that ask for the same share it."""
    if isinstance(given, Attention):
        if any(value is not None for value in settings.values()):
            found = f"{given!r} has its parameters already"
            raise error("SP642", found, help="leave out parameters, or give the pattern")
        return given
    pattern = given if isinstance(given, Pattern) else load(given)  # type: ignore[arg-type]  # refused there
    number = layer if _names_layer(pattern) else None
    key = (pattern.name, pattern.to_spat(), number)
    if key not in made:
        made[key] = compile(pattern, layer=number, **settings)
    return made[key]


def _names_layer(pattern: Pattern) -> bool:
    stack: list[object] = [parse(pattern.to_spat())]
    while stack:
        node = stack.pop()
        if isinstance(node, nodes.Name) and node.id == "layer":
            return True
        if isinstance(node, tuple):
            stack.extend(node)
        elif isinstance(node, nodes.Node):
            names = (name for kind in type(node).__mro__ for name in getattr(kind, "__slots__", ()))
            stack.extend(getattr(node, name) for name in names if name not in ("span", "source"))
    return False


# ---------------------------------------------------------------- what transformers calls


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_ids: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer, as transformers calls it.

    Args:
        module: the layer's attention.
        query: ``[batch, heads, nq, d]``.
        key: ``[batch, groups, n, d]``.
        value: ``[batch, groups, n, d]``.
        attention_mask: what `places` made of the call.
        scaling: the factor of the logits.
        dropout: must be 0.
        position_ids: ``[batch or 1, nq]``; must count on.
        softcap: the model's own soft cap.
        s_aux: the model's own sinks.
        given: inputs of the pattern, among others.

    Returns:
        ``[batch, nq, heads, d]``, and no weights.

    Raises:
        SpatError: what the model asks for and the pattern does not do (SP642), and what the call itself raises.
    """
    attention = getattr(module, "spdsl_attention", None)
    if attention is None:
        raise error(
            "SP642", f"no pattern was chosen for {type(module).__name__}", help="call `spdsl.models.use(model, …)`"
        )
    if dropout:
        raise error("SP642", f"attention drops {dropout:g} of its weights here", help="set `attention_dropout=0.0`")
    if s_aux is not None:
        raise error(
            "SP642", "the model has sinks of its own", help="give the pattern `sink_logit` and an input for them"
        )
    if softcap is not None and attention.pattern.checked.attend.softcap is None:
        help = f"add `softcap {softcap:g}` to the pattern"
        raise error("SP642", f"the model caps its logits at {softcap:g}, the pattern does not", help=help)
    relay, layer = module.spdsl_relay, module.layer_idx
    inputs = relay.inputs(layer) | {name: given[name] for name in attention.pattern.inputs if name in given}
    if scaling is not None and attention.pattern.checked.attend.scale is None:
        own = query.shape[-1] ** -0.5
        query = query if abs(scaling - own) <= 1e-6 * own else query * (scaling / own)
    if attention_mask is None:
        if torch.compiler.is_compiling() and position_ids is not None and position_ids.shape[-1] > 1:
            # What `places` sees otherwise: several texts behind one another.
            torch._assert_async((position_ids.diff(dim=-1) == 1).all(), _PACKED)  # noqa: SLF001
        out = attention(query, key, value, **inputs)
        if relay.is_read(layer):
            with torch.no_grad():
                relay.held[layer] = attention.exports(query, key, value, compact=True, **inputs)
    else:
        if attention_mask.dtype != torch.int32:
            found = f"a mask of pairs, {list(attention_mask.shape)}, beside a pattern"
            raise error("SP642", found, help="put the mask into the pattern; padding is `[batch, tokens]`")
        if relay.sources[layer] or relay.is_read(layer):
            found = "layers that read what others have chosen, beside padding or a cache with room"
            raise error("SP642", found, help="give texts of one length, and `past_key_values=DynamicCache()`")
        first, start, length = attention_mask[:, 0, 0].unbind(1)
        out = attention(query, key, value, q_start=first, k_start=start, k_len=length, **inputs)
    assert isinstance(out, Tensor), "no LSE was asked for"
    return out.transpose(1, 2).contiguous(), None


_PACKED = "`position_ids` begin anew: several texts in one row"
_PACKED_HELP = (
    "use a pattern such as `documents`, and give it the number of each token's text: `model(ids, doc=numbers)`"
)


def places(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Tensor | None = None,
    device: torch.device | str | None = None,
    use_vmap: bool = False,
    **given: Any,
) -> Tensor | None:
    """Where queries and keys stand in each sequence, once for all layers.

    Args:
        batch_size: how many sequences there are.
        q_length: queries of each.
        kv_length: rows of the keys, with those that a cache has reserved.
        q_offset: how many tokens the cache holds.
        kv_offset: how many tokens the cache has dropped.
        mask_function: the model's own mask as a function of positions, which the pattern replaces.
        attention_mask: bool ``[batch, tokens]``, false for padding.
        device: of the result.
        use_vmap: whether something was added to the model's own mask.
        given: what other implementations use.

    Returns:
        int32 ``[batch, 1, 1, 3]``: position of the first query, row of the first key, number of keys; None where the
        queries are the last tokens and nothing is padded.  Generation makes it ahead of the model's call, and
        transformers passes on what has four axes as it is.

    Raises:
        SpatError: padding inside of a text, packed texts, a cache that drops tokens, a mask of the model's own (SP642).
    """
    del given
    if kv_offset:
        help = "give the model a cache that keeps all tokens: `past_key_values=DynamicCache()`"
        raise error("SP642", f"the cache has dropped the first {kv_offset} tokens, which patterns count", help=help)
    if use_vmap:
        found = "the model adds a mask of its own, for images or prefixes, which the pattern does not know"
        raise error("SP642", found, help="put it into the pattern")
    traced = torch.compiler.is_compiling()
    if not traced and _is_packed(mask_function):
        raise error("SP642", _PACKED, help=_PACKED_HELP)
    seen = q_offset + q_length
    if attention_mask is None:
        if isinstance(seen, int) and seen == kv_length:
            return None
        start = torch.zeros(batch_size, dtype=torch.int32, device=device)
        length = start + seen
    else:
        kept = attention_mask[:, :kv_length].int()
        length = kept.sum(1)
        # The first of several largest values is what `argmax` finds.
        start = kept.argmax(1)
        whole = kept.shape[1] - kept.flip(1).argmax(1) - start == length
        if traced:
            torch._assert_async((whole | (length == 0)).all(), _HOLES)  # noqa: SLF001
        else:
            # One look at the numbers for all layers; without padding the faster kernels run.
            inside, padded = torch.stack([~(whole | (length == 0)).all(), (length < kv_length).any()]).tolist()
            if inside:
                raise _holes()
            if not padded:
                return None
    return torch.stack([q_offset - start, start, length], dim=1).int()[:, None, None]


_HOLES = "padding stands inside of a text, not at its ends"


def _holes() -> SpatError:
    help = "pad on the left to generate: `tokenizer.padding_side = 'left'`"
    return error("SP642", _HOLES, help=help)


def _is_packed(mask_function: Any) -> bool:
    """Whether transformers has joined its own mask with one of packed texts, which only what a closure holds says."""
    inner = [cell.cell_contents for cell in getattr(mask_function, "__closure__", None) or ()]
    functions = [each for item in inner for each in (item if isinstance(item, tuple) else (item,)) if callable(each)]
    name = getattr(mask_function, "__qualname__", "")
    return "packed_sequence" in name or any(_is_packed(each) for each in functions)
