"""Generated files: goldens, determinism, and what may stand in them."""

from __future__ import annotations

import ast
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from spdsl.analysis.plan import plan
from spdsl.analysis.plans import Plan, Problem
from spdsl.codegen.blocks import BlockGraph
from spdsl.codegen.emit import emit
from spdsl.codegen.gluon import emit_gluon
from spdsl.codegen.lower import lower
from spdsl.codegen.show import dump
from spdsl.diagnostics import Source, Span
from spdsl.semantics.softmaxes import softmax_pattern
from tests.library.bound import library, program
from tests.runtime.build import CAUSAL, K, Q, load, op, table
from tests.runtime.build import plan as by_hand

ROOT = Path(__file__).parents[2]
GOLDEN = ("causal", "streaming", "documents", "alibi", "dilated", "neighborhood_3d", "power")
PARAMETERS: dict[str, dict[str, object]] = {
    "neighborhood_3d": {"extents": (30, 48, 79), "window": (19, 25, 25), "causal_axes": (True, False, False)}
}


def planned(name: str, shape: str = "square", **parameters: object) -> Plan:
    """A library pattern as it is compiled for an H100, with gradients for its float inputs."""
    pattern = library(name, heads=4, groups=2, head_dim=64, opened=True, **parameters)
    types = {"float": "float32", "int": "int32", "bool": "bool"}
    problem = Problem(
        pattern=pattern,
        dtype="bf16",
        value_dim=64,
        shape=shape,  # type: ignore[arg-type]
        tables=tuple((each.name, types[each.dtype]) for each in pattern.tables),
        gradients=tuple(each.name for each in pattern.tables if each.dtype == "float"),
    )
    return plan(problem, "sm_90")


def gluon_text(graph: BlockGraph, name: str, version: str = "3.6.0") -> str:
    """The text of a kernel with specialised warps."""
    (kernel,) = (each for each in graph.gluon if each.name == name)
    return emit_gluon(graph, kernel, version).text


@pytest.mark.parametrize("name", GOLDEN)
def test_source(name: str, golden: Callable[..., None]) -> None:
    golden(emit(lower(planned(name, **PARAMETERS.get(name, {})))).text, ending="py")


def test_fused_source(golden: Callable[..., None]) -> None:
    pattern = library("streaming", heads=4, groups=2, head_dim=128, opened=True)
    made = plan(Problem(pattern=pattern, dtype="bf16", value_dim=128, shape="square"), "sm_90")
    golden(gluon_text(lower(made), "fused"), ending="py")


@pytest.mark.parametrize("name", GOLDEN)
def test_forward_source(name: str, golden: Callable[..., None]) -> None:
    golden(gluon_text(lower(planned(name, **PARAMETERS.get(name, {}))), "forward"), ending="py")


def test_source_of_picks(golden: Callable[..., None]) -> None:
    """The softmax over selected blocks of `nsa`: 4 queries with 16 heads to a tile."""
    pattern = library("nsa", heads=32, groups=2, head_dim=128)
    assert pattern.graph is not None
    softmax = softmax_pattern(pattern, pattern.graph.attentions[1].name)
    tables = tuple((table.name, "int32") for table in softmax.tables)
    graph = lower(plan(Problem(pattern=softmax, dtype="bf16", value_dim=128, shape="square", tables=tables), "sm_90"))
    golden(emit(graph).text, ending="py")
    golden(gluon_text(graph, "dkdv"), "dkdv.py")


