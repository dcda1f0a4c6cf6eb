"""From a request of the operators to a plan: the part of the pipeline that needs torch."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import lru_cache

import torch

from spdsl.analysis.freedom import in_doubt, why_fixed
from spdsl.analysis.kept import kept_plan
from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Precision, Problem
from spdsl.analysis.room import room_for_parameters
from spdsl.choices import Situation, tiles_for
from spdsl.codegen import readiness
from spdsl.diagnostics import error
from spdsl.pipeline import bound, closed, free_names
from spdsl.runtime.calls import DTYPES
from spdsl.runtime.requests import Prepared, Request, install, rounded_up
from spdsl.runtime.vendor import is_amd
from spdsl.semantics.free import LARGEST

BACKENDS = ("cpu", "triton")


def prepare(request: Request, values: tuple[int, ...]) -> Prepared:
    """Plan what ``request`` asks for; ``values`` are those of the free parameters of its key.

    Raises:
        SpatError: the back end, the element type or the pattern does not fit (SP3xx, SP4xx).
    """
    request = _with_tiles(request, tuple(map(rounded_up, values)))
    found = _planned(request)
    if any(abs(value) > found.room for value in values):
        return _planned(replace(request, key=closed(request.key, values)))
    return _settled(request, values) if found.weighed else found


@lru_cache(maxsize=4096)
def _with_tiles(request: Request, near: tuple[int, ...]) -> Request:
    """The request with the tiles that were chosen for lengths and values like these, and without its lengths, so that
    all of them share plans."""
    device = request.device
    backend = choose_backend(json.loads(request.key)["backend"], device)
    if backend == "cpu":
        request = replace(request, few=0, few_keys=False)  # what is done for few rows is no matter of its plans
    if device.type != "cuda" or backend != "triton":
        return replace(request, lengths=(0, 0))
    situation = Situation(
        key=request.key,
        near=near,
        dtype=precision(request.dtype),
        heads=request.heads,
        groups=request.groups,
        head_dim=request.head_dim,
        value_dim=request.value_dim,
        shape=request.shape,
        tables=tuple(str(each).removeprefix("torch.") for each in request.tables),
        lengths=request.lengths,
        gpu=torch.cuda.get_device_name(device),
        target=target_of("triton", device),
    )
    return replace(request, lengths=(0, 0), tiles=tiles_for(situation))


@lru_cache(maxsize=1024)
def _settled(request: Request, values: tuple[int, ...]) -> Prepared:
    """The plan with the values as constants where that gains something."""
    free, fixed = _planned(request), _planned(replace(request, key=closed(request.key, values)))
    return free if why_fixed(free.plan, fixed.plan) is None else fixed


@lru_cache(maxsize=1024)
def _planned(request: Request) -> Prepared:
    fields = json.loads(request.key)
    pattern = bound(request.key, request.heads, request.groups, request.head_dim)
    names = tuple(table.name for table in pattern.tables)
    backend = choose_backend(fields["backend"], request.device)
    dtype = precision(request.dtype)
    if backend == "triton" and dtype == "bf16" and os.environ.get("TRITON_INTERPRET") == "1":
        raise error(
            "SP310",
            "q, k and v are bfloat16, whose bits Triton's interpreter multiplies as ints",
            help="convert them to float16 or float32, or unset TRITON_INTERPRET",
        )
    problem = Problem(
        pattern=pattern,
        dtype=dtype,
        value_dim=request.value_dim,
        shape=request.shape,
        tables=tuple(
            (name, str(dtype).removeprefix("torch.")) for name, dtype in zip(names, request.tables, strict=True)
        ),
        gradients=tuple(names[each] for each in request.gradients),
        tiles=request.tiles,
        few=request.few,
        few_keys=request.few_keys,
        page=request.page,
        later=request.later,
    )
    target = target_of(backend, request.device)
    if backend == "cpu":
        made = plan(problem, target)
    else:
        compiles = request.device.type == "cuda"
        made = kept_plan(problem, target, meanwhile=readiness.begin) if compiles else kept_plan(problem, target)
    free = free_names(request.key)
    return Prepared(
        plan=made,
        backend=backend,
        free=free,
        deterministic=fields["deterministic"],
        weighed=bool(free) and in_doubt(made),
        room=LARGEST if backend == "cpu" else room_for_parameters(made),
    )


def precision(dtype: torch.dtype) -> Precision:
    """The name of an element type.

    Raises:
        SpatError: attention is not computed in this type (SP310).
    """
    for name, known in DTYPES.items():
        if dtype == known:
            return name  # type: ignore[return-value]  # the keys of DTYPES are the names of Precision
    raise error(
        "SP310",
        f"q, k and v are {str(dtype).removeprefix('torch.')}, but attention is computed in bfloat16, float16 or "
        "float32",
        help="convert them, for example with `.to(torch.bfloat16)`; `attn.reference` computes in float64",
    )


def choose_backend(asked: str | None, device: torch.device) -> str:
    """The back end: the one asked for, else that of ``SPDSL_BACKEND``, else the best for the device.

    Raises:
        SpatError: there is no such back end, or it cannot run on the device (SP311).
    """
    name = asked or os.environ.get("SPDSL_BACKEND") or ("triton" if device.type == "cuda" else "cpu")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if name not in BACKENDS:
        raise error("SP311", f"there is no back end `{name}`", help=f"use one of {', '.join(BACKENDS)}")
    if (name == "cpu") != (device.type == "cpu") and not (name == "triton" and interpreted):
        other = "triton" if name == "cpu" else "cpu"
        raise error(
            "SP311",
            f"the back end `{name}` cannot run on tensors of device `{device}`",
            help=f'move the tensors, or use `backend="{other}"`',
        )
    return name


def target_of(backend: str, device: torch.device) -> str:
    """The name of the machine for which tiles are chosen."""
    if backend == "cpu":
        return "cpu"
    if device.type != "cuda":
        # Triton's interpreter does not run Gluon: kernels are those of a machine that has none.
        return "sm_100" if os.environ.get("TRITON_INTERPRET") == "1" else "sm_90"
    if is_amd():
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


install(prepare)
