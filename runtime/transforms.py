"""What cannot be differentiated or batched: `torch.func`, forward-mode derivatives, derivatives of gradients.

From: the tensors of a call.  To: nothing, or an error.  Without it torch would take a missing rule for a derivative of
zero, or answer with words about its own inside.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from spdsl.diagnostics import SpatError, error


def refuse_transforms(tensors: Iterable[Tensor]) -> None:
    """Refuse tensors that a transform of torch has wrapped.

    Raises:
        SpatError: `torch.func` or forward-mode differentiation (SP349).
    """
    if torch.compiler.is_compiling():
        return  # what is traced is seen by the compiler, which knows the operators
    for tensor in tensors:
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # noqa: SLF001  # torch has no public name for it
            raise error(
                "SP349",
                "transforms of `torch.func` (`vmap`, `grad`, `jvp`, …) do not reach through attention",
                help="use autograd for gradients; the first axis of q, k and v is the batch",
            )
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise error(
                "SP349",
                "forward-mode derivatives of attention are not supported yet",
                help="use autograd's backward pass, or `attn.reference`",
            )


def refuse_paged(what: str) -> SpatError:
    """The error of what is not done with keys in pages."""
    return error(
        "SP352",
        f"{what} with keys in pages are not supported yet",
        help="gather the pages of each sequence: `k_pages[table].flatten(1, 2).transpose(1, 2)`",
    )


def second_derivative() -> SpatError:
    """The error of a backward pass through gradients."""
    return error(
        "SP349",
        "derivatives of the gradients of attention are not supported yet",
        help="leave out `create_graph=True`, or use `attn.reference`, which is differentiable any number of times",
    )
