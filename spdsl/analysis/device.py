"""What a GPU takes for the parts of a kernel's work: measured, shipped with the package, or derived from data sheets.

Costs are seconds of one multiprocessor, in the steady state in which it runs as many programs as fit; so a kernel's
work divided by the number of multiprocessors is its time, but for its start and its end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, TypeAlias

from spdsl.analysis.plans import Kind, Tiles
from spdsl.diagnostics import error

Origin: TypeAlias = Literal["measured", "shipped", "data sheet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """The costs of one kind of kernel with one choice of tiles: seconds of a multiprocessor.

    ``program`` is what a program takes beside its tiles, ``full`` and ``masked`` a tile of either kind; ``operation``
    and ``load`` what each of a mask's adds to a masked tile, ``extra`` what each of a bias adds to any tile, ``listed``
    what finding a tile in memory does, and ``cut`` what finding its ends there adds to a program.  ``alone`` says how
    many times its cost a tile takes where a program has a multiprocessor to itself: costs are those of one among
    others, which hide its waiting and share its power; ``tail`` is the share of the longest program that is not hidden
    behind others: little is left in the end where the longest programs of all heads start first, half where heads come
    one after the other.
    """

    kind: Kind
    head_dim: int
    descriptors: bool
    tiles: Tiles
    program: float
    full: float
    masked: float
    operation: float
    load: float
    extra: float
    listed: float
    cut: float = 0.0
    alone: float = 1.0
    tail: float = 0.5


COSTS = ("program", "full", "masked", "operation", "load", "extra", "listed", "cut")
"""The costs of a rate that grow with the work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DensePass:
    """A pass of the best dense attention (cuDNN): operations a second over the pairs that it computes (``rate``), the
    seconds of its ``start`` and of what runs beside it, what a ``program`` takes beside its tiles, in tiles, the share
    of the longest program that others do not hide (``tail``), and how many times as long it takes where no mask is
    given and tiles reach beyond the last position (``ragged``)."""

    rate: float
    start: float
    program: float
    tail: float
    ragged: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """The best dense attention at one head dim."""

    head_dim: int
    forward: DensePass
    backward: DensePass

    def faster(self, times: float) -> Dense:
        """The same on multiprocessors, or with so many of them, that it is ``times`` as fast."""
        forward, backward = (replace(each, rate=each.rate * times) for each in (self.forward, self.backward))
        return replace(self, forward=forward, backward=backward)

    @staticmethod
    def of(record: Mapping[str, Any]) -> Dense:
        """What `asdict` wrote."""
        passes = {name: DensePass(**record[name]) for name in ("forward", "backward")}
        return Dense(head_dim=record["head_dim"], **passes)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """A GPU: its rates and the costs of kernels on it.

    ``matrix_rate`` is in operations a second (16-bit products), ``copy_rate`` in bytes a second, read and written,
    ``launch`` in seconds.  ``origin`` says where the numbers come from, and ``about`` which measurements; ``scale`` by
    how much those of the table were multiplied to fit this device.
    """

    name: str
    target: str
    multiprocessors: int
    matrix_rate: float
    copy_rate: float
    launch: float
    origin: Origin
    rates: tuple[Rate, ...]
    dense: tuple[Dense, ...]
    about: str = ""
    scale: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """The profile as JSON keeps it."""
        return asdict(self)

    @staticmethod
    def of(record: Mapping[str, Any]) -> DeviceProfile:
        """The profile that `as_dict` wrote.

        Raises:
            KeyError, TypeError: another version of spdsl wrote it.
        """
        rates = tuple(Rate(**{**each, "tiles": Tiles(**each["tiles"])}) for each in record["rates"])
        dense = tuple(map(Dense.of, record["dense"]))
        return DeviceProfile(**{**record, "rates": rates, "dense": dense})

    def scaled(self, factor: float, **changes: Any) -> DeviceProfile:
        """The profile with every cost multiplied."""
        rates = tuple(replace(each, **{name: getattr(each, name) * factor for name in COSTS}) for each in self.rates)
        dense = tuple(each.faster(1 / factor) for each in self.dense)
        return replace(self, **{"rates": rates, "dense": dense, "scale": self.scale * factor, **changes})


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSheet:
    """What a maker says of a GPU: dense 16-bit rate in operations a second, memory in bytes a second."""

    name: str
    target: str
    multiprocessors: int
    matrix_rate: float
    copy_rate: float


