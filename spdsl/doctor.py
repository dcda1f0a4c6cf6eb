"""What works on this machine, what does not, and what to do about it: what `spdsl doctor` finds.

From nothing to `Check`s.  Each looks at one thing and changes nothing; a check that fails does not end the others.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from spdsl import __version__
from spdsl.cache.entries import DamagedError, read_entry
from spdsl.cache.places import cache_root, is_private, shared_roots
from spdsl.cache.store import Store, store
from spdsl.diagnostics import SpatError

Status: TypeAlias = Literal["works", "note", "fails"]

SETTINGS = {
    "SPDSL_BACKEND": "the back end where a call names none",
    "SPDSL_CACHE_DIR": "the folder of the cache",
    "SPDSL_CACHE_LIMIT": "how much the cache may hold",
    "SPDSL_CACHE_PATH": "folders of kernels that are read only",
    "SPDSL_STEPS_LIMIT": "how much memory the steps of repeated calls may hold",
    "SPDSL_TRACEBACK": "1 shows where a fault of spdsl lies",
    "SPDSL_TUNE": "whether calls tune",
    "SPDSL_VERIFY": "1 checks values on a GPU at once",
}
"""The variables of the environment that spdsl reads."""

_EXTRAS = (("numpy", "tables, pictures and Triton's interpreter"), ("matplotlib", "`spdsl view` and plots"),
           ("pygls", "`spdsl lsp`"), ("transformers", "models"))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at: what was found, and, unless it simply works, what to do about it."""

    name: str
    status: Status
    found: str
    help: str = ""


def examine() -> Iterator[Check]:
    """All checks, one after the other as they are made; the first ones take no time."""
    looks: tuple[Callable[[], Iterator[Check]], ...] = (
        _versions,
        _packages,
        _extras,
        _proofs,
        _torch,
        _pairing,
        _cpu,
        _triton,
        _cache,
        _settings,
    )
    for look in looks:
        yield from _looked(look)


def _looked(look: Callable[[], Iterator[Check]]) -> tuple[Check, ...]:
    """What one look finds; where it breaks off, that."""
    name = look.__name__.strip("_")
    try:
        return tuple(look())
    except SpatError as mistake:
        return (Check(name=name, status="fails", found=mistake.message, help=mistake.help),)
    except Exception as fault:  # noqa: BLE001 — whatever is broken here is what is being looked for
        what = f"{type(fault).__name__}: {fault}".split("\n", 1)[0][:200]
        return (Check(name=name, status="fails", found=what, help="Please report it if you cannot mend it."),)


