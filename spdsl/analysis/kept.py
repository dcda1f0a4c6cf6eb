"""Plans from the cache, so that a process whose problem was planned before does not begin with isl.

From a problem to the plan that `plan` makes.  The key names all that decides it: the problem, where the words of its
pattern stand (messages quote them), the target, the version of isl, and the code of the compiler itself, so that no
other version's plan is ever taken.  Plans that time has decided are not kept.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spdsl import __version__
from spdsl.analysis import worker
from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Plan, Problem
from spdsl.cache.entries import digest
from spdsl.cache.store import store
from spdsl.diagnostics import Span, SpatError

_NAME = "plan.pickle"

_CLOCK = 5.0
"""Seconds of planning below which no derivation can have met its deadline (`spdsl.analysis.budget.SECONDS`)."""


def kept_plan(problem: Problem, target: str, *, meanwhile: Callable[[], None] = lambda: None) -> Plan:
    """`plan` of the same arguments, from the cache where it is there.

    Where it is not, ``meanwhile`` is called first, which may begin what will be needed while isl is awaited.

    Raises:
        SpatError: as `plan` does.
    """
    key = digest("plan", target, repr(problem), *_places(problem), version("islpy"), code())
    # A cache that cannot be used (who launches kernels is told), or an entry that is no plan.
    with suppress(SpatError, OSError, pickle.UnpicklingError):
        entry = store().get(key)
        if entry is not None:
            return _Reader(io.BytesIO(entry.path(_NAME).read_bytes())).load()  # type: ignore[no-any-return]
    worker.begin()
    meanwhile()
    begin, losses = time.monotonic(), worker.losses()
    found = plan(problem, target)
    if time.monotonic() - begin < _CLOCK and worker.losses() == losses:
        with suppress(SpatError, OSError):
            files = {_NAME: pickle.dumps(found, protocol=4)}
            about = {"target": target, "made_by": {"spdsl": __version__}}
            store().put(key, kind="plan", name=problem.pattern.name, files=files, about=about)
    return found


def _places(problem: Problem) -> tuple[str, ...]:
    """Where the words of a problem stand, and the texts in which they do: `repr` does not tell."""
    spans: set[Span] = set()

    class Collector(pickle.Pickler):
        def persistent_id(self, node: Any) -> Any:
            return spans.add(node) if isinstance(node, Span) else None

    Collector(io.BytesIO(), protocol=4).dump(problem)
    texts = {each.source.name: each.source.text for each in spans}
    return (*sorted(f"{each!r} {each.source.name}" for each in spans), *(str(each) for each in sorted(texts.items())))


class _Reader(pickle.Unpickler):
    """Takes nothing but what plans are made of."""

    def find_class(self, module: str, name: str) -> Any:
        """A class of the layers below; its names have no dots, so that nothing is reached through it."""
        if module.startswith(("spdsl.analysis.", "spdsl.semantics.nodes", "spdsl.diagnostics")) and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a plan")


@lru_cache(maxsize=1)
def code() -> str:
    """A hash of all sources that decide a plan."""
    found = sha256()
    here = Path(__file__).resolve().parent
    for path in sorted(each for folder in (here, here.parent / "semantics") for each in folder.glob("*.py")):
        found.update(path.name.encode() + b"\0" + sha256(path.read_bytes()).digest())
    return found.hexdigest()