DATA_SHEETS = (
    DataSheet(name="NVIDIA A100", target="sm_80", multiprocessors=108, matrix_rate=312e12, copy_rate=1.94e12),
    DataSheet(name="NVIDIA H100", target="sm_90", multiprocessors=132, matrix_rate=989e12, copy_rate=3.35e12),
    DataSheet(name="NVIDIA H200", target="sm_90", multiprocessors=132, matrix_rate=989e12, copy_rate=4.8e12),
    DataSheet(name="NVIDIA B200", target="sm_100", multiprocessors=148, matrix_rate=2250e12, copy_rate=8e12),
    DataSheet(name="AMD MI300X", target="gfx942", multiprocessors=304, matrix_rate=1307e12, copy_rate=5.3e12),
)
"""Makers' data sheets: A100 80 GB SXM, H100 SXM, H200 SXM, B200, MI300X."""

_COPIED = 0.85
"""The share of a data sheet's memory rate that copies reach."""


@lru_cache(maxsize=1)
def shipped() -> tuple[DeviceProfile, ...]:
    """The profiles that come with the package."""
    folder = files("spdsl.analysis").joinpath("profiles")
    found = sorted(each.name for each in folder.iterdir() if each.name.endswith(".json"))
    return tuple(DeviceProfile.of(json.loads(folder.joinpath(name).read_text(encoding="utf-8"))) for name in found)


def profile_for(name: str | None, target: str, measured: Iterable[DeviceProfile] = ()) -> DeviceProfile:
    """The best profile there is of the GPU ``name``, or where none is named of a GPU of ``target``.

    ``measured`` are those of this machine's cache.

    Raises:
        SpatError: nothing is known of such a GPU (SP520).
    """
    for each in (*measured, *shipped()):
        if each.target == target and name in (None, each.name):
            return each
    for sheet in DATA_SHEETS:
        if sheet.target == target and (name is None or name.startswith(sheet.name)):
            return _derived(sheet)
    # Others of the same kind differ in how many multiprocessors they have; `spdsl tune` measures that.
    for each in shipped():
        if each.target == target:
            return replace(each, name=name or each.name, origin="data sheet")
    for sheet in DATA_SHEETS:
        if sheet.target == target:
            return replace(_derived(sheet), name=name or sheet.name)
    targets = (*(each.target for each in shipped()), *(each.target for each in DATA_SHEETS))
    devices = ", ".join(dict.fromkeys(targets))
    raise error("SP520", f"there is no cost model for `{name or target}`", help=f"targets with one: {devices}")


def _derived(sheet: DataSheet) -> DeviceProfile:
    """The profile of a GPU of which only the data sheet is known: costs of the one measured, by the ratio of the
    multiprocessors' matrix rates on paper."""
    base = next(each for each in shipped() if each.name.startswith("NVIDIA H200"))
    paper = next(each for each in DATA_SHEETS if base.name.startswith(each.name))
    factor = (paper.matrix_rate / paper.multiprocessors) / (sheet.matrix_rate / sheet.multiprocessors)
    per_device = sheet.multiprocessors / base.multiprocessors
    found = base.scaled(factor)
    return replace(
        found,
        dense=tuple(each.faster(per_device) for each in found.dense),
        about=f"costs of {base.name} by the ratio of matrix rates on paper",
        name=sheet.name,
        target=sheet.target,
        multiprocessors=sheet.multiprocessors,
        matrix_rate=sheet.matrix_rate * base.matrix_rate / paper.matrix_rate,
        copy_rate=sheet.copy_rate * _COPIED,
        origin="data sheet",
    )
