"""``medvlp prepare``: samples are the same with it and without, and nothing ends it in a wrong state."""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch
from command_line import environment

from medvlp.datasets import corpus_class
from medvlp.datasets.base import RadiographDataset
from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.io import images, rasters
from medvlp.io.cache import PixelCache, verify
from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.prepare import add_arguments, prepare, rules_of, run
from medvlp.transforms import build_transform

TARGETS = {"segmentation": ("mask",), "detection": ("boxes",), "grounding": ("boxes", "mask")}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Small phantoms by layout, written when they are first asked for."""
    base = tmp_path_factory.mktemp("phantoms")

    def root(layout: str) -> Path:
        if not (base / layout).is_dir():
            write_phantom(layout, base / layout, PhantomSpec(studies=24, size=96, seed=5))
        return base / layout

    return root


@pytest.fixture
def mimic(phantoms, tmp_path) -> Path:
    """A tree that a test may damage."""
    return Path(shutil.copytree(phantoms("mimic_cxr"), tmp_path / "mimic"))


def _corpus(root: Path, name: str = "mimic_cxr"):
    return corpus_class(name)(root, on_error="skip")


def _prepare(root: Path, out: Path, name: str = "mimic_cxr", **options):
    settings = {"resize": "pad:37", "workers": 1, "images_per_shard": 7, **options}
    return prepare(_corpus(root, name), out, **settings)


@pytest.mark.skipif(rasters.simplejpeg is None, reason="simplejpeg is not installed")
def test_damaged_images_are_listed_or_kept_apart(mimic, tmp_path):
    table = _corpus(mimic).records("pairs").table
    path = Path(table.column("image")[0].as_py())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + whole[-2:])
    refused = _prepare(mimic, tmp_path / "out", task="pairs")
    assert [reason.split(" (")[0] for kind, _, reason in refused.skipped if kind == "image"] == ["damaged inside"]
    accepted = _prepare(mimic, tmp_path / "out", task="pairs", damaged="accept")
    assert not accepted.folders[0].unreadable
    assert accepted.folders[0].folder != refused.folders[0].folder
    recipe = build_transform("plain", 37, False)
    rule = recipe.resize.name
    _prepare(mimic, tmp_path / "out", task="pairs", damaged="accept", resize=rule)
    cache = PixelCache.open(tmp_path / "out", "mimic_cxr", "standard+damaged", rule, mimic)
    plain = RadiographDataset(table, transform=recipe, damaged="accept")
    assert torch.equal(plain.with_cache(cache)[0]["image"], plain[0]["image"])
    with pytest.raises(ConfigError, match=r"not by standard\+damaged"):
        RadiographDataset(table, transform=recipe).with_cache(cache)
    with pytest.raises(UnreadableItemError, match="damaged inside"):
        RadiographDataset(table, transform=recipe)[0]
    with pytest.raises(DataError, match="--damaged accept"):
        PixelCache.open(tmp_path / "none", "mimic_cxr", "standard+damaged", rule, mimic)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != ".lock"}


def _same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    return a == b


@pytest.mark.parametrize(
    ("name", "task", "transform", "intensity"),
    [
        ("mimic_cxr", "pairs", "g2d_paper", "standard"),
        ("mimic_cxr", "pairs", "g2d_official", "image_max"),
        ("mimic_cxr", "pairs", "convirt", "standard"),
        ("rsna", "detection", "mgca_detection", "mgca"),
        ("rsna", "detection", "mgca", "standard"),
        ("rsna", "classification", "kad", "medklip"),
        ("siim", "segmentation", "mgca_segmentation", "standard"),
        ("siim", "segmentation", "g2d_official", "standard"),  # crops, so that masks depend on the pixels
        ("object_cxr", "segmentation", "convirt", "standard"),  # keeps the aspect
    ],
)
def test_samples_are_the_same_with_and_without(phantoms, tmp_path, name, task, transform, intensity):
    root = phantoms(name)
    corpus = corpus_class(name)(root)
    result = prepare(corpus, tmp_path, transform=transform, size=32, intensity=intensity, task=task, workers=1)
    assert [f.rule for f in result.folders] == rules_of(transform, 32)
    assert not result.folders[0].unreadable
    table = corpus.records(task).table
    marked = 0
    for train in (True, False):
        recipe = build_transform(transform, 32, train)
        plain = RadiographDataset(table, transform=recipe, targets=TARGETS.get(task, ()), intensity=intensity, seed=3)
        cached = plain.with_cache(PixelCache.open(tmp_path, name, intensity, recipe.resize.name, root))
        for key in ((i, epoch) for i in range(len(plain)) for epoch in (0, 1)):
            expected, found = plain[key], cached[key]
            assert expected.keys() == found.keys()
            different = [k for k in expected if not _same(expected[k], found[k])]
            assert not different, (key, different)
            marked += int("mask" in found and bool(found["mask"].any()))
    assert marked or task != "segmentation"


def test_pixels_of_other_rules_are_refused(phantoms, tmp_path):
    root = phantoms("rsna")
    _prepare(root, tmp_path, "rsna", resize="square:37")
    cache = PixelCache.open(tmp_path, "rsna", "standard", "square:37", root)
    table = _corpus(root, "rsna").records().table
    with pytest.raises(ConfigError, match="need pixels prepared by standard pad:37, not by standard square:37"):
        RadiographDataset(table, transform=build_transform("mgca", 32, True)).with_cache(cache)
    with pytest.raises(ConfigError, match="need pixels prepared by mgca square:37"):
        RadiographDataset(table, transform=build_transform("g2d_paper", 32, True), intensity="mgca").with_cache(cache)


def test_masks_come_from_the_cache(phantoms, tmp_path, monkeypatch):
    root = phantoms("siim")
    result = _prepare(root, tmp_path, "siim", task="segmentation", resize="square_plain:32")
    assert result.folders[0].masks > 0
    table = _corpus(root, "siim").records("segmentation").table
    recipe = build_transform("mgca_segmentation", 32, False)
    cached = RadiographDataset(table, transform=recipe, targets=("mask",)).with_cache(
        PixelCache.open(tmp_path, "siim", "standard", "square_plain:32", root)
    )
    monkeypatch.setattr("medvlp.datasets.base.draw", None)  # drawing would fail
    assert any(cached[i]["mask"].any() for i in range(len(cached)))


def test_the_bytes_do_not_depend_on_the_processes(mimic, tmp_path):
    (mimic / next(p.relative_to(mimic) for p in sorted(mimic.rglob("*.jpg")))).write_bytes(b"broken")
    one = _prepare(mimic, tmp_path / "1", workers=1)
    two = _prepare(mimic, tmp_path / "2", workers=2)
    assert _bytes(one.folders[0].folder) == _bytes(two.folders[0].folder)
    assert one.skipped == two.skipped
    assert verify(one.folders[0].folder) == []
    assert len(one.folders[0].unreadable) == 1
    assert one.folders[0].bytes >= one.folders[0].images * 30 * 37


class _Killer:
    """Counts what changes the disk; at one of these events the process is killed."""

    def __init__(self, at: int | None) -> None:
        self.at, self.count = at, 0

    def event(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function):
        def wrapped(*args, **kwargs):
            self.event()  # before the change
            result = function(*args, **kwargs)
            self.event()  # and after it
            return result

        return wrapped


def _watched(root: Path, out: Path, at: int | None, counted=None) -> None:
    """Prepare in a process of its own with every rename, removal, sync and prepared image as a possible end."""
    from medvlp.datasets import shards
    from medvlp.io import cache_format

    killer = _Killer(at)
    os.replace, os.fsync = killer.around(os.replace), killer.around(os.fsync)
    Path.unlink = killer.around(Path.unlink)  # type: ignore[method-assign]
    shards._prepare_image = killer.around(shards._prepare_image)
    cache_format._write_arrays = killer.around(cache_format._write_arrays)
    _prepare(root, out)
    if counted is not None:
        counted.value = killer.count


def _forked(*args) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=_watched, args=args)
    process.start()
    process.join()
    return process.exitcode


def test_killed_at_any_point_it_goes_on(mimic, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the processes are forked
    try:
        counted = multiprocessing.get_context("fork").Value("i", 0)
        assert _forked(mimic, tmp_path / "whole", None, counted) == 0
        expected = _bytes(tmp_path / "whole/mimic_cxr/standard-pad_37")
        assert len(expected) > 6
        points = sorted(random.Random(0).sample(range(1, counted.value + 1), 10))
        for at in points:
            out = tmp_path / f"{at}"
            assert _forked(mimic, out, at) == -signal.SIGKILL
            with pytest.raises(DataError, match="medvlp prepare"):  # incomplete until it is run again
                PixelCache.open(out, "mimic_cxr", "standard", "pad:37", mimic)
            result = _prepare(mimic, out)
            assert _bytes(result.folders[0].folder) == expected, at
        again, tries = tmp_path / "again", 0
        for at in random.Random(1).choices(range(1, counted.value // 3), k=10):  # the same folder again and again
            tries += _forked(mimic, again, at) == -signal.SIGKILL
        assert tries > 3
        assert _bytes(_prepare(mimic, again).folders[0].folder) == expected
    finally:
        torch.set_num_threads(threads)


_STOPS_HALF_WAY = """
import os, sys, time
from pathlib import Path
from medvlp.datasets import corpus_class
from medvlp.prepare import prepare

