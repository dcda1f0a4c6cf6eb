"""The launches of one selection of one call: sums of softmaxes, reductions, and keys of some rows.

From: a selection's kernels and the arrays of a call.  To: launches with the arguments, grids and tiles of that call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError

from spdsl.codegen.binaries import options_of
from spdsl.codegen.chains.emit import array_arguments, pair_arguments, table_arguments
from spdsl.codegen.chains.lower import ChainKernel
from spdsl.diagnostics import error
from spdsl.runtime.arrays import Arrays
from spdsl.runtime.chain_kernels import Loaded, read_of
from spdsl.runtime.choosing import Keys, Room, choose
from spdsl.runtime.memo import Memo
from spdsl.runtime.notes import Grid
from spdsl.runtime.operands import TERMS, Operand, operand
from spdsl.runtime.plain import Launch, start
from spdsl.runtime.probes import probed_rows
from spdsl.runtime.row_sums import empty_sums, join_sums, row_parts
from spdsl.runtime.split import multiprocessors
from spdsl.runtime.stage_values import refuse_unequal
from spdsl.runtime.tilings import SMALLER, Tiling, columns_of, rows_of, tiling_of
from spdsl.runtime.vendor import is_amd
from spdsl.semantics.graph import Mark, Score, Select, Softmax, Stage, on_side
from spdsl.semantics.nodes import Const


@dataclass(slots=True, kw_only=True)
class Run:
    """One selection of one call.

    ``keys`` has room for those of some rows, int32 ``[batch * heads, rows, pitch]``; ``ends`` says where rows end,
    int32 ``[chunks of rows, batch * heads, tiles of rows]``.
    """

    arrays: Arrays
    loaded: Loaded
    operands: dict[str, Operand]
    batch: int
    heads: int
    columns: int
    keys: Tensor = field(init=False)
    ends: Tensor = field(init=False)
    sums: dict[str, Tensor] = field(default_factory=dict)
    pairs: dict[str, Tensor] = field(default_factory=dict)
    lists: Callable[[str], Tensor] | None = None

    @staticmethod
    def of(arrays: Arrays, found: Loaded) -> Run:
        """The tensors that the kernels of a selection read in a call."""
        chain = found.chain
        by_name = {each.name: each for kernel in chain.kernels for each in kernel.arguments.vectors}
        operands: dict[str, Operand] = {}
        made: dict[object, Operand] = {}
        paired = any(kernel.paired for kernel in chain.kernels)
        for name, vectors in sorted(by_name.items(), reverse=True):  # queries before keys
            query = operands.get(name.removesuffix("_k") + "_q")
            dtype = query.tensor.dtype if query is not None and query.is_short else None
            dtype = TERMS if dtype is None and vectors.terms > 1 else dtype
            key = (vectors.expr, vectors.axes, vectors.terms, dtype)
            if key not in made:
                given = operand(arrays, vectors, dtype)
                made[key] = given.near(vectors.rows, vectors.feature) if paired else given
            operands[name] = made[key]
        for stage in read_of(arrays, chain.stage).scores:
            ends = [operands[end].size(stage.over) for end in (f"{stage.name}_q", f"{stage.name}_k") if end in operands]
            if len(ends) == 2:
                refuse_unequal(stage, *ends)
        tables = {name for kernel in chain.kernels for name, _ in kernel.arguments.tables}
        batches = [each.batch for each in operands.values()]
        batches += [arrays.tensors[name].shape[0] for name in tables]
        made_before = {name for kernel in chain.kernels for name, _ in kernel.arguments.arrays} & set(arrays.stages)
        batches += [arrays.whole(name).shape[0] for name in made_before]
        if read_of(arrays, chain.stage).by_batch:
            batches.append(arrays.lines.batch)
        return Run(
            arrays=arrays,
            loaded=found,
            operands=operands,
            batch=max(batches, default=1),
            heads=arrays.lines.size(chain.heads) if chain.heads else 1,
            columns=arrays.lines.size(chain.columns) if chain.columns else 1,
        )

    # ------------------------------------------------------------ each kernel

    def reduced(self, kernel: ChainKernel, tiling: Tiling | None = None) -> Tensor:
        """What a reduction leaves for each row, ``[batch, heads, rows]``."""
        arrays, chain = self.arrays, self.loaded.chain
        rows = arrays.lines.size(chain.rows) if chain.rows else 1
        dtype = torch.float32 if arrays.stages[chain.stage].dtype == "float" else torch.uint8
        found = torch.empty(self.batch, self.heads, rows, dtype=dtype, device=arrays.lines.device)
        every = self.batch * self.heads
        given = {"left_here": found, "chunk_rows": rows, "column_count": self.columns, "heads": self.heads}
        grid = lambda tiling: (-(-rows // rows_of(kernel, tiling)), every, 1)  # noqa: E731
        self.launch(kernel, given, grid, rows * every, ("left_here",), tiling)
        return found if dtype == torch.float32 else found.view(torch.bool)

    def left(self, kernel: ChainKernel) -> Tensor:
        """What a reduction over all queries leaves, ``[batch, heads, columns]``."""
        arrays, chain = self.arrays, self.loaded.chain
        dtype = torch.float32 if arrays.stages[chain.stage].dtype == "float" else torch.uint8
        found = torch.empty(self.batch, self.heads, self.columns, dtype=dtype, device=arrays.lines.device)
        every = self.batch * self.heads
        given = {"left_here": found, "column_count": self.columns, "heads": self.heads}

        def grid(tiling: Tiling) -> Grid:
            each = tiling.columns // (2 if kernel.role == "distances" else 1)
            return -(-self.columns // each), every, 1

        self.launch(kernel, given, grid, self.columns * every, ("left_here",))
        return found if dtype == torch.float32 else found.view(torch.bool)

    def summed(self, kernel: ChainKernel) -> Tensor:
        """The sums of a softmax, fp32 ``[batch, heads, rows, 2]``."""
        arrays = self.arrays
        stage = arrays.stages[kernel.stage]
        rows_axis = on_side(stage.axes, "q")
        assert isinstance(stage, Softmax)
        assert rows_axis is not None
        if kernel.stage in arrays.divisors:
            return arrays.divisors[kernel.stage]
        others = [axis for axis in stage.axes if axis not in (rows_axis, stage.over)]
        heads = math.prod(arrays.lines.size(axis) for axis in others)
        rows = arrays.lines.size(rows_axis)
        lines, owners, columns = arrays.lines, self.batch * heads, arrays.lines.size(stage.over)
        probed = probed_rows(stage.only, rows, lines.n, lines.q_start) if rows_axis == "q" else range(rows)
        shared = row_parts(probed, rows, owners, columns, multiprocessors(lines.device))
        found = empty_sums((self.batch, heads, rows, 2), lines.device, whole=shared.count >= rows)
        sums, first = found, 0
        if shared.parts > 1:
            shape = (shared.parts, owners, shared.count, 2)
            sums, first = torch.empty(shape, dtype=torch.float32, device=lines.device), shared.begin
        given = {
            "sums": sums,
            "sum_first": first,
            "sum_rows": sums.shape[2],
            "begin": shared.begin,
            "count": shared.count,
            "parts": shared.parts,
            "chunk_rows": rows,
            "column_count": columns,
            "heads": heads,
        }
        grid = lambda tiling: (-(-shared.count // rows_of(kernel, tiling)), owners, shared.parts)  # noqa: E731
        self.launch(kernel, given, grid, min(rows, shared.count) * heads, ("sums",))
        if shared.parts > 1:
            join_sums(sums, found, shared.begin)
        arrays.divisors[kernel.stage] = found
        return found

    def chosen(self, stage: Stage, first: int, rows: int, lists: Room | None) -> Tensor:
        """The lists of some rows, as many as `keys` has room for, or the last ones."""
        return choose(self.keyed(first, rows), self.loaded.chain.by, self.amounts(stage, first, rows), lists)

    def keyed(self, first: int, rows: int) -> Keys:
        """The keys of some rows, as many as `keys` has room for, or the last ones."""
        kernel = self.loaded.chain.kernels[-1]
        for each in self.loaded.chain.kernels:
            if each.role == "pairs":
                self.pairs[each.stage] = self._paired(each, first, rows)
        every, step, pitch = self.keys.shape
        ends_first = first // step * every * self.ends.shape[-1]
        given = {
            "keys": self.keys,
            "row_ends": self.ends,
            "ends_first": ends_first,
            "first_row": first,
            "chunk_rows": rows,
            "column_count": self.columns,
            "pitch": pitch,
            "heads": self.heads,
        }

        def grid(tiling: Tiling) -> Grid:
            columns = columns_of(kernel, tiling)
            columns -= bool(kernel.fold and kernel.fold.more)
            return -(-self.columns // columns), -(-rows // rows_of(kernel, tiling)), every

        tiling = self.launch(kernel, given, grid, rows * every * -(-self.columns // 128), ("keys", "row_ends"))
        return Keys(
            keys=self.keys,
            chunks=every,
            rows=rows,
            pitch=pitch,
            columns=self.columns,
            ends=self.ends,
            block=rows_of(kernel, tiling),
            ends_first=ends_first,
        )

    def _paired(self, kernel: ChainKernel, first: int, rows: int) -> Tensor:
        """What a stage has for each of some rows and each of its own columns, ``[batch, heads, rows, columns]``."""
        lines, stage = self.arrays.lines, self.arrays.stages[kernel.stage]
        columns, heads = lines.size(stage.axes[-1]), self.heads if len(stage.axes) > 2 else 1
        found = torch.empty(self.batch, heads, rows, columns, dtype=torch.float32, device=lines.device)
        given = {
            "left_here": found,
            "first_row": first,
            "chunk_rows": rows,
            "column_count": columns,
            "heads": heads,
        }

        def grid(tiling: Tiling) -> Grid:
            return -(-columns // columns_of(kernel, tiling)), -(-rows // rows_of(kernel, tiling)), self.batch * heads

        self.launch(kernel, given, grid, rows * heads * -(-columns // 128), ("left_here",))
        return found

    def amounts(self, stage: Stage, first: int, rows: int) -> Tensor:
        """How many to choose in each row, or one number for all."""
        device = self.arrays.lines.device
        if isinstance(stage, Mark):
            return torch.zeros(1, dtype=torch.int32, device=device)
        assert isinstance(stage, Select)
        amount: Any = stage.amount.value if isinstance(stage.amount, Const) else None
        if amount is None:
            some = torch.arange(first, first + rows, device=device)
            amount = self.arrays.evaluate(stage.amount, stage.axes, some, Memo())
        if not isinstance(amount, Tensor):
            value = max(0, min(int(amount), 2**31 - 1)) if stage.by == "count" else float(amount)
            return torch.full((1,), value, dtype=torch.int32 if stage.by == "count" else torch.float64, device=device)
        shape = [self.batch, *(rows if axis == self.loaded.chain.rows else self.heads for axis in stage.axes)]
        shape[1 + stage.axes.index(stage.over)] = 1
        wide = amount.expand(shape).reshape(-1).contiguous()
        return wide.clamp(0, 2**31 - 1).int() if stage.by == "count" else wide.double()

    # ------------------------------------------------------------ launches

    def launch(
        self,
        kernel: ChainKernel,
        given: Mapping[str, Any],
        grid: Callable[[Tiling], Grid],
        rows: int,
        writes: tuple[str, ...],
        tiling: Tiling | None = None,
    ) -> Tiling:
        """Run a kernel, which ``writes`` some of its tensors, with as large a tile as the work and the device have room
        for, or a given one, and say which."""
        wanted = self._tiling(kernel, rows) if tiling is None else tiling
        tiling = self.loaded.tilings.get((kernel.name, wanted), wanted)
        function, device = self.loaded.functions[kernel.name], self.arrays.lines.device
        values = self._values(kernel)
        while True:
            # All in the first dimension, as the others end at 65,535.
            programs = math.prod(grid(tiling)), 1, 1
            options = options_of(tiling.warps, tiling.stages, None if is_amd() else tiling.registers)
            blocks = {"BLOCK_R": rows_of(kernel, tiling), "BLOCK_C": columns_of(kernel, tiling)}
            launch = Launch(
                function=function,
                grid=programs,
                values={**values, **given, **blocks},
                options=options,
                writes=writes,
                device=device,
            )
            try:
                start(launch)
            except (OutOfResources, PTXASError) as short:  # shared memory, or registers
                if tiling not in SMALLER:
                    pattern = self.arrays.lines.pattern.name
                    raise error(
                        "SP504",
                        f"the kernel `{kernel.name}` of `{pattern}` does not fit this GPU: {short}",
                        self.arrays.stages[kernel.stage].span,
                        help="select by vectors of fewer numbers",
                    ) from short
                tiling = SMALLER[tiling]
                self.loaded.tilings[kernel.name, wanted] = tiling
            else:
                return tiling

    def _tiling(self, kernel: ChainKernel, rows: int) -> Tiling:
        operands = [self.operands[each.name] for each in kernel.arguments.vectors]
        few = rows * max(1, self.batch) < 2 * 128 * multiprocessors(self.arrays.lines.device)
        return tiling_of(kernel, long=not all(each.is_short for each in operands), few=few)

    def _values(self, kernel: ChainKernel) -> dict[str, Any]:
        """The arguments of a kernel that do not depend on which rows it computes."""
        arrays, lines = self.arrays, self.arrays.lines
        values: dict[str, Any] = {"n": lines.n, "nq": lines.nq, "q_start": lines.q_start}
        for vectors in kernel.arguments.vectors:
            found, name = self.operands[vectors.name], vectors.name
            values |= {name: found.tensor, f"{name}_b": found.batch_stride}
            values |= {f"{name}_{axis}": found.stride(axis) for axis in vectors.axes}
            values |= {f"{name}_r": found.stride(vectors.rows), f"{name}_f": found.stride(vectors.feature)}
            if vectors.terms > 1:
                values[f"{name}_t"] = found.tensor.stride(0)
            size = found.size(vectors.feature)
            values |= {f"{name}_rows": found.size(vectors.rows), f"{name}_size": size}
            values[name.upper()] = max(16, 1 << (size - 1).bit_length())
        for sums in kernel.arguments.sums:
            tensor = self.sums[sums.stage]
            heads, rows = tensor.shape[1:3]
            values |= {sums.name: tensor, f"{sums.name}_b": heads * rows, f"{sums.name}_h": rows}
            values[f"{sums.name}_rows"] = rows
        for name, rank in kernel.arguments.tables:
            tensor = arrays.tensors[name]
            strides = [tensor.stride(0) if tensor.shape[0] > 1 else 0, *tensor.stride()[1:]]
            values |= dict(zip(table_arguments(name, rank), (tensor, *strides, *tensor.shape[1:]), strict=True))
        reduced = dict(kernel.arguments.reduced)
        for name, axes in kernel.arguments.arrays:
            tensor = lines.reduced(reduced[name])[None] if name in reduced else arrays.whole(name)
            steps = (tensor.stride(0) if tensor.shape[0] > 1 else 0, *tensor.stride()[1:], tensor.shape[-1])
            values |= dict(zip(array_arguments(name, axes), (tensor, *steps), strict=True))
        for name, has_heads in kernel.arguments.pairs:
            tensor = self.pairs[name]
            steps = tensor.stride()[:3] if has_heads else (tensor.stride(0), tensor.stride(2))
            values |= dict(zip(pair_arguments(name, has_heads), (tensor, *steps), strict=True))
        values |= {name: lines.size(axis) for name, axis in kernel.arguments.sizes}
        return values | {name: self._factor(stage) for name, stage in kernel.arguments.factors}

    def _factor(self, name: str) -> float:
        stage = self.arrays.stages[name]
        assert isinstance(stage, Score)
        if stage.scale is not None:
            return float(self.arrays.evaluate(stage.scale, (), None, Memo()))
        return 1 / math.sqrt(self.operands[f"{name}_q"].size(stage.over))