def version_of(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def numbers(version: str) -> tuple[int, ...]:
    """The first numbers of a version, for comparison: ``2.11.0+cu128`` gives (2, 11, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _versions() -> Iterator[Check]:
    yield Check(name="spdsl", status="works", found=f"{__version__}, in {Path(__file__).parent}")
    told = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    yield Check(name="Python", status="works", found=told)


def _packages() -> Iterator[Check]:
    """What spdsl needs, by its own metadata."""
    try:
        wanted = importlib.metadata.requires("spdsl") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check(name="packages", status="note", found="spdsl is not installed, but found on the path",
                    help="`pip install .` says which packages it needs.")  # fmt: skip
        return
    found, wrong = [], []
    for line in wanted:
        requirement, _, marker = line.partition(";")
        name = re.split(r"[<>=!~\[ (]", requirement.strip(), maxsplit=1)[0]
        if "extra" in marker or ("Linux" in marker and platform.system() != "Linux"):
            continue
        version = version_of(name)
        least = re.search(r">=\s*([\d.]+)", requirement)
        if version is None or (least and numbers(version) < numbers(least[1])):
            wrong.append(f"{requirement.strip()} ({'missing' if version is None else f'is {version}'})")
        else:
            found.append(f"{name} {version}")
    if wrong:
        names = " ".join(f"'{each.partition(' (')[0]}'" for each in wrong)
        yield Check(name="packages", status="fails", found=", ".join(wrong), help=f"`pip install {names}`")
    else:
        yield Check(name="packages", status="works", found=", ".join(found))


def _extras() -> Iterator[Check]:
    have = [f"{name} {version_of(name)}" for name, _ in _EXTRAS if version_of(name)]
    lack = [f"{name} for {use}" for name, use in _EXTRAS if not version_of(name)]
    extra = ", ".join(have) or "none"
    yield Check(name="extras", status="works", found=extra + (f"; not installed: {', '.join(lack)}" if lack else ""))


def _proofs() -> Iterator[Check]:
    from spdsl.library import text_of
    from spdsl.pipeline import read
    from spdsl.prove import Settings, Target, claim

    checked = read(text_of("streaming"))
    verdict = claim("causal", [Target(checked=checked)], Settings(heads=1, groups=1)).verdict
    if verdict == "proven":
        yield Check(name="proofs", status="works", found="isl answers")
    else:
        yield Check(name="proofs", status="fails", found=f"isl says of `streaming` that causal is {verdict}",
                    help="`pip install --force-reinstall islpy`")  # fmt: skip


def _torch() -> Iterator[Check]:
    import torch

    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU alone"
    if not torch.cuda.is_available():
        present = Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()
        found = f"none; torch {torch.__version__} is built for {build}"
        if present and not (cuda or hip):
            help = "This machine has one: install a torch for it, https://pytorch.org/get-started."
            yield Check(name="GPU", status="fails", found=found, help=help)
        elif present:
            help = "This machine has one, but torch does not see it: compare its driver with the CUDA of torch."
            yield Check(name="GPU", status="fails", found=found, help=help)
        else:
            help = "Calls run on the CPU; kernels are compiled for GPUs elsewhere by `spdsl compile`."
            yield Check(name="GPU", status="note", found=found, help=help)
        return
    for number in range(torch.cuda.device_count()):
        each = torch.cuda.get_device_properties(number)
        kind = str(each.gcnArchName).split(":")[0] if hip else f"sm_{each.major}{each.minor}"
        size = f"{each.total_memory / 2**30:.0f} GB"
        found = f"{each.name}, {kind}, {size}; torch {torch.__version__} for {build}"
        if not hip and each.major < 8:
            help = 'Kernels need compute capability 8.0 (Ampere) or later; use `backend="cpu"`.'
            yield Check(name=f"GPU {number}", status="note", found=found, help=help)
        else:
            yield Check(name=f"GPU {number}", status="works", found=found)


def _pairing() -> Iterator[Check]:
    """Versions that are known not to go together."""
    triton, numpy = version_of("triton"), version_of("numpy")
    if triton is None:
        return
    for line in importlib.metadata.requires("torch") or []:
        wanted = re.match(r"triton\s*\(?==\s*([\d.]+)", line)
        if wanted and numbers(triton)[:2] != numbers(wanted[1])[:2]:
            found = f"triton {triton}, but torch {version_of('torch')} was made with {wanted[1]}"
            yield Check(name="triton and torch", status="note", found=found, help=f"`pip install triton=={wanted[1]}`")
    if numpy is not None and numbers(triton)[:2] <= (3, 6) and numbers(numpy) >= (2, 4):
        found = f"the interpreter of triton {triton} fails with numpy {numpy}"
        help = "Only TRITON_INTERPRET=1 is affected: `pip install 'numpy<2.4'`."
        yield Check(name="triton and numpy", status="note", found=found, help=help)
    else:
        found = f"triton {triton} and numpy {numpy}" if numpy else f"triton {triton}"
        yield Check(name="triton", status="works", found=found)


def _cpu() -> Iterator[Check]:
    error = _try("cpu", "cpu")
    yield _verdict("back end cpu", error, "Reinstall torch: `pip install --force-reinstall torch`.")


def _triton() -> Iterator[Check]:
    import torch

    if importlib.util.find_spec("triton") is None:
        help = "`pip install triton`" if platform.system() == "Linux" else "It needs Linux; all else works here."
        yield Check(name="back end triton", status="note", found="triton is not installed", help=help)
        return
    if not torch.cuda.is_available():
        yield Check(name="back end triton", status="note", found="nothing to run on; `spdsl compile` works",
                    help="Kernels run where there is a GPU.")  # fmt: skip
        return
    compiler = os.environ.get("CC") or next((each for each in ("cc", "gcc", "clang") if shutil.which(each)), None)
    if compiler is None:
        yield Check(name="C compiler", status="fails", found="none, but triton builds its launchers with one",
                    help="Install gcc: `apt-get install gcc`, or name one in CC.")  # fmt: skip
        return
    error = _try("triton", "cuda")
    yield _verdict("back end triton", error, "`SPDSL_TRACEBACK=1 spdsl run streaming --device cuda` says more.")


def _verdict(name: str, error: float, help: str) -> Check:
    if error <= 1e-5:
        return Check(name=name, status="works", found=f"output and gradients agree with the reference ({error:.0e})")
    return Check(name=name, status="fails", found=f"the error against the reference is {error:.0e}", help=help)


def _try(backend: str, device: str) -> float:
    """The largest relative error of a small attention and its gradients on a back end."""
    import torch

    import spdsl

    generator = torch.Generator().manual_seed(0)
    attend = spdsl.compile("streaming", window=24, sinks=2, backend=backend)
    inputs = [torch.randn(1, heads, 96, 16, generator=generator).to(device) for heads in (2, 1, 1)]
    here = [each.clone().requires_grad_() for each in inputs]
    there = [each.double().clone().requires_grad_() for each in inputs]
    out, wanted = attend(*here), attend.reference(*there)
    assert isinstance(out, torch.Tensor)
    assert isinstance(wanted, torch.Tensor)
    seed = torch.randn(out.shape, generator=generator).to(device)
    gradients = torch.autograd.grad(out, here, seed), torch.autograd.grad(wanted, there, seed.to(wanted.dtype))
    pairs = [(out, wanted), *zip(*gradients, strict=True)]
    return max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)


def _cache() -> Iterator[Check]:
    root = cache_root()
    if not root.exists():
        yield Check(name="cache", status="works", found=f"{root}, made when it is first needed")
        return
    if not is_private(root):
        yield Check(name="cache", status="fails", found=f"{root} belongs to another user, or others can write it",
                    help=f"`chmod -R go-w {root}`, or name another folder in SPDSL_CACHE_DIR.")  # fmt: skip
        return
    here = store()
    keys = list(here.keys())
    sizes = [size for key in keys if (size := _size(here, key)) is not None]
    found = f"{root}: {len(sizes)} entries, {sum(sizes) / 2**20:.1f} of {here.limit / 2**20:,.0f} MB"
    problems = (*range(len(keys) - len(sizes)), *here.results.problems())
    if problems:
        yield Check(name="cache", status="note", found=f"{found}; {len(problems)} damaged",
                    help="`spdsl cache verify` drops what is damaged; it is made again.")  # fmt: skip
    elif not os.access(root, os.W_OK):
        yield Check(name="cache", status="note", found=f"{found}; it cannot be written",
                    help="Name a folder of your own in SPDSL_CACHE_DIR, or every process compiles anew.")  # fmt: skip
    else:
        yield Check(name="cache", status="works", found=f"{found}; every byte as it was written")
    for each in shared_roots():
        if not each.is_dir():
            yield Check(name="SPDSL_CACHE_PATH", status="note", found=f"{each} is no folder", help="Take it out.")


def _size(here: Store, key: str) -> int | None:
    """The bytes of an entry; None if it is damaged."""
    try:
        return read_entry(here.root, key).size
    except (DamagedError, OSError):
        return None


def _settings() -> Iterator[Check]:
    given = sorted(name for name in os.environ if name.startswith("SPDSL_"))
    for name in given:
        if name not in SETTINGS:
            close = difflib.get_close_matches(name, SETTINGS, n=1)
            help = f"Did you mean {close[0]}?" if close else f"There are {', '.join(SETTINGS)}."
            yield Check(name="settings", status="note", found=f"{name} means nothing to spdsl", help=help)
    known = [f"{name}={os.environ[name]}" for name in given if name in SETTINGS]
    yield Check(name="settings", status="works", found=", ".join(known) or "none of SPDSL_… is set")
    if os.environ.get("TRITON_INTERPRET") == "1":
        yield Check(name="settings", status="note", found="TRITON_INTERPRET=1: kernels are interpreted, and very slow",
                    help="Unset it, except for tests.")  # fmt: skip
