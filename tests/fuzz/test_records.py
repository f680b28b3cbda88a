"""Mutated records: prompt sets, result rows, notes of jobs and grids, stored features, caches, COCO annotations.

How to run them: ``test_tables.py``.
"""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from mutations import Kind, Trial, attempt, command, json_bytes, mutate_bytes, mutate_value, refused
from small_benchmark import write_benchmark

from medvlp.benchmark.grid import read_grid as read_yaml_grid
from medvlp.benchmark.gridfile import GridFile
from medvlp.benchmark.jobs import expand
from medvlp.benchmark.rows import collected
from medvlp.benchmark.runner import Runner, collect, describe, estimates
from medvlp.benchmark.verify import verify as verify_rows
from medvlp.benchmark.work import is_done, job_folder
from medvlp.datasets import corpus_class
from medvlp.io.cache import PixelCache, verify
from medvlp.phantom import PhantomSpec, write_phantom
from medvlp.phantom.model import Difficulty
from medvlp.prepare import prepare
from medvlp.prompts import load_prompts
from medvlp.results import ResultRow, append_rows, numbered_rows, read_rows
from medvlp.store import file_sha256
from medvlp.tasks.features import StoredFeatures, _Writer


def loaded(data: bytes) -> Any:
    """What JSON bytes say, ``...`` if they are none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return ...


class Prompts(Kind):
    """Prompt sets of a user."""

    name, share = "prompts", 10
    content: ClassVar[dict[str, Any]] = {
        "name": "mine",
        "version": 2,
        "prompts": {"Edema": {"positive": ["edema", "fluid"], "negative": ["no edema"]}},
        "classes": {"Nodule": "a nodule", "Mass": "a mass"},
        "templates": {"positive": ["there is {}.", "{} seen"], "negative": {"parts": [["no", "without"], ["{}"]]}},
        "synonyms": {"Oedema": "Edema"},
        "negation": True,
        "draw": {"count": 2, "seed": 1},
    }

    def trial(self, trial: Trial) -> None:
        content = dict(self.content)
        for key in ("draw", "classes"):
            if trial.often(0.5):
                content.pop(key)
                if key == "classes":
                    content.pop("templates")
        for _ in range(int(trial.one([0, 1, 1, 2]))):
            content = mutate_value(trial, content) if content else content
        path = trial.folder / "p.json"
        path.write_bytes(json_bytes(trial, content))
        found = attempt(load_prompts, str(path))
        if refused(found):
            return
        content = loaded(path.read_bytes())
        assert isinstance(content, dict), "read from what is no object"
        for name, (positive, negative) in found.prompts.items():
            assert positive
            assert all(isinstance(text, str) and text.strip() for text in (*positive, *negative))
            assert bool(negative) == found.negation
            entry = content.get("prompts", {}).get(name)
            if entry and isinstance(entry["positive"], list) and not content.get("draw"):
                assert list(positive) == entry["positive"], f"{name}: {positive}"
        assert set(found.prompts) == {*content.get("prompts", {}), *content.get("classes", {})}
        assert isinstance(content.get("version", 1), int)
        assert found.version == content.get("version", 1), f"version {content.get('version')!r} became {found.version}"
        found.among(["Edema", "Oedema", "x"])


# ---------------------------------------------------------------------- benchmark


class Results(Kind):
    """Result rows: those of other lines stay, and the commands say what is wrong with one."""

    name, share = "results", 14

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        path = write_benchmark(folder / "bench", pictures=False)
        self.lines = path.read_text().splitlines()[::23]
        self.grid = (folder / "bench" / "grid.json").read_bytes()

    def trial(self, trial: Trial) -> None:
        rows = [json.loads(line) for line in self.lines]
        at = int(trial.rng.integers(len(rows)))
        lines = [line.encode() for line in self.lines]
        for _ in range(int(trial.one([1, 1, 2]))):
            rows[at] = mutate_value(trial, rows[at]) if rows[at] else rows[at]
        lines[at] = json_bytes(trial, rows[at])
        data = b"\n".join(lines) + b"\n"
        path = trial.folder / trial.one(["results.jsonl", "results.jsonl", "results.jsonl.gz"])
        if path.suffix == ".gz":
            import gzip

            data = gzip.compress(data)
            data = mutate_bytes(trial, data) if trial.often(0.3) else data
        path.write_bytes(data)
        (trial.folder / "grid.json").write_bytes(self.grid)
        found = attempt(read_rows, path)
        if not refused(found):
            others = [json.loads(line) for n, line in enumerate(self.lines) if n != at]
            texts = [json.dumps(row, sort_keys=True) for row in found]
            lost = [row for row in others if json.dumps(row, sort_keys=True) not in texts]
            assert not lost, f"{len(lost)} rows of other lines are lost"
            broken = attempt(numbered_rows, path)[1]
            assert len(found) + len(broken) >= len(lines)
        frame = attempt(collected, path)
        assert not refused(found) or refused(frame)
        attempt(verify_rows, path, resamples=False)
        if trial.often(0.7):  # the commands take as long as all else
            return
        words = trial.one(["table", "table --format csv", "report", "verify", "table --layout summary"]).split()
        trial.note(words[0])
        code = command("benchmark", words[0], path, *words[1:], *(() if words[0] == "verify" else ("--resamples", "0")))
        assert code != 0 or not refused(frame), f"{words[0]} ends with 0, but the rows are refused: {frame}"


NOTED = """
{name: g, work: FOLDER/work, fractions: [0.5, 1.0], methods: {random: {encoder: {image: {name: resnet18}}}},
  tasks: {linear: {config: FOLDER/linear.yaml}}}