def stop(event, arguments):
    # the second shard's index is not put into its place: the first is there, the main process goes no further
    if event == "os.rename" and Path(arguments[1]).name == "shard-00001.arrow" and os.getpid() == main:
        Path(sys.argv[3]).touch()
        while True:
            time.sleep(60)

if __name__ == "__main__":
    main = os.getpid()
    sys.addaudithook(stop)
    prepare(corpus_class("mimic_cxr")(sys.argv[1]), sys.argv[2], resize="pad:37", workers=2, images_per_shard=1)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_workers_end_when_the_main_process_is_killed(mimic, tmp_path):
    script, gate = tmp_path / "prepare_it.py", tmp_path / "half way"
    script.write_text(_STOPS_HALF_WAY)
    argv = [sys.executable, str(script), str(mimic), str(tmp_path / "out"), str(gate)]
    process = subprocess.Popen(argv, env=environment())
    while not gate.exists() and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None
    folder = tmp_path / "out/mimic_cxr/standard-pad_37"
    assert [path.name for path in folder.glob("shard-*.arrow")] == ["shard-00000.arrow"]
    family = _descendants(process.pid)
    process.kill()
    process.wait()
    assert family
    deadline = time.monotonic() + 900  # against a hang
    while any(_alive(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in family if _alive(pid)]
    rest = _prepare(mimic, tmp_path / "out", images_per_shard=1)
    whole = _prepare(mimic, tmp_path / "whole", images_per_shard=1)
    assert _bytes(rest.folders[0].folder) == _bytes(whole.folders[0].folder)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _descendants(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(c) for task in tasks for c in (task / "children").read_text().split()]
    except OSError:
        return []
    return [*children, *(d for c in children for d in _descendants(c))]


def test_only_what_changed_is_written_again(mimic, tmp_path):
    first = _prepare(mimic, tmp_path / "out").folders[0]
    assert first.kept == 0
    before = {p.name: p.stat().st_mtime_ns for p in first.folder.glob("shard-*")}
    again = _prepare(mimic, tmp_path / "out").folders[0]
    assert again.kept == again.images
    assert before == {p.name: p.stat().st_mtime_ns for p in first.folder.glob("shard-*")}
    table = _corpus(mimic).records().table
    path = Path(sorted(table.column("image").to_pylist())[8])  # in the second shard
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match=r"1 of \d+ images changed"):
        PixelCache.open(tmp_path / "out", "mimic_cxr", "standard", "pad:37", mimic).positions([str(path)])
    third = _prepare(mimic, tmp_path / "out").folders[0]
    assert third.kept == third.images - 7
    after = {p.name: p.stat().st_mtime_ns for p in first.folder.glob("shard-*")}
    assert sorted(n for n in before if before[n] != after[n]) == ["shard-00001.arrow", "shard-00001.bin"]
    assert verify(first.folder) == []


