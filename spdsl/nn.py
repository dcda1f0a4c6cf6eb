"""Modules of torch with a pattern inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spdsl.api import Attention, Pattern, compile
from spdsl.diagnostics import error

__all__ = ["SelfAttention"]


class SelfAttention(torch.nn.Module):
    """Multi-head self-attention under a pattern: projections to queries, keys and values, attention, and one back.

    Positions are not encoded; add them to ``x``, or let the pattern bias by distance.

    Args:
        dim: features of a token.
        heads: query heads; ``dim`` must be a multiple of them.
        pattern: as for `spdsl.compile`, or what that returns.
        groups: key/value heads, by default as many as ``heads``.
        bias: whether projections add a bias.
        parameters: the pattern's parameters, `layer`, `backend` and `deterministic`, as for `spdsl.compile`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        pattern: str | Path | Pattern | Attention,
        *,
        groups: int | None = None,
        bias: bool = False,
        **parameters: Any,
    ) -> None:
        super().__init__()
        groups = heads if groups is None else groups
        if heads < 1 or groups < 1 or dim % heads or heads % groups:
            found = f"{dim} features, {heads} heads and {groups} groups do not divide"
            raise error("SP343", found, help="`dim` is a multiple of `heads`, and `heads` of `groups`")
        if isinstance(pattern, Attention) and parameters:
            found = f"{pattern!r} has its parameters already"
            raise error("SP330", found, help="leave the parameters out, or give the pattern")
        self.attention = pattern if isinstance(pattern, Attention) else compile(pattern, **parameters)
        self.sizes = (heads, groups, groups)
        self.head_dim = dim // heads
        self.project = torch.nn.Linear(dim, (heads + 2 * groups) * self.head_dim, bias=bias)
        self.back = torch.nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        """Attention of tokens over tokens.

        Args:
            x: ``[batch, tokens, dim]``.
            given: inputs of the pattern, and `q_start`, `k_start`, `k_len`, as in a call of `Attention`.

        Returns:
            ``[batch, tokens, dim]``.

        Raises:
            SpatError: as a call of `Attention`.
        """
        heads = self.project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = heads.split(self.sizes, dim=1)
        out = self.attention(q, k, v, **given)
        assert isinstance(out, Tensor), "no LSE was asked for"
        return self.back(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]  # modules return anything

    def extra_repr(self) -> str:
        """The pattern, in what a model prints of itself."""
        return repr(self.attention)
