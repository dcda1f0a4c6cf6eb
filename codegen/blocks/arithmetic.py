"""Blocks that compute on tiles: products, logits, masks, the online softmax, gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from spdsl.analysis.plans import Precision
from spdsl.codegen.blocks.naming import Part
from spdsl.diagnostics import Span
from spdsl.semantics.nodes import Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """``name = left @ right`` (``right`` transposed if asked), added to ``name`` if ``accumulate``; fp32 result.

    ``cast`` converts the left side to the element type of the inputs first.
    """

    name: str
    left: str
    right: str
    transpose: bool = False
    accumulate: bool = False
    cast: Precision | None = None
    exact: bool = False
    shape: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Logits:
    """From products to logits in powers of two: scale, softcap, bias.  Without softcap and bias nothing is done here:
    the softmax folds the scale into its exponent.  ``keep_slope`` names the derivative of the cap for the backward."""

    scale: float
    softcap: float | None
    bias: Expr | None
    folded: bool
    keep_slope: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """Give the pairs outside the set no weight: -inf for ``scores`` in the forward, 0 for ``p`` in the backward."""

    target: Literal["scores", "p"]
    keep: Expr
    span: Span | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxState:
    """Running maximum ``m``, sum ``l`` and output ``acc``; a sink starts them instead of nothing."""

    sink: Expr | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxResumed:
    """As `SoftmaxState`, from the output and LSE of other pairs of these rows: ``o_tile`` and memory.

    Where a row is computed in parts, only the first goes on from there (``first`` holds for it).
    """

    first: Expr | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineSoftmax:
    """Update ``m`` and ``l``, rescale ``acc``, and name the weights ``p``.

    ``factor`` is the scale folded into the exponent (1 when logits are scaled already); ``guarded`` when a whole row
    may be -inf.
    """

    factor: float
    guarded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxEnd:
    """Divide ``acc`` by ``l``; zeros for empty rows.  Names ``lse`` (natural logarithm)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probabilities:
    """``p`` from logits and the row's LSE; ``factor`` as in `OnlineSoftmax`."""

    factor: float
    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreGradient:
    """``ds = p * (dp - delta)``, the gradient of the logit; ``dsc`` is ``ds`` through the softcap."""

    part: Part
    capped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SumRows:
    """Add the row sums of ``ds * factor`` to the accumulator ``name``."""

    name: str
    factor: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """``name = ds * factor`` as a tile of its own."""

    name: str
    factor: Expr


@dataclass(frozen=True, slots=True, kw_only=True)
class RowProducts:
    """``lse`` as it is stored, and for the kernels that follow ``lse2``, in powers of two and +inf for rows that keep
    nothing, and ``delta``: row sums of ``dO * O`` minus ``dLSE``, 0 for rows that keep nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkGradient:
    """``ds``, the gradient of the sink's logit as a column: its weight times minus ``delta``."""

    sink: Expr
