"""A phantom that several runs want is written once; what a killed run left of it is written anew."""

import multiprocessing
import shutil
from pathlib import Path

import pandas as pd
import pytest

from medvlp.datamodules.pairs import PairsDataModule
from medvlp.datamodules.rsna import RSNADataModule
from medvlp.errors import DataError
from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.phantom.truth import in_phantom

SPEC = PhantomSpec(studies=30, size=64, laterals=0.0)


def _prepare(root: Path, start, results) -> None:
    start.wait()
    try:
        RSNADataModule(root=str(root), phantom=SPEC, image_size=64).prepare_data()
        results.put("")
    except Exception as error:
        results.put(repr(error))


def _bytes(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_several_runs_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    root = tmp_path / "new" / "rsna"
    runs = [context.Process(target=_prepare, args=(root, start, results)) for _ in range(3)]
    for run in runs:
        run.start()
    start.set()
    assert [results.get(timeout=900) for _ in runs] == ["", "", ""]
    for run in runs:
        run.join()
    assert _bytes(root) == _bytes(write_phantom("rsna", tmp_path / "alone", SPEC))
    assert [path.name for path in root.parent.iterdir()] == ["rsna"]


def test_what_a_killed_run_left_is_written_anew(tmp_path):
    root = tmp_path / "rsna"

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom("rsna", root, SPEC, progress=stop)
    module = RSNADataModule(root=str(root), phantom=SPEC, image_size=64)
    module.prepare_data()
    assert _bytes(root) == _bytes(write_phantom("rsna", tmp_path / "alone", SPEC))
    before = root.stat().st_mtime_ns
    module.prepare_data()
    assert root.stat().st_mtime_ns == before


def test_another_phantom_is_not_written_over(tmp_path):
    root = write_phantom("rsna", tmp_path / "rsna", SPEC)
    other = PhantomSpec(studies=31, size=64, laterals=0.0)
    with pytest.raises(DataError, match="another phantom"):
        RSNADataModule(root=str(root), phantom=other, image_size=64).prepare_data()


def test_a_finished_phantom_may_lie_where_nothing_can_be_written(tmp_path, monkeypatch):
    root = write_phantom("rsna", tmp_path / "rsna", SPEC)
    module = RSNADataModule(root=str(root), phantom=SPEC, image_size=64)

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr("medvlp.datamodules.corpus.FileLock", refuse)
    module.prepare_data()
    shutil.rmtree(root)
    with pytest.raises(PermissionError):
        module.prepare_data()


def test_rows_say_that_the_images_are_drawn_however_they_are_reached(tmp_path):
    root = write_phantom("rsna", tmp_path / "rsna", SPEC)
    module = RSNADataModule(root=str(root), image_size=64)
    module.setup("fit")
    assert module.describe()["phantom"] is True
    images = module.train_set.table.column("image").to_pylist()[:2]
    (tmp_path / "link").symlink_to(root)
    real = tmp_path / "real.png"
    shutil.copy(images[0], real)
    linked = [path.replace(str(root), str(tmp_path / "link")) for path in images]
    for paths, drawn in ((images, True), (linked, True), ([real, real], False), ([real, images[0]], True)):
        table = pd.DataFrame({"image": paths, "text": "No finding."})
        table.to_csv(tmp_path / "pairs.csv", index=False)
        pairs = PairsDataModule(
            table=str(tmp_path / "pairs.csv"), image_column="image", text_column="text", val_fraction=0.0
        )
        pairs.setup("fit")
        assert pairs.describe()["phantom"] is drawn
    beside = root / "real.png"  # a phantom's writer claims what it made and nothing else
    assert not in_phantom([beside])
    (root / "phantom.json").rename(root / "phantom.json.partial")
    assert in_phantom([images[0]]), "also of a phantom that was never finished"
