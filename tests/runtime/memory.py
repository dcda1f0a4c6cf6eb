"""How large the tensors are that some lines make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class Largest(TorchFunctionMode):
    """The bytes of the largest storage that a function of torch gives back while this lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        given: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        found = function(*given, **(named or {}))
        if isinstance(found, Tensor):
            self.nbytes = max(self.nbytes, found.untyped_storage().nbytes())
        return found
