"""From a plan to binaries for a GPU that need not be present.

Triton compiles for any target when it is told the types of the arguments.  Pointers and strides of tensors are taken to
be multiples of 16, as torch's allocator and common layouts give them.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spdsl.analysis.plans import Plan
from spdsl.codegen.binaries import compile_kept, options_of
from spdsl.codegen.blocks import Argument, BlockGraph, Kernel
from spdsl.codegen.emit import KernelSource, emit
from spdsl.codegen.gluon import described, emit_gluon
from spdsl.codegen.load import load
from spdsl.codegen.lower import lower
from spdsl.diagnostics import error

FUSED = ("fused", "touched", "ordered", "scaled")
"""The kernels of the fused backward, where there is one."""

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """One compiled kernel, of the file ``source``.

    ``extension`` is ``cubin`` or ``hsaco``.  ``shared`` counts bytes of shared memory of a program, ``spills`` 32-bit
    registers that live in local memory, both of one thread's point of view as are ``registers``.  ``warps`` are those
    of a program, also where they are specialised.  ``signature`` names the arguments with their types, in order.
    """

    source: KernelSource
    name: str
    target: str
    extension: str
    binary: bytes
    registers: int
    spills: int
    shared: int
    warps: int
    stages: int
    entry: str
    signature: tuple[tuple[str, str], ...]


def compile_kernels(
    plan: Plan, target: str, kinds: tuple[str, ...] | None = None
) -> tuple[KernelSource, tuple[Binary, ...]]:
    """The Triton source of ``plan`` and its kernels compiled for ``target``: those named in ``kinds``, or all but
    those of the fused backward.

    Raises:
        SpatError: the target is not known, or kernels are being interpreted in this process (SP5xx).
    """
    graph = lower(plan)
    source = emit(graph)
    gpu = _gpu(target)
    kernels = [kernel for kernel in graph.kernels if (kernel.name in kinds if kinds else kernel.name not in FUSED)]
    return source, tuple(_compile(kernel, _source(graph, kernel, source), gpu, target) for kernel in kernels)


def _source(graph: BlockGraph, kernel: Kernel, triton: KernelSource) -> KernelSource:
    return triton if kernel.fetch is None else emit_gluon(graph, kernel)


def _gpu(target: str) -> Any:
    from triton import knobs
    from triton.backends.compiler import GPUTarget

    if target not in TARGETS:
        raise error("SP502", f"there is no target `{target}`", help=f"use one of {', '.join(TARGETS)}")
    if knobs.runtime.interpret:
        raise error(
            "SP503",
            "kernels are interpreted in this process and cannot be compiled",
            help="unset TRITON_INTERPRET and start again",
        )
    if target.startswith("gfx"):
        return GPUTarget("hip", target, 64)
    return GPUTarget("cuda", int(target.removeprefix("sm_")), 32)


def _compile(kernel: Kernel, text: KernelSource, gpu: Any, target: str) -> Binary:
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    function = getattr(load(text), kernel.name)
    constants = {argument.name: 1 for argument in kernel.arguments if _is_one(argument, kernel)}
    gluon = kernel.fetch is not None
    signature = {
        a.name: "constexpr" if a.name in constants else described(a) if gluon else a.signature for a in kernel.arguments
    }
    attributes = {
        (position,): [["tt.divisibility", 16]]
        for position, argument in enumerate(kernel.arguments)
        if argument.name not in constants and _is_multiple(argument, kernel)
    }
    language = GluonASTSource if gluon else ASTSource
    source = language(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    compiled = compile_kept(source, gpu, options_of(kernel.warps, kernel.stages, kernel.registers))
    extension = "hsaco" if target.startswith("gfx") else "cubin"
    binary = compiled.asm[extension]
    registers, spills = resources(compiled, target)
    return Binary(
        source=text,
        name=kernel.name,
        target=target,
        extension=extension,
        binary=binary,
        registers=registers,
        spills=spills,
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        stages=kernel.stages,
        entry=compiled.metadata.name,
        signature=tuple(signature.items()),
    )


def _is_one(argument: Argument, kernel: Kernel) -> bool:
    """The last stride of a table: tables are contiguous along their last axis."""
    match = re.fullmatch(r"stride_(\w+)_(\d+)", argument.name)
    if match is None:
        return False
    following = f"stride_{match[1]}_{int(match[2]) + 1}"
    return all(other.name != following for other in kernel.arguments)


def _is_multiple(argument: Argument, kernel: Kernel) -> bool:
    if argument.type.startswith("*"):
        return argument.block is None
    sizes = dict(kernel.constants)
    wide = sizes.get("HEAD_WIDTH", 16) % 16 == 0 and sizes.get("VALUE_WIDTH", 16) % 16 == 0
    return wide and argument.fixed and not argument.name.startswith(("t_", "list_"))


def resources(compiled: Any, target: str) -> tuple[int, int]:
    """Registers of a thread, and those that are spilled, of a compiled kernel."""
    amd = target.startswith("gfx")
    return _amd_resources(compiled.asm["amdgcn"]) if amd else _cuda_resources(compiled.asm["cubin"])


def _cuda_resources(binary: bytes) -> tuple[int, int]:
    """Registers of a thread, and those that are spilled, as `cuobjdump` tells."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        shown = subprocess.run(  # noqa: S603  # the tool comes with triton, the path is ours
            [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found: Mapping[str, str] = dict(re.findall(r"(REG|STACK):(\d+)", shown))
    return int(found["REG"]), int(found["STACK"]) // 4


def _amd_resources(assembly: str) -> tuple[int, int]:
    """Vector registers of a thread, and those that are spilled, from the metadata in the assembly."""
    found = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count):\s*(\d+)", assembly))
    return int(found["vgpr_count"]), int(found["vgpr_spill_count"])