def test_other_versions_or_damaged_shards_are_written_again(mimic, tmp_path, monkeypatch):
    folder = _prepare(mimic, tmp_path / "out").folders[0].folder
    expected = _bytes(folder)
    (folder / "shard-00001.bin").unlink()
    (folder / "shard-00002.arrow").write_bytes(b"nonsense")
    assert verify(folder)
    repaired = _prepare(mimic, tmp_path / "out").folders[0]
    assert repaired.kept == repaired.images - 7 - (repaired.images - 14 if repaired.images < 21 else 7)
    assert _bytes(folder) == expected
    monkeypatch.setattr("medvlp.datasets.shards.versions", lambda: {"pillow": "another"})
    assert _prepare(mimic, tmp_path / "out").folders[0].kept == 0


def test_damaged_descriptions_are_refused_and_damaged_shards_made_again(mimic, tmp_path):
    folder = _prepare(mimic, tmp_path).folders[0].folder
    path, index = folder / "cache.json", folder / "shard-00000.arrow"
    sound, written = json.loads(path.read_text()), index.read_bytes()
    others = (None, [], {}, [1], "x", {"a": 1})
    for content in (
        "[]",
        "7",
        "[" * 100_000,
        *(json.dumps({**sound, key: other}) for key in ("files", "shards") for other in others),
        json.dumps({**sound, "shards": [{**s, "images": "x"} for s in sound["shards"]]}),
        json.dumps({**sound, "shards": [*sound["shards"], *sound["shards"]]}),
    ):
        path.write_text(content)
        assert verify(folder)
        with pytest.raises(DataError, match="medvlp prepare"):
            PixelCache.open(tmp_path, "mimic_cxr", "standard", "pad:37", mimic)
    path.write_text(json.dumps(sound))
    for metadata in ({}, {"medvlp": "[]"}, {"medvlp": "{"}, {"medvlp": '{"format": 1, "packages": 3, "files": 7}'}):
        with pa.ipc.open_file(index) as file:
            table = file.read_all()
        with pa.ipc.new_file(index, table.schema.with_metadata(metadata)) as writer:
            writer.write_table(table)
        _prepare(mimic, tmp_path)
        assert index.read_bytes() == written


