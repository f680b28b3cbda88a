"""Reading prepared pixels. How they are made is tested in tests/test_prepare.py."""

import json
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from medvlp.errors import DataError, UnreadableItemError
from medvlp.io.cache import PixelCache, verify
from medvlp.io.cache_format import (
    INDEX_SCHEMA,
    PreparedImage,
    cache_folder,
    finish,
    mask_key,
    read_table,
    relative_paths,
    write_paths,
    write_shard,
    write_table,
)

RULE = "pad:8"
SHAPES = ("rectangle 0 0 3 3", "ellipse 1 1 5 5")


def _geometry(i: int) -> tuple[int, ...]:
    return (i, 0, 9, 9, 5 + i % 3, 4, 0, 0, 5 + i % 3, 4)


def _pixels(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (4, 5 + i % 3), dtype=np.uint8)


def _mask(i: int) -> np.ndarray:
    return np.random.default_rng(100 + i).random((4, 5 + i % 3)) > 0.5


def _image(root: Path, i: int) -> PreparedImage:
    name = f"a/{i:03d}.png"
    status = (root / name).stat()
    common = (name, status.st_size, status.st_mtime_ns, bytes(16))
    if i == 3:
        return PreparedImage(*common, reason="broken", message="cannot read \x00: broken; get it again", item_id="003")
    masks = {}
    if i % 2:
        bits = _mask(i)
        masks = {mask_key(SHAPES, (9, 9), _geometry(i)): (*bits.shape, np.packbits(bits))}
    return PreparedImage(*common, _pixels(i), _geometry(i), (9, 9), masks)