def test_source_of_copied_blocks() -> None:
    """Four blocks of 16 keys make a tile: each is copied from where the list says, or zeros past its end; where a group
    has 64 keys to itself a tile is one copy."""
    texts = {}
    for block in (16, 64):
        pattern = library("sparsed_reuse", heads=4, groups=2, head_dim=128, rows=64, columns=block)
        tables = tuple((table.name, "int32") for table in pattern.tables)
        pattern = replace(pattern, tables=tuple(replace(table, listed=True) for table in pattern.tables))
        made = plan(Problem(pattern=pattern, dtype="bf16", value_dim=128, shape="square", tables=tables), "sm_90")
        assert made.forward.specialised
        texts[block] = gluon_text(lower(made), "forward")
    copies = re.findall(r"global_to_shared\((\w), \[b, g, (\S+), (\d) \* COLUMNS\]", texts[16])
    wanted = [(tensor, f"row_{number}", half) for tensor in "KV" for half in "01" for number in range(4)]
    assert sorted(copies) == sorted(wanted)
    assert re.findall(r"(row_\d) = gl.where\(begin \+ t \* 4 \+ (\d) < end, \1, n\)", texts[16]) == [
        (f"row_{number}", str(number)) for number in (1, 2, 3)
    ]
    assert "listed_keys" in texts[16]
    assert "K, [b, g, j * BLOCK_K, 0]" in texts[64]
    assert "listed_keys" not in texts[64]


@pytest.mark.parametrize("scale", [0.5, -0.5])
def test_the_fused_kernel_scales_as_it_is_written(scale: float) -> None:
    """Also by a number below zero, which the softmax of the forward does not leave to its exponent."""
    pattern = program(f"pattern turned() {{ keep q >= k scale {scale} }}", head_dim=128)
    text = gluon_text(
        lower(plan(Problem(pattern=pattern, dtype="bf16", value_dim=128, shape="square"), "sm_90")), "fused"
    )
    (factor,) = (float(each) for each in re.findall(r"p = gl\.exp2\(scores \* ([-\d.]+)\)", text))
    inverse = [float(each) for each in re.findall(r"nothing - lse \* ([-\d.]+)", text)]
    assert factor == pytest.approx(scale * math.log2(math.e))
    assert inverse == pytest.approx([1 / factor])


def test_the_fused_kernel_is_for_logits_that_differ() -> None:
    pattern = program("pattern flat() { keep q >= k scale 0.0 }", head_dim=128)
    assert plan(Problem(pattern=pattern, dtype="bf16", value_dim=128, shape="square"), "sm_90").fused is None


@pytest.mark.parametrize(("dim", "copied"), [(8, False), (64, False), (128, True)])
def test_narrow_rows_of_several_heads_are_loaded_by_address(dim: int, copied: bool) -> None:
    pattern = library("nsa", heads=32, groups=2, head_dim=dim)
    assert pattern.graph is not None
    softmax = softmax_pattern(pattern, pattern.graph.attentions[1].name)
    tables = tuple((table.name, "int32") for table in softmax.tables)
    made = plan(Problem(pattern=softmax, dtype="bf16", value_dim=dim, shape="square", tables=tables), "sm_90")
    text = emit(lower(made)).text
    assert ("Q.load(" in text) == ("dO.load(" in text) == copied
    assert "K.load(" in text


@pytest.mark.parametrize("name", ["power", "bigbird"])
def test_tiles_past_the_last_query_are_masked_where_they_are_copied_whole(name: str) -> None:
    """A listed tile may be full over the rows that exist."""
    pattern = library(name, heads=2, groups=2, head_dim=128)
    graph = lower(plan(Problem(pattern=pattern, dtype="bf16", value_dim=128, shape="square"), "sm_90"))
    fetch = gluon_text(graph, "fused").partition("def compute(")[0]
    flags = [line for line in fetch.splitlines() if line.strip().startswith("masked = ")]
    assert flags
    assert all("i >= (nq >> 6)" in flag for flag in flags), flags


