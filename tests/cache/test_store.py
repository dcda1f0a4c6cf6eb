"""The cache under damage, limits, kills and many processes at once."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from spdsl.cache import places
from spdsl.cache import store as store_module
from spdsl.cache.archive import export, import_
from spdsl.cache.entries import Entry, digest, folder_of
from spdsl.cache.places import made_root
from spdsl.cache.store import Store, bytes_of
from spdsl.diagnostics import SpatError, SpatWarning

ROOT = Path(__file__).parents[2]


def opened(path: Path) -> Store:
    return Store(root=made_root(path / "v1"))


def fill(store: Store, count: int, size: int = 100) -> list[str]:
    keys = [digest("test", str(number)) for number in range(count)]
    for number, key in enumerate(keys):
        files = {"a.bin": bytes([number]) * size, "b.py": f"x = {number}\n".encode()}
        store.put(key, kind="source", name=f"n{number}", files=files, about={"number": number})
    return keys


def content(store: Store, key: str) -> dict[str, bytes] | None:
    found = store.get(key)
    return None if found is None else {name: found.path(name).read_bytes() for name in found.files}


def test_what_is_put_is_got(tmp_path: Path) -> None:
    store = opened(tmp_path)
    keys = fill(store, 3)
    for number, key in enumerate(keys):
        assert content(store, key) == {"a.bin": bytes([number]) * 100, "b.py": f"x = {number}\n".encode()}
        entry = store.get(key)
        assert entry is not None
        assert (entry.name, entry.about, entry.kind) == (f"n{number}", {"number": number}, "source")
    assert store.get(digest("other")) is None
    assert not store.verify()


def test_owner_only(tmp_path: Path) -> None:
    store = opened(tmp_path)
    [key] = fill(store, 1)
    store.results.put("tuning", "k", 1)
    for path in [store.root, *store.root.rglob("*")]:
        assert not path.lstat().st_mode & 0o077, path
    for target in (folder_of(store.root, key), folder_of(store.root, key) / "a.bin"):
        fill(store, 1)
        target.chmod(0o777)
        with pytest.warns(SpatWarning, match="others"):
            assert store.get(key) is None
    store.root.chmod(0o770)
    with pytest.raises(SpatError, match="others can write it"):
        made_root(store.root)


def test_a_link_is_no_entry(tmp_path: Path) -> None:
    store = opened(tmp_path)
    [key] = fill(store, 1)
    moved = folder_of(store.root, key).rename(tmp_path / "elsewhere")
    folder_of(store.root, key).symlink_to(moved)
    with pytest.warns(SpatWarning):
        assert store.get(key) is None


def test_every_flipped_bit_of_an_entry_is_found(tmp_path: Path) -> None:
    store = opened(tmp_path)
    [key] = fill(store, 1, size=8)
    folder = folder_of(store.root, key)
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    places = [(name, at, bit) for name, data in kept.items() for at in range(len(data)) for bit in range(8)]
    for name, at, bit in random.Random(0).sample(places, 600):
        changed = bytearray(kept[name])
        changed[at] ^= 1 << bit
        (folder / name).write_bytes(changed)
        assert len(Store(root=store.root).verify()) == 1, (name, at, bit)
        assert not folder.exists()
        folder.mkdir(mode=0o700)
        for each, data in kept.items():
            (folder / each).touch(mode=0o600)
            (folder / each).write_bytes(data)
    assert not store.verify()


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    store = opened(tmp_path)
    [key] = fill(store, 1)
    (folder_of(store.root, key) / "a.bin").write_bytes(b"evil")
    with pytest.warns(SpatWarning, match=r"SP506.*damaged"):
        made = store.made(key, lambda: {"a.bin": b"good"}, kind="source", name="n")
    assert made.path("a.bin").read_bytes() == b"good"
    (folder_of(store.root, key) / "more").write_bytes(b"")
    with pytest.warns(SpatWarning, match="do not belong"):
        assert store.get(key) is None


def test_flipped_bits_of_the_database_change_no_result(tmp_path: Path) -> None:
    store = opened(tmp_path)
    truth = {str(number): {"ms": number / 7} for number in range(40)}
    for key, value in truth.items():
        store.results.put("tuning", key, value)
    data = store.results.path.read_bytes()
    draw, dropped = random.Random(1), 0
    for _ in range(150):
        changed = bytearray(data)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        store.results.put_aside()
        store.results.path.touch(mode=0o600)
        store.results.path.write_bytes(changed)
        found_by_verify = bool(store.results.problems())
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found = {key: store.results.get("tuning", key) for key in truth}
        assert all(value in (None, truth[key]) for key, value in found.items())
        if found != truth:
            dropped += 1
            assert found_by_verify or warned
    assert dropped > 10  # else nothing was tested


def test_prune_drops_the_least_recently_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    clock = iter(range(2_000_000_000, 2_100_000_000, 7200))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    keys = fill(store, 5, size=1000)
    later = opened(tmp_path)
    assert later.get(keys[0]) is not None  # the oldest is used again
    count, size = later.prune(3200)
    assert (count, size) == (2, 2 * 1006)
    assert [store.get(key) is not None for key in keys] == [True, False, False, True, True]


def test_the_limit_holds(tmp_path: Path) -> None:
    store = Store(root=made_root(tmp_path / "v1"), limit=20_000)
    for number in range(60):
        store.put(digest(str(number)), kind="kernel", name="k", files={"k.cubin": os.urandom(1500)}, about={})
        assert sum(path.stat().st_size for path in (store.root / "entries").rglob("*.cubin")) <= 20_000
    assert store.get(digest("59")) is not None


def test_leftovers_are_swept(tmp_path: Path) -> None:
    store = opened(tmp_path)
    fill(store, 1)
    for folder in ("tmp", "locks"):
        (store.root / folder).mkdir(exist_ok=True)
        for name, age in (("old", 7200), ("new", 10)):
            path = store.root / folder / name
            (path.mkdir if folder == "tmp" else path.touch)()
            os.utime(path, (time.time() - age,) * 2)
    store.prune()
    assert {path.name for path in (store.root / "tmp").iterdir()} == {"new"}
    assert {path.name for path in (store.root / "locks").iterdir()} == {"new"}


def test_export_and_import(tmp_path: Path) -> None:
    store, other = opened(tmp_path / "one"), opened(tmp_path / "two")
    keys = fill(store, 3)
    store.results.put("tuning", "k", {"ms": 1.5})
    archive = tmp_path / "all.tar.gz"
    assert export(store, archive) == (3, 1)
    assert import_(other, archive) == (3, 1)
    assert [content(other, key) for key in keys] == [content(store, key) for key in keys]
    assert other.results.get("tuning", "k") == {"ms": 1.5}
    assert import_(other, archive) == (0, 0)
    third = opened(tmp_path / "three")
    assert import_(third, store.root) == (3, 0)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    store, other = opened(tmp_path / "one"), opened(tmp_path / "two")
    fill(store, 3, size=2000)
    archive = tmp_path / "all.tar.gz"
    export(store, archive)
    data, draw, refused = archive.read_bytes(), random.Random(2), 0
    for _ in range(60):
        changed = bytearray(data)
        changed[draw.randrange(10, len(data))] ^= 1 << draw.randrange(8)
        archive.write_bytes(changed)
        with suppress(SpatError):
            import_(other, archive)
            continue
        refused += 1
    assert refused > 40
    assert not other.verify()
    archive.write_bytes(data[: len(data) // 2])
    with pytest.raises(SpatError, match="SP617"):
        import_(other, archive)


def test_a_full_disk_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, real = opened(tmp_path), store_module.write_entry
    places.temporary.cache_clear()

    def full(root: Path, key: str, **rest: Any) -> Entry:
        if root == store.root:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(root, key, **rest)

    monkeypatch.setattr(store_module, "write_entry", full)
    made: list[int] = []

    def make() -> dict[str, bytes]:
        made.append(1)
        return {"k.bin": b"kernel"}

    key = digest("one")
    with pytest.warns(SpatWarning, match=r"SP508.*No space left"):
        entry = store.made(key, make, kind="kernel", name="k")
    assert entry.path("k.bin").read_bytes() == b"kernel"
    assert store.root not in entry.folder.parents
    again = store.made(digest("two"), make, kind="kernel", name="k")
    assert again.folder != entry.folder
    assert len(made) == 2
    assert store.get(key) is None


def test_results_that_cannot_be_kept_are_no_fault(tmp_path: Path) -> None:
    store = Store(root=tmp_path / "nowhere")
    store.results.put("tuning", "k", 1)
    assert store.results.get("tuning", "k") is None
    assert store.results.all() == ()


def test_sizes() -> None:
    assert [bytes_of(text) for text in ("5", "2G", "1.5 kB", "3MiB")] == [5, 2 << 30, 1536, 3 << 20]
    with pytest.raises(SpatError, match="SP509"):
        bytes_of("many")


def test_a_shared_folder_is_read_and_not_written(tmp_path: Path) -> None:
    shared = opened(tmp_path / "image")
    [key] = fill(shared, 1)
    store = Store(root=made_root(tmp_path / "own" / "v1"), shared=(shared.root,))
    before = sorted(shared.root.rglob("*"))
    assert content(store, key) == content(shared, key)
    assert sorted(shared.root.rglob("*")) == before
    (folder_of(shared.root, key) / "a.bin").write_bytes(b"evil")
    with pytest.warns(SpatWarning, match="is not used"):
        assert store.get(key) is None


# ---------------------------------------------------------------- processes

MAKER = """
import sys, time
from pathlib import Path
from spdsl.cache.entries import digest
from spdsl.cache.store import Store
store, log, slow = Store(root=Path(sys.argv[1])), Path(sys.argv[2]), float(sys.argv[3])
def make(number):
    with log.open("a") as file:
        file.write(f"{number}\\n")
    time.sleep(slow)
    return {"k.bin": bytes([number]) * 5000}
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[4])):
    made = store.made(digest("kernel", str(number)), lambda: make(number), kind="kernel", name="k")
    assert made.path("k.bin").read_bytes() == bytes([number]) * 5000
    store.results.put("tuning", str(number), number)