def test_a_second_task_adds_its_images(mimic, tmp_path):
    pairs = _prepare(mimic, tmp_path / "out", task="pairs").folders[0]
    both = _prepare(mimic, tmp_path / "out", task="classification").folders[0]
    alone = _prepare(mimic, tmp_path / "alone", task="classification").folders[0]
    assert both.images >= max(pairs.images, alone.images)
    cache = PixelCache.open(tmp_path / "out", "mimic_cxr", "standard", "pad:37", mimic)
    for task in ("pairs", "classification"):
        assert len(cache.positions(_corpus(mimic).records(task).table.column("image").to_pylist()))
    assert verify(both.folder) == []
    assert _prepare(mimic, tmp_path / "out", task="pairs").folders[0].kept == both.images
    anew = _prepare(mimic, tmp_path / "out", task="classification", overwrite=True).folders[0]
    assert _bytes(anew.folder) == _bytes(alone.folder)


def test_unreadable_images_are_listed_and_raise_as_without(mimic, tmp_path):
    table = _corpus(mimic).records().table
    paths = table.column("image").to_pylist()
    Path(paths[0]).write_bytes(b"\xff\xd8\xff broken")
    Path(paths[1]).unlink()
    Path(paths[2]).write_bytes(b"")
    result = _prepare(mimic, tmp_path / "out")
    listed = pd.read_csv(result.folders[0].folder / "skipped.csv")
    images = listed[listed["kind"] == "image"]
    assert sorted(images["item"]) == sorted(str(Path(p).relative_to(mimic)) for p in paths[:3])
    assert sum(result.counts.values()) == len(result.skipped) == len(listed)
    recipe = build_transform("mgca", 32, False)
    plain = RadiographDataset(table, transform=recipe)
    cached = plain.with_cache(PixelCache.open(tmp_path / "out", "mimic_cxr", "standard", "pad:37", mimic))
    for row in range(3):
        with pytest.raises(UnreadableItemError) as expected:
            plain[row]
        with pytest.raises(UnreadableItemError) as found:
            cached[row]
        assert str(found.value) == str(expected.value)
        assert (found.value.item_id, found.value.reason) == (expected.value.item_id, expected.value.reason)
    assert _prepare(mimic, tmp_path / "out").folders[0].kept == result.folders[0].images
    shutil.copy(paths[3], paths[1])  # no longer missing
    with pytest.raises(DataError, match=r"1 of .* images changed"):
        PixelCache.open(tmp_path / "out", "mimic_cxr", "standard", "pad:37", mimic).positions(paths)
    assert len(_prepare(mimic, tmp_path / "out").folders[0].unreadable) == 2


