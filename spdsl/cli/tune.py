"""`spdsl tune`: measure the best candidates of a pattern's kernels on this machine, or the machine itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spdsl.cli.loading import load_pattern
from spdsl.cli.options import (
    LENGTH,
    LENGTH_HELP,
    MOST_TOKENS,
    DtypeOption,
    GroupsOption,
    HeadDimOption,
    HeadsOption,
    JsonOption,
    LayerOption,
    ParameterOption,
    ValueDimOption,
    head_counts,
    known_dtype,
    parse_parameters,
)
from spdsl.cli.output import note, print_json, print_table
from spdsl.cli.progress import progress

if TYPE_CHECKING:
    from concurrent.futures import Future

    from torch import Tensor

    from spdsl.analysis.plans import Kind, Plan
    from spdsl.analysis.workers import Workers
    from spdsl.samples import Sizes
    from spdsl.stage_tuning import TunedStages
    from spdsl.trials import Bench
    from spdsl.tuning import Tuned


def tune(
    pattern: Annotated[
        str | None,
        typer.Argument(help="A pattern, as elsewhere; without one the machine is measured.", metavar="PATTERN"),
    ] = None,
    parameter: ParameterOption = None,
    given: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=FILE", help="An input, from an .npz, .npy or .pt file.")
    ] = None,
    n: Annotated[int | None, typer.Option("-n", help=LENGTH_HELP.format(LENGTH), min=1, max=MOST_TOKENS)] = None,
    nq: Annotated[int | None, typer.Option(help="Number of queries, the last ones; all by default.", min=1)] = None,
    batch: Annotated[int, typer.Option(help="Sequences.", min=1)] = 1,
    heads: HeadsOption = 8,
    groups: GroupsOption = None,
    head_dim: HeadDimOption = 128,
    value_dim: ValueDimOption = None,
    dtype: DtypeOption = "bf16",
    layer: LayerOption = None,
    backward: Annotated[bool, typer.Option(help="Measure the backward pass too.")] = True,
    budget: Annotated[float | None, typer.Option(help="Seconds after which no other candidate is begun.")] = None,
    device: Annotated[str, typer.Option(help="One of cpu, cuda; cuda where there is one.")] = "auto",
    gpus: Annotated[
        int,
        typer.Option(help="How many GPUs of this machine, all of one kind, measure side by side.", min=1),
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed for inputs that are not given.")] = 0,
    real: Annotated[
        Path | None,
        typer.Option(
            "--qk",
            metavar="FILE",
            help="A file with `q` and `k` of (heads, tokens, dim): what a pattern selects of them is what is walked.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the model's best candidates on this GPU and keep the fastest for all calls of this kind.

    Lengths and parameters count rounded up to powers of two.  What was measured before is not measured again.
    Of a pattern that selects by queries and keys, the kernels of each softmax are timed over what it selects.

    \b
    Examples:
      spdsl tune streaming -p window=1024 -n 32768 --heads 16
      spdsl tune nsa --qk layer12.npz
      spdsl tune documents --input doc=ids.npz -n 16384 --budget 30 --gpus 8
      spdsl tune
    """
    if pattern is None:
        _machine(device, as_json=as_json)
        return
    heads, groups = head_counts(heads, groups)
    known_dtype(dtype)
    tensors = None
    if real is not None:
        from spdsl.cli.tensors import queries_and_keys

        tensors = queries_and_keys(real)
        (heads, nq, head_dim), (groups, n, _) = (each.shape[1:] for each in tensors)
        if heads % groups:
            help = f"`{real}` has {heads} query heads, which {groups} key heads cannot share"
            raise typer.BadParameter(help, param_hint="--qk")
    from spdsl.analysis.candidates import MOST
    from spdsl.codegen.builders import builders_for, processors

    # They load the compiler while this process loads torch, where there are processors for both.
    with builders_for(min(MOST, processors() // 2)) as builders, _others(gpus) as others:
        from spdsl.cli.tensors import length_of, make_inputs, note_generated
        from spdsl.pipeline import key_of
        from spdsl.samples import Sizes

        loaded, values = load_pattern(pattern, parse_parameters(parameter))
        n = length_of(loaded, values, n, LENGTH, layer)
        sizes = Sizes(batch=batch, heads=heads, groups=groups, nq=nq or n, n=n, head_dim=head_dim)
        inputs, generated = make_inputs(loaded, values, given, sizes, layer=layer, seed=seed)
        wanted = ToTune(
            key=key_of(loaded.checked, values, layer, None, False),
            inputs=inputs,
            sizes=sizes,
            value_dim=value_dim or head_dim,
            dtype=dtype,
            seed=seed,
            given=tensors,
        )
        if loaded.checked.graph is not None:
            if gpus > 1:
                help = f"the kernels of `{loaded.name}` are timed over what it selects, on the GPU that has selected"
                raise typer.BadParameter(help, param_hint="--gpus")
            note_generated(generated if real is not None else ("q", "k", *generated))
            _report_stages(_measured_stages(wanted, device, builders, backward, budget, quiet=as_json), as_json=as_json)
            return
        if real is not None:
            help = f"`{loaded.name}` does not look at queries and keys: leave `--qk` out"
            raise typer.BadParameter(help, param_hint="--qk")
        note_generated(generated)
        found = _measured(wanted, device, others, builders, backward, budget, quiet=as_json)
        _report(found, as_json=as_json)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ToTune:
    """The calls to tune for, as other processes are told of them: the pattern with its parameters as a ``key``, its
    inputs on the CPU, and the sizes of the other tensors; ``given`` are q and k of one sequence, where they are not
    drawn."""

    key: str
    inputs: dict[str, Tensor]
    sizes: Sizes
    value_dim: int
    dtype: str
    seed: int
    given: tuple[Tensor, Tensor] | None = None

    def on(self, device: str) -> tuple[str, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """The first arguments of `spdsl.tuning.tune`, on a device."""
        import torch

        from spdsl.cli.measure import DTYPES, device_of

        where, sizes = device_of(device), self.sizes
        generator = torch.Generator(where).manual_seed(self.seed)

        def draw(heads: int, rows: int, dim: int) -> Tensor:
            shape = (sizes.batch, heads, rows, dim)
            return torch.randn(shape, generator=generator, device=where, dtype=DTYPES[self.dtype])

        if self.given is not None:
            # One sequence, which stands for all.
            q, k = (each.to(where, DTYPES[self.dtype]).expand(sizes.batch, -1, -1, -1) for each in self.given)
        else:
            q, k = draw(sizes.heads, sizes.nq, sizes.head_dim), draw(sizes.groups, sizes.n, sizes.head_dim)
        v = draw(sizes.groups, sizes.n, self.value_dim)
        return self.key, q, k, v, {name: each.to(where) for name, each in self.inputs.items()}


def _measured(
    wanted: ToTune,
    device: str,
    others: dict[str, Workers],
    builders: Workers,
    backward: bool,
    budget: float | None,
    *,
    quiet: bool,
) -> Tuned:
    """Measure the candidates on a device, and on ``others`` beside it."""
    from spdsl.cli.measure import note_first_kernels
    from spdsl.tuning import tune as measure

    held = [(name, workers, workers.submit(_hold, wanted=wanted, device=name)) for name, workers in others.items()]
    benches = [partial(_asked, *each) for each in held]
    note_first_kernels()
    with progress("planning", quiet=quiet, timing=True) as watch:
        made = wanted.on("cuda:0" if others else device)
        return measure(*made, backward=backward, budget=budget, others=benches, builders=builders, watch=watch)


def _measured_stages(
    wanted: ToTune, device: str, builders: Workers, backward: bool, budget: float | None, *, quiet: bool
) -> TunedStages:
    """Measure the candidates of each softmax of a pattern that selects."""
    from spdsl.cli.measure import note_first_kernels
    from spdsl.stage_tuning import tune_stages

    note_first_kernels()
    with progress("selecting", quiet=quiet, timing=True) as watch:
        made = wanted.on(device)
        return tune_stages(*made, backward=backward, budget=budget, builders=builders, watch=watch)


@contextmanager
def _others(gpus: int) -> Iterator[dict[str, Workers]]:
    """A process for each of so many GPUs but the first, which begins to start here.

    Raises:
        SpatError: there are not so many GPUs of one kind (SP613).
    """
    with ExitStack() as stack:
        found: dict[str, Workers] = {}
        if gpus > 1 and _are_there(gpus):
            from spdsl.analysis.workers import Workers

            for number in range(1, gpus):
                found[f"cuda:{number}"] = workers = stack.enter_context(Workers(1))
                workers.submit(_get_ready, device=f"cuda:{number}")
        yield found


def _are_there(count: int) -> bool:
    """Whether there are so many GPUs of one kind; without any, that there is nothing to measure on is said later.

    Raises:
        SpatError: there are fewer, or of several kinds (SP613).
    """
    import torch

    from spdsl.diagnostics import error

    here = torch.cuda.device_count()
    if here == 0:
        return False
    if count > here:
        there = "one GPU" if here == 1 else f"{here} GPUs"
        raise error("SP613", f"`--gpus {count}`, but this machine has {there}", help="Ask for as many as there are.")
    names = sorted({torch.cuda.get_device_name(number) for number in range(count)})
    if len(names) > 1:
        raise error(
            "SP613",
            f"the first {count} GPUs are of several kinds: {', '.join(names)}",
            help="Choose those of one kind with `CUDA_VISIBLE_DEVICES`: times of one say nothing of the other.",
        )
    return True


def _get_ready(device: str) -> None:
    """In the process of a device: load what takes long to load."""
    import spdsl.trials
    from spdsl.cli.measure import device_of

    del spdsl
    device_of(device)


_benches: dict[str, Bench] = {}
"""In the process of a device: what times kernels there."""


def _hold(wanted: ToTune, device: str) -> None:
    from spdsl.trials import bench_of

    _benches[device] = bench_of(*wanted.on(device))


def _time_on(device: str, made: Plan, kind: Kind) -> float | None:
    return _benches[device](made, kind)


def _asked(device: str, workers: Workers, held: Future[None], made: Plan, kind: Kind) -> float | None:
    """The time of a kernel on a device, from its process.

    Raises:
        SpatError: that has ended (SP523).
    """
    try:
        held.result()
        return workers.submit(_time_on, device=device, made=made, kind=kind).result()
    except (OSError, EOFError, TimeoutError):
        from spdsl.diagnostics import error

        raise error(
            "SP523", f"the process that measures on `{device}` broke off", help="tune again: what was measured is kept"
        ) from None


def _report(found: Tuned, *, as_json: bool) -> None:
    if as_json:
        candidates = _records(found)
        print_json({"ok": True, "gpu": found.situation.gpu, "complete": found.complete, "candidates": candidates})
        return
    print_table(("kernel", "tiles", "predicted, ms", "measured, ms", ""), _rows(found))
    if not found.complete:
        note(_LATE)


def _report_stages(found: TunedStages, *, as_json: bool) -> None:
    if as_json:
        softmaxes = [{"name": name, "candidates": _records(each)} for name, each in found.softmaxes]
        gpu = found.softmaxes[0][1].situation.gpu if found.softmaxes else None
        print_json({"ok": True, "gpu": gpu, "complete": found.complete, "softmaxes": softmaxes})
        return
    if not found.softmaxes:
        note("no softmax of this pattern runs kernels that have tiles to choose from: there is nothing to tune")
        return
    rows = [(name, *row) for name, each in found.softmaxes for row in _rows(each)]
    print_table(("softmax", "kernel", "tiles", "predicted, ms", "measured, ms", ""), rows)
    if not found.complete:
        note(_LATE)


_LATE = "time ran out before all candidates were measured; tune again to go on"


def _records(found: Tuned) -> list[dict[str, object]]:
    from spdsl.choices import record_of

    best = found.best
    return [
        {
            "kind": each.kind,
            "tiles": record_of(((each.kind, each.tiles),))[each.kind],
            "predicted": each.predicted,
            "seconds": each.seconds,
            "own": each.own,
            "best": best.get(each.kind) is each,
        }
        for each in found.measured
    ]


def _rows(found: Tuned) -> list[tuple[str, ...]]:
    from spdsl.trials import text_of

    best, rows = found.best, list[tuple[str, ...]]()
    for each in sorted(found.measured, key=lambda one: (one.kind, one.seconds or 1e9)):
        marks = [
            word for word, holds in (("taken", best.get(each.kind) is each), ("the plan's own", each.own)) if holds
        ]
        measured = "does not run" if each.seconds is None else f"{each.seconds * 1e3:.4f}"
        predicted = "" if each.predicted is None else f"{each.predicted * 1e3:.4f}"
        rows.append((each.kind, text_of(each.tiles), predicted, measured, ", ".join(marks)))
    return rows


def _machine(device: str, *, as_json: bool) -> None:
    from spdsl.cli.measure import device_of
    from spdsl.profiling import measure_device

    found = measure_device(device_of(device))
    if as_json:
        print_json({"ok": True, **{name: value for name, value in found.as_dict().items() if name != "rates"}})
        return
    typer.echo(
        f"{found.name}: matrix products {found.matrix_rate / 1e12:.0f} TFLOP/s, copies {found.copy_rate / 1e12:.2f} "
        f"TB/s, start of a kernel {found.launch * 1e6:.1f} µs; kernels take {found.scale:.2f} times as long as shipped"
    )