"""


def start(root: Path, log: Path, slow: float, kernels: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", MAKER, str(root), str(log), str(slow), str(kernels)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_sixteen_processes_make_each_entry_once(tmp_path: Path) -> None:
    store, log = opened(tmp_path), tmp_path / "log"
    processes = [start(store.root, log, 0.02, 4) for _ in range(16)]
    for each in processes:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in processes:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    for each in processes:
        each.communicate(timeout=60)
    assert [each.returncode for each in processes] == [0] * 16
    assert sorted(log.read_text().split()) == ["0", "1", "2", "3"]
    assert len(store.results.all("tuning")) == 4
    assert not store.verify()


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_leave_nothing_broken(tmp_path: Path, kills: int) -> None:
    """Processes that make and prune are killed at random moments; whoever comes next finds a whole cache."""
    log, draw = tmp_path / "log", random.Random(3)
    root = opened(tmp_path).root
    for _ in range(kills):
        process = start(root, log, 0.002, 40)
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        process.stdin.write("\n")
        process.stdin.flush()
        time.sleep(draw.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()
        store = Store(root=root)
        assert not store.verify()
        assert all(result.value == int(result.key) for result in store.results.all())
        if draw.random() < 0.5:
            store.prune(draw.randrange(100_000))
    last = start(root, log, 0.0, 40)
    last.communicate("\n", timeout=60)
    assert last.returncode == 0
    assert len(list(Store(root=root).keys())) == 40