def test_the_disk_must_have_room(mimic, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(DataError, match=r"needs about 0\.00 GB and .* has 0\.00 GB free"):
        _prepare(mimic, tmp_path / "out")
    monkeypatch.undo()
    _prepare(mimic, tmp_path / "out", resize="longer:50")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2_000_000))
    assert _prepare(mimic, tmp_path / "out", resize="longer:50").folders[0].kept  # nothing left to write


def test_two_at_once_are_refused(mimic, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    folder = _prepare(mimic, tmp_path / "out").folders[0].folder
    with (folder / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is preparing"):
            _prepare(mimic, tmp_path / "out")


def test_bad_settings(mimic, tmp_path):
    with pytest.raises(ConfigError, match="resize rule"):
        _prepare(mimic, tmp_path, resize="round:3")
    with pytest.raises(ConfigError, match="intensity rule"):
        _prepare(mimic, tmp_path, intensity="none")
    with pytest.raises(ConfigError, match="workers is 0"):
        _prepare(mimic, tmp_path, workers=0)
    with pytest.raises(ConfigError, match="no labels for segmentation"):
        _prepare(mimic, tmp_path, task="segmentation")


def test_a_transform_with_two_rules_decodes_once(mimic, tmp_path, monkeypatch):
    asked = []
    read = images.read_image

    def counting(path, **options):
        asked.append(path)
        return read(path, **options)

    monkeypatch.setattr("medvlp.prepare.read_image", counting)
    result = prepare(_corpus(mimic), tmp_path, transform="kad", size=24, workers=1)
    assert [f.rule for f in result.folders] == ["shorter:48", "bicubic:24"]
    assert len(asked) == result.folders[0].images
    assert all(not verify(f.folder) for f in result.folders)


def test_tokenizer_options_are_ignored_with_a_warning(mimic, tmp_path):
    with pytest.warns(UserWarning, match="tokenizer and max_length are ignored"):
        result = _prepare(mimic, tmp_path / "out", tokenizer=tmp_path / "tokenizer", max_length=20)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mimic_cxr"]
    assert not verify(result.folders[0].folder)


def test_the_command(mimic, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    common = ["mimic_cxr", "--root", str(mimic), "--out", str(tmp_path / "out"), "--resize", "square:32"]
    common += ["--workers", "1", "--option", "views=[PA]"]
    assert run(parser.parse_args([*common, "--verify"])) == 1
    capsys.readouterr()
    assert run(parser.parse_args(common)) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "out/mimic_cxr/standard-square_32"
    assert f"{folder}: " in said
    assert "skipped: " in said
    assert str(folder / "skipped.csv") in said
    assert run(parser.parse_args([*common, "--verify"])) == 0
    shard = folder / "shard-00000.bin"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    assert run(parser.parse_args([*common, "--verify"])) == 1
    assert "shard-00000.bin does not have its SHA-256" in capsys.readouterr().out
    assert run(parser.parse_args([*common, "--overwrite"])) == 0
    assert run(parser.parse_args([*common, "--verify"])) == 0
    with pytest.raises(ConfigError, match="has no option colour"):
        run(parser.parse_args([*common, "--option", "colour=red"]))


def test_views_of_nothing(mimic, tmp_path):
    with pytest.raises(DataError, match="no records to prepare"):
        prepare(corpus_class("mimic_cxr")(mimic, views=("XYZ",)), tmp_path, resize="square:32", workers=1)
