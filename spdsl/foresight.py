"""Begins what a first kernel will need beside the import of the compiler, where a process will most likely want one.

That is where torch has started CUDA and the cache holds nothing yet: isl's process, the driver's module, the hash of
Triton's library and the templates are then made ready while Python still reads modules.  Importing this does it.
"""

from __future__ import annotations

import os

import torch

from spdsl.analysis import worker
from spdsl.cache.places import cache_root, shared_roots
from spdsl.codegen import readiness


def begin() -> bool:
    """Begin, where there is a GPU in use and nothing is kept; returns whether it was."""
    if not torch.cuda.is_initialized() or os.environ.get("SPDSL_BACKEND") == "cpu":
        return False
    # With an entry that is kept, this process may need none of it, and is quicker alone.
    if os.environ.get("TRITON_INTERPRET") == "1" or shared_roots() or (cache_root() / "entries").is_dir():
        return False
    worker.begin()
    readiness.begin()
    return True


begin()