@pytest.mark.parametrize("name", ["full", "power", "bigbird", "documents"])
def test_keys_past_the_end_are_masked_in_the_fused_kernel(name: str) -> None:
    """Its dQ is summed over them, and their weights may be infinite."""
    pattern = library(name, heads=2, groups=2, head_dim=128)
    tables = tuple((table.name, "int32") for table in pattern.tables)
    made = plan(Problem(pattern=pattern, dtype="fp16", value_dim=128, shape="square", tables=tables), "sm_90")
    text = gluon_text(lower(made), "fused")
    (mask,) = (line for line in text.splitlines() if line.strip().startswith("p = gl.where("))
    assert "q < k_part" in mask
    (bound,) = (line for line in text.splitlines() if line.strip().startswith("k_part = "))
    assert "gl.where(k < n, nq, 0)" in bound
    (end,) = (line for line in text.splitlines() if "(j + 1) * 128 > n" in line)
    assert end.strip().startswith(("full_hi = ", "masked = "))


@pytest.mark.parametrize("name", ["left", "left_2", "ring", "row"])
def test_parameters_keep_their_names_to_themselves(name: str) -> None:
    """Nothing in a kernel is called as a parameter of the pattern."""
    text = f"pattern named({name}: int in 0.. = 9) {{ keep -{name} <= q - k <= 2 * {name} }}"
    pattern = program(text, heads=2, groups=2, head_dim=128, opened=True)
    graph = lower(plan(Problem(pattern=pattern, dtype="bf16", value_dim=128, shape="square"), "sm_90"))
    for source in (emit(graph).text, gluon_text(graph, "forward"), gluon_text(graph, "fused")):
        names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
        stored = {
            node.id
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        assert f"p_{name}" in names
        assert f"p_{name}" not in stored


def test_names_of_newer_versions_of_triton() -> None:
    pattern = library("causal", heads=4, groups=4, head_dim=128)
    graph = lower(plan(Problem(pattern=pattern, dtype="fp16", value_dim=128, shape="square"), "sm_90"))
    old, new = (
        "".join(gluon_text(graph, each, version) for each in ("forward", "fused")) for version in ("3.6.0", "3.9.0")
    )
    assert "tma.async_load(" in new
    assert "tma.async_atomic_add(" in new
    assert "thread_barrier" not in new
    assert "async_load" not in old


def test_blocks(golden: Callable[..., None]) -> None:
    golden(dump(lower(planned("streaming"))))


@pytest.mark.parametrize("shape", ["offset", "batched"])
def test_shapes_are_python(shape: str) -> None:
    text = emit(lower(planned("streaming", shape))).text
    ast.parse(text)
    assert "q_start" in text
    assert all(len(line) < 200 for line in text.splitlines())


def test_the_same_text_for_every_hash_seed() -> None:
    code = (
        "from tests.codegen.test_emit import *\n"
        "print([emit(lower(planned(name))).digest for name in ('documents', 'head_modes', 'bigbird')])"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(texts) == 1


def test_text_of_a_user_stays_out() -> None:
    """Names of files, labels and tables cannot end a comment, a string or an expression."""
    evil = Source(name='a/b"""\n import os#.spat', text="x")
    span = Span(source=evil, line=1, column=1, end_line=1, end_column=2)
    own = replace(
        table("doc", "int", "token"), axes=(replace(table("doc", "int", "token").axes[0], label='"""\nboom()'),)
    )
    keep = replace(op("and", CAUSAL, op("ge", load("doc", Q), 0)), span=span)
    text = emit(lower(by_hand(keep, tables=(own,)))).text
    ast.parse(text)
    assert "boom()" not in text
    assert "import os" not in text
    assert 'b"""' not in text


def test_clauses_name_their_line() -> None:
    assert "# causal.spat:3" in emit(lower(planned("causal"))).text


def test_names_of_inputs_never_meet() -> None:
    names = ("doc", "doc_0", "doc_stride_b", "do", "list", "k_rows", "nq", "stage0")
    keep = CAUSAL
    for name in names:
        keep = op("and", keep, op("eq", load(name, Q), load(name, K)))
    text = emit(lower(by_hand(keep, tables=tuple(table(name, "int", "token") for name in names)))).text
    for kernel in (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)):
        arguments = [argument.arg for argument in kernel.args.args]
        assert len(set(arguments)) == len(arguments)