def make(base: Path, count: int = 7, per_shard: int = 3) -> tuple[Path, Path, Path]:
    """A cache without decoding anything; returns (out, root, folder)."""
    out, root = base / "out", base / "corpus"
    (root / "a").mkdir(parents=True)
    for i in range(count):
        (root / f"a/{i:03d}.png").write_bytes(b"x" * (i + 1))
    folder = cache_folder(out, "rsna", "standard", RULE)
    folder.mkdir(parents=True)
    write_paths(folder, [f"a/{i:03d}.png" for i in range(count)], per_shard)
    for number, start in enumerate(range(0, count, per_shard)):
        write_shard(folder, number, [_image(root, i) for i in range(start, min(start + per_shard, count))], {})
    description = {"corpus": "rsna", "intensity": "standard", "rule": RULE, "packages": {}}
    finish(folder, -(-count // per_shard), description, [])
    return out, root, folder


@pytest.fixture
def cached(tmp_path):
    return make(tmp_path)


def _open(out: Path, root: Path) -> PixelCache:
    return PixelCache.open(out, "rsna", "standard", RULE, root)


def test_every_image_comes_back(cached):
    out, root, _ = cached
    cache = _open(out, root)
    assert len(cache) == 7
    order = [6, 0, 4, 2, 5, 1]
    positions = cache.positions([str(root / f"a/{i:03d}.png") for i in order])
    assert positions.dtype == np.int64
    for i, position in zip(order, positions, strict=True):
        pixels, geometry, size = cache.read(int(position))
        assert np.array_equal(pixels, _pixels(i))
        assert (geometry, size) == (_geometry(i), (9, 9))
        assert all(type(v) is int for v in (*geometry, *size))
        pixels[:] = 0  # a copy: the cache keeps its own
        assert np.array_equal(cache.read(int(position))[0], _pixels(i))
    with pytest.raises(IndexError):
        cache.read(7)


def test_masks(cached):
    out, root, _ = cached
    cache = _open(out, root)
    for i in (1, 5):
        stored = cache.mask(SHAPES, (9, 9), _geometry(i))
        assert stored is not None
        assert stored.dtype == bool
        assert np.array_equal(stored, _mask(i))
        stored[:] = False
    # another order, size or geometry is another mask
    assert cache.mask(SHAPES[::-1], (9, 9), _geometry(1)) is None
    assert cache.mask(SHAPES, (9, 8), _geometry(1)) is None
    assert cache.mask(SHAPES, (9, 9), _geometry(2)) is None
    assert cache.mask((), (9, 9), _geometry(2)).tolist() == np.zeros((4, 7), bool).tolist()


def test_an_unreadable_image_raises_its_error_wherever_the_corpus_is(cached):
    out, root, _ = cached
    moved = root.rename(root.with_name("moved"))
    cache = _open(out, moved)
    (position,) = cache.positions([str(moved / "a/003.png")])
    with pytest.raises(UnreadableItemError) as caught:
        cache.read(int(position))
    assert str(caught.value) == f"cannot read {moved / 'a/003.png'}: broken; get it again"
    assert (caught.value.item_id, caught.value.reason) == ("003", "broken")


def test_paths_may_be_written_in_other_ways(cached, monkeypatch):
    out, root, _ = cached
    monkeypatch.chdir(root.parent)
    absolute, relative = str(root / "a/001.png"), "corpus/a/001.png"
    for at in (root, Path("corpus"), Path("./corpus/")):
        cache = _open(out, at)
        assert cache.positions([absolute, relative]).tolist() == [1, 1]
    monkeypatch.chdir(root)
    assert _open(out, ".").positions(["a/001.png", absolute]).tolist() == [1, 1]
    assert relative_paths([absolute, "/elsewhere/b.png"], root) == ["a/001.png", "/elsewhere/b.png"]


def test_a_missing_image_is_counted_named_and_has_a_remedy(cached):
    out, root, _ = cached
    cache = _open(out, root)
    paths = [str(root / name) for name in ("a/001.png", "a/new.png", "a/other.png")]
    with pytest.raises(DataError, match=r"2 of 3 images .* the first is a/new\.png; run: medvlp prepare") as caught:
        cache.positions(paths)
    assert str(caught.value).endswith(f"medvlp prepare --data rsna --root {root} --out {out} --resize pad:8")


def test_what_cannot_be_opened_says_how_to_make_it(cached):
    out, root, folder = cached
    assert PixelCache.exists(out, "rsna", "standard", RULE)
    assert not PixelCache.exists(out, "siim", "standard", RULE)
    with pytest.raises(DataError, match=r"does not exist; run: medvlp prepare .* --intensity mgca$"):
        PixelCache.open(out, "rsna", "mgca", RULE, root)
    other = cache_folder(out, "rsna", "standard", "pad:9")
    os.rename(folder, other)
    with pytest.raises(DataError, match=r"has rule 'pad:8' and not 'pad:9'; run: medvlp prepare .* --overwrite"):
        PixelCache.open(out, "rsna", "standard", "pad:9", root)
    os.rename(other, folder)
    description = json.loads((folder / "cache.json").read_text())
    (folder / "cache.json").write_text(json.dumps({**description, "format": 0}))
    with pytest.raises(DataError, match="has format 0 and not 1"):
        _open(out, root)
    (folder / "cache.json").unlink()
    with pytest.raises(DataError, match="is incomplete; run: medvlp prepare"):
        _open(out, root)
    assert PixelCache.exists(out, "rsna", "standard", RULE)


@pytest.mark.parametrize("name", ["shard-00001.bin", "shard-00002.arrow", "masks-00000.bin"])
def test_a_missing_or_short_file_is_an_error_at_once(cached, name):
    out, root, folder = cached
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{name} is missing or has another size"):
        _open(out, root)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing or has another size"):
        _open(out, root)


def test_changed_sources(cached):
    out, root, _ = cached
    paths = [str(root / f"a/{i:03d}.png") for i in range(7)]
    (root / "a/002.png").unlink()  # the corpus may go after it was prepared
    assert len(_open(out, root).positions(paths)) == 7
    (root / "a/001.png").write_bytes(b"another size")
    os.utime(root / "a/005.png", ns=(1, 1))
    with pytest.raises(DataError, match=r"2 of 7 images changed .* the first is .*a/001\.png; run: medvlp prepare"):
        _open(out, root).positions(paths)
    assert len(_open(out, root).positions(paths[:1])) == 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_two_processes_and_many_threads_read(cached, method):
    out, root, _ = cached
    cache = _open(out, root)
    cache.read(0)  # with files open before the fork
    readable = [i for i in range(7) if i != 3] * 5
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        for i, (image, geometry, _) in zip(readable, pool.map(cache.read, readable), strict=True):
            assert np.array_equal(image, _pixels(i))
            assert geometry == _geometry(i)
    with ThreadPoolExecutor(8) as pool:
        for image in pool.map(lambda i: cache.read(0)[0], range(100)):
            assert np.array_equal(image, _pixels(0))


def test_a_pickled_cache_is_small_and_works(cached):
    out, root, _ = cached
    cache = _open(out, root)
    cache.read(0)
    restored = pickle.loads(pickle.dumps(cache))
    assert np.array_equal(restored.read(6)[0], _pixels(6))
    assert np.array_equal(restored.mask(SHAPES, (9, 9), _geometry(5)), _mask(5))


def test_more_shards_than_files_are_kept_open(tmp_path):
    out, root, _ = make(tmp_path, count=100, per_shard=1)
    cache = _open(out, root)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    for i in (*range(4, 100), 0, 99):
        assert np.array_equal(cache.read(i)[0], _pixels(i))
    if before:
        assert len(os.listdir("/proc/self/fd")) - before <= 80


def test_files_replaced_after_opening_are_noticed(cached):
    out, root, folder = cached
    cache = _open(out, root)
    (folder / "shard-00000.bin").write_bytes(b"anything")
    with pytest.raises(DataError, match="was replaced after the cache was opened"):
        cache.read(0)


def test_verify(cached):
    _, _, folder = cached
    assert verify(folder) == []
    assert verify(folder.parent) == [f"{folder.parent / 'cache.json'} is missing or broken"]
    path = folder / "shard-00001.bin"
    good = path.read_bytes()
    path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    assert verify(folder) == ["shard-00001.bin does not have its SHA-256: its bytes were changed"]
    path.write_bytes(good[:-1])
    assert verify(folder) == [f"shard-00001.bin has {len(good) - 1} bytes instead of {len(good)}"]
    path.unlink()
    assert verify(folder) == ["shard-00001.bin is missing"]
    path.write_bytes(good)
    (folder / "shard-00009.bin").write_bytes(b"")
    assert verify(folder) == ["shard-00009.bin is not listed in cache.json"]


def test_verify_looks_into_the_indexes(cached):
    """An index that was written wrongly, with a digest that fits it."""
    _, _, folder = cached
    path = folder / "shard-00000.arrow"
    table = read_table(path)
    wrong = table.set_column(1, INDEX_SCHEMA.field("offset"), pa.array([0, 1, 2], pa.int64()))
    write_table(path, wrong)
    description = json.loads((folder / "cache.json").read_text())
    (folder / "cache.json").unlink()
    finish(folder, 3, {k: description[k] for k in ("corpus", "intensity", "rule", "packages")}, [])
    assert verify(folder) == ["shard-00000.arrow: offsets and sizes do not fill shard-00000.bin"]