"""


class Notes(Kind):
    """``state.json`` and ``grid.json`` of a benchmark: a broken note stops nothing else, nothing is done by mistake."""

    name, share = "notes", 14

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (folder / "grid.yaml").write_text(NOTED.replace("FOLDER", str(folder)))
        (folder / "linear.yaml").write_text("model: {class_path: Classification}")
        self.grid = read_yaml_grid(folder / "grid.yaml")
        self.jobs = expand(self.grid)
        keys = ("method", "checkpoint", "task", "protocol", "dataset", "part", "split", "split_sha256", "metric")
        row: dict[str, Any] = dict.fromkeys(keys, "x")
        for job in self.jobs:
            place = job_folder(self.grid.folder, job)
            place.mkdir(parents=True)
            append_rows(place / "results.jsonl", [ResultRow(**row, fraction=job.fraction, seed=0, value=0.5)])
            state = {"state": "done", "seconds": 3.0, "rows": 1, "cost": {"seconds": 3.0, "watts": None}}
            state["results_sha256"] = file_sha256(place / "results.jsonl")
            (place / "state.json").write_text(json.dumps(state))
        describe(self.grid.folder, self.jobs, self.grid, dict.fromkeys((job.hash for job in self.jobs), "done"))
        self.described = json.loads((self.grid.folder / "grid.json").read_bytes())
        write_benchmark(folder / "other", pictures=False)

    def trial(self, trial: Trial) -> None:
        if trial.often(0.6):
            self.state(trial)
        else:
            self.described_grid(trial)

    def state(self, trial: Trial) -> None:
        work, (first, second) = self.grid.folder, self.jobs
        note = job_folder(work, first) / "state.json"
        sound = note.read_bytes()
        content = json.loads(sound)
        changed = mutate_value(trial, content)
        try:
            note.write_bytes(json_bytes(trial, changed))
            states = Runner(self.grid, self.jobs).states()
            assert states[second.hash] == "done", "another job is not done any more"
            assert states[first.hash] in ("done", "failed", "waiting")
            if states[first.hash] == "done":
                read = loaded(note.read_bytes())
                assert read["state"] == "done"
                assert read["results_sha256"] == content["results_sha256"]
            assert is_done(work, first) == (states[first.hash] == "done")
            for seconds, size in estimates(work, self.jobs).values():
                assert seconds >= 0, f"{seconds} s"
                assert size >= 0
            attempt(describe, work, self.jobs, self.grid, states)
            attempt(collect, work, self.jobs, self.grid)
            GridFile.read(work)  # what was written of it can be read
        finally:
            note.write_bytes(sound)

    def described_grid(self, trial: Trial) -> None:
        changed = mutate_value(trial, self.described)
        shutil.copy(self.folder / "other" / "results.jsonl", trial.folder)
        lines = (trial.folder / "results.jsonl").read_text().splitlines()[::31]
        (trial.folder / "results.jsonl").write_text("\n".join(lines) + "\n")
        (trial.folder / "grid.json").write_bytes(json_bytes(trial, changed))
        found = attempt(GridFile.read, trial.folder)
        attempt(verify_rows, trial.folder / "results.jsonl", resamples=False)
        if trial.often(0.4):
            command("benchmark", trial.one(["table", "report"]), trial.folder / "results.jsonl", "--resamples", "0")
        if not refused(found):
            content = loaded((trial.folder / "grid.json").read_bytes())
            assert len(found.jobs) == len(content["jobs"])


# ---------------------------------------------------------------------- stored features and caches


class Features(Kind):
    """Stored features: the batch that was stored, or an error."""

    name, share = "features", 10

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import torch

        self.ids = [f"i{n}" for n in range(5)]
        writer = _Writer(folder / "set" / "shard0", (2, 5), "float32")
        rng = np.random.default_rng(0)
        for view in range(2):
            batch = {
                "id": self.ids, "index": torch.arange(5), "label": torch.ones(5, 2) * view,
                "mask": torch.ones(5, 1, 8, 8), "skipped": [("i9", "gone")], "size": torch.full((5, 2), 8),
                "boxes": [torch.ones(n, 4) for n in range(5)],
                "box_labels": [torch.ones(n, dtype=torch.int64) for n in range(5)],
            }  # fmt: skip
            writer.add([rng.random((5, 3), dtype=np.float32)], batch)
        writer.close()
        facts = json.loads((folder / "set" / "shard0" / "shard.json").read_text())
        self.facts = {**facts, "shards": 1, "views": 2}
        (folder / "set" / "features.json").write_text(json.dumps(self.facts))
        self.sound = self.batches(folder / "set")

    def batches(self, folder: Path) -> list[str]:
        stored = attempt(StoredFeatures, folder, self.ids)
        if refused(stored):
            return []
        found = []
        for epoch in range(2):
            batch = attempt(stored.__getitems__, [(i, epoch) for i in (3, 0, 4)])
            if not refused(batch):
                found.append(repr(sorted((k, repr(v)) for k, v in batch.items())))
        return found

    def trial(self, trial: Trial) -> None:
        folder = trial.folder / "set"
        shutil.copytree(self.folder / "set", folder)
        if trial.often(0.7):
            (folder / "features.json").write_bytes(json_bytes(trial, mutate_value(trial, self.facts)))
            if loaded((folder / "features.json").read_bytes()) == self.facts:
                return
        else:
            path = trial.one(sorted((folder / "shard0").glob("*.np*")))
            data = path.read_bytes()
            trial.note(path.name)
            path.write_bytes(
                mutate_bytes(trial, data[:128]) + data[128:]
                if trial.often(0.6)
                else data[: int(trial.rng.integers(len(data)))]
            )
        found = self.batches(folder)
        # one view fewer is a set of other augmentations, which the folder's key would not name
        wrong = [batch for batch in found if batch not in self.sound]
        assert not wrong, "another batch than was stored"


class Caches(Kind):
    """Prepared pixels and their index."""

    name, share = "caches", 10

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        write_phantom(
            "siim", folder / "siim", PhantomSpec(studies=5, size=32, seed=5, difficulty=Difficulty(prevalence=4.0))
        )
        self.corpus = corpus_class("siim")(folder / "siim", stage=2)
        prepare(self.corpus, folder / "out", resize="square:16", workers=1, images_per_shard=3)
        self.place = next((folder / "out" / "siim").iterdir())
        self.records = self.corpus.records("segmentation").table.to_pylist()
        self.files = {
            p.name: p.read_bytes() for p in self.place.iterdir() if p.is_file() and not p.name.startswith(".")
        }
        self.sound = self.read()

    def read(self) -> Any:
        cache = attempt(PixelCache.open, self.folder / "out", "siim", "standard", "square:16", self.folder / "siim")
        if refused(cache):
            return cache
        places = attempt(cache.positions, [row["image"] for row in self.records])
        if refused(places):
            return places
        found = []
        for place, row in zip(places, self.records, strict=True):
            image = attempt(cache.read, int(place))
            if refused(image):
                return image
            mask = attempt(cache.mask, row["shapes"], image[2], image[1])
            if refused(mask):
                return mask
            found.append((image[0].tobytes(), image[1], image[2], None if mask is None else mask.tobytes()))
        return found

    def trial(self, trial: Trial) -> None:
        name = trial.one(["cache.json", "cache.json", *sorted(self.files)])
        data = self.files[name]
        changed = (
            json_bytes(trial, mutate_value(trial, json.loads(data)))
            if name == "cache.json"
            else mutate_bytes(trial, data)
        )
        trial.note(name)
        try:
            (self.place / name).write_bytes(changed)
            problems = attempt(verify, self.place)
            found = self.read()
            if problems == [] and not refused(found):
                assert found == self.sound, "verify finds nothing, but samples differ"
            if name not in ("cache.json", "skipped.csv") and changed != data:
                assert problems, "verify finds nothing"
            attempt(PixelCache.exists, self.folder / "out", "siim", "standard", "square:16")
        finally:
            (self.place / name).write_bytes(data)


# ---------------------------------------------------------------------- COCO


class Coco(Kind):
    """The COCO annotations of MS-CXR: boxes of an image whose entries were not touched stay."""

    name, share = "coco", 8

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        write_phantom(
            "ms_cxr", folder / "ms", PhantomSpec(studies=8, size=32, seed=5, difficulty=Difficulty(prevalence=4.0))
        )
        self.path = sorted((folder / "ms").glob("MS_CXR*.json"))[0]
        self.data = self.path.read_bytes()
        self.sound = self.records("raise")
        assert self.sound

    def records(self, on_error: str) -> dict[tuple[str, str], dict] | None:
        corpus = corpus_class("ms_cxr")(self.folder / "ms", annotations="json", on_error=on_error)
        found = {}
        for task in corpus.tasks:
            records = attempt(corpus.records, task)
            if refused(records):
                return None
            found |= {(task, row["id"]): row for row in records.table.to_pylist()}
        attempt(corpus.listing)
        return found

    def trial(self, trial: Trial) -> None:
        content = json.loads(self.data)
        changed = content
        for _ in range(int(trial.one([1, 1, 2]))):
            changed = mutate_value(trial, changed) if changed else changed
        try:
            self.path.write_bytes(json_bytes(trial, changed))
            found = self.records(trial.one(["raise", "skip"]))
            new = loaded(self.path.read_bytes())
        finally:
            self.path.write_bytes(self.data)
        if found is None:
            return
        before, after = facts_by_image(content), facts_by_image(new)
        for key, row in found.items():
            if repr(row) == repr(self.sound.get(key)):
                continue
            name = Path(row["image"]).stem
            assert before.get(name) != after.get(name), f"{key} changed, but its entries did not"
            for number in range(0, len(row.get("boxes") or []), 4):
                box = row["boxes"][number : number + 4]
                assert any(np.allclose(box, known, atol=1e-3) for known in boxes_of(new, name)), (
                    f"{key}: no entry says {box}"
                )


def facts_by_image(content: Any) -> dict[str, str]:
    """All that a file says of each image, as text."""
    found = {}
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        names = {category["id"]: category["name"] for category in content["categories"]}
        for image in content["images"]:
            about = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            about = [{**a, "name": names.get(a["category_id"])} for a in about]
            found[Path(str(image.get("path") or image["file_name"])).stem] = repr((image, about))
    return found


def boxes_of(content: Any, name: str) -> list[list[float]]:
    """The boxes of an image, in pixels of the table's image size (which are those of the file)."""
    found = []
    for image in content["images"]:
        if isinstance(image, dict) and Path(str(image.get("path") or image.get("file_name"))).stem == name:
            for entry in content["annotations"]:
                numbers = entry["bbox"] if entry["image_id"] == image["id"] else []
                if len(numbers) == 4 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
                    x, y, w, h = numbers
                    found.append([x, y, x + w, y + h])
    return found


@pytest.mark.parametrize("kind", [Prompts, Results, Notes, Features, Caches, Coco], ids=lambda kind: kind.name)
def test_mutated_records(kind, mutations):
    mutations(kind)
