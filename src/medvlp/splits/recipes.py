"""The recipes: from what is known of each record to the members of the parts.

The calls to scikit-learn, pandas and numpy are those of the published code, on record indices in place of rows of a
table, which gives the same members. Sizes that a recipe fixes for one release shrink in proportion on a smaller copy
(a phantom), so that every recipe runs on every copy; :mod:`medvlp.splits.make` refuses such a copy unless told not to.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from medvlp.errors import DataError
from medvlp.splits.catalog import SplitInfo
from medvlp.splits.draws import target
from medvlp.splits.fractions import hash_split, linked_groups
from medvlp.splits.lists import find_list, image_key, match_list, read_columns, read_list
from medvlp.splits.types import Part, SplitInput

VALIDATE, TEST = 0.1, 0.2
"""Shares of our own split where a corpus has no official test set; where it has one, 0.1 / (1 − 0.2) of the rest."""


@dataclass(frozen=True, eq=False)
class Draft:
    """The parts of a split before they are checked.

    Args:
        parts: train, validate, test.
        comparable: whether the recorded numbers apply; not if known copies of images changed what stays together.
    """

    parts: dict[str, Part]
    comparable: bool = True


@dataclass(frozen=True, eq=False)
class Task:
    """What a recipe gets.

    Args:
        info: the split.
        inputs: the records.
        seed: the seed of the call, which recipes that fix their own do not look at.
        lists: folder of the authors' lists.
    """

    info: SplitInfo
    inputs: SplitInput
    seed: int
    lists: str | Path | None

    def pool(self, *pools: str) -> np.ndarray:
        """Indices of the records of the released parts named, in order."""
        return np.flatnonzero(self.inputs.in_pool(*pools))

    def frontal(self, records: np.ndarray) -> np.ndarray:
        """Those of the records that are no laterals."""
        return records[self.inputs.is_frontal[records]]

    def by_id(self, records: np.ndarray) -> np.ndarray:
        """The records in alphabetical order of their ids, as pandas' groupby puts them."""
        return records[np.argsort(np.asarray(self.inputs.ids)[records].astype(str), kind="stable")]

    def from_list(self, *names: str) -> np.ndarray:
        """The records that one of the authors' files lists."""
        path = self.find(*names)
        return match_list(read_list(path), self.inputs, path)

    def find(self, *names: str) -> Path:
        """One of the authors' files, by one of its names."""
        what = f"the split {self.info.name} of {self.info.corpus}"
        return find_list(self.lists, names, what=what, repository=self.info.repository)


Recipe = Callable[[Task], Draft]
RECIPES: dict[tuple[str, str], Recipe] = {}
"""(corpus, split) to recipe."""


def recipe(corpus: str, *names: str) -> Callable[[Recipe], Recipe]:
    """Register a recipe under one or more names of a corpus."""

    def register(function: Recipe) -> Recipe:
        RECIPES.update({(corpus, name): function for name in names})
        return function

    return register


def scaled(size: int, of: int, n: int) -> int:
    """A size fixed for a release of ``of`` records, on a copy of n: the same share."""
    return size if n == of else round(size * n / of)


def parts(**members: np.ndarray) -> Draft:
    """A draft from record indices."""
    return Draft({name: Part(np.asarray(records, dtype=np.int64)) for name, records in members.items()})


def halves(records: np.ndarray, size: int | float, seed: int) -> dict[str, np.ndarray]:
    """Cut off a test-and-validation set and halve it; the first half is the test set (GLoRIA, MGCA)."""
    train, rest = train_test_split(records, test_size=size, random_state=seed)
    test, validate = train_test_split(rest, test_size=0.5, random_state=seed)
    return {"train": train, "validate": validate, "test": test}


def clean(task: Task, official: np.ndarray | None, records: np.ndarray) -> Draft:
    """Our own split: by hash of the patient, copies of an image together.

    Args:
        task: the task.
        official: records of the official test set, kept as it is; None if the corpus has none.
        records: what the other parts are drawn from.

    Returns:
        The parts. Records that share a patient or an image with the official test set are in none.

    Raises:
        DataError: the official test set is not there.
    """
    if official is not None and not len(official):
        raise DataError(
            f"the split {task.info.name} of {task.info.corpus} keeps the official test set, of which this copy has no "
            f"record; add it, or take another split"
        )
    groups = linked_groups(task.inputs.patients, task.inputs.hashes)
    merged = pd.Series(groups).nunique() < pd.Series(task.inputs.patients, dtype=object).nunique()
    if official is None:
        names = hash_split(groups[records].tolist(), {"test": TEST, "validate": VALIDATE}, task.seed)
        test = records[names == "test"]
    else:
        test = official
        records = records[~pd.Series(groups[records]).isin(groups[official]).to_numpy()]
        names = hash_split(groups[records].tolist(), {"validate": VALIDATE / (1 - TEST)}, task.seed)
    drawn = {"train": records[names == "train"], "validate": records[names == "validate"], "test": test}
    return Draft(parts(**drawn).parts, comparable=not merged)


def as_released(task: Task, train: str, validate: str, test: str) -> Draft:
    """The parts as released."""
    return parts(train=task.pool(train), validate=task.pool(validate), test=task.pool(test))


# ── MIMIC-CXR ────────────────────────────────────────────────────────────────────────────────────────────────────────


@recipe("mimic_cxr", "official")
def _mimic_official(task: Task) -> Draft:
    return as_released(task, "train", "validate", "test")


@recipe("mimic_cxr", "mgca")
def _mimic_mgca(task: Task) -> Draft:
    views = pd.Series(task.inputs.views, dtype=object).str.upper().isin(("AP", "PA")).to_numpy()
    train, held = task.pool("train"), task.pool("validate", "test")
    return parts(train=train[views[train]], validate=held[views[held]], test=held[views[held]])


@recipe("mimic_cxr", "clean")
def _mimic_clean(task: Task) -> Draft:
    return clean(task, task.pool("test"), task.pool("train", "validate"))


# ── RSNA: recipes sort the images of stage_2_train_labels.csv by patientId, as its groupby does ──────────────────────

_RSNA = 26_684


@recipe("rsna", "mgca", "gloria")
def _rsna_mgca(task: Task) -> Draft:
    return parts(**halves(task.by_id(task.pool("train")), 0.3, 0))


@recipe("rsna", "mgca_detection", "g2d")
def _rsna_detection(task: Task) -> Draft:
    records = task.by_id(task.pool("train"))
    return parts(**halves(records, scaled(2 * 5_337, _RSNA, len(records)), 0))


@recipe("rsna", "benchx")
def _rsna_benchx(task: Task) -> Draft:
    records = task.by_id(task.pool("train"))
    classes = target(task.inputs.labels)
    train, rest = train_test_split(records, test_size=0.3, stratify=classes[records], random_state=42)
    validate, test = train_test_split(rest, test_size=0.5, stratify=classes[rest], random_state=42)
    return parts(train=train, validate=validate, test=test)


@recipe("rsna", "maco")
def _rsna_maco(task: Task) -> Draft:
    records = task.by_id(task.pool("train"))
    edge = scaled(25_184, _RSNA, len(records))
    return parts(train=records[:edge], validate=records[edge:], test=task.by_id(task.pool("test")))


@recipe("rsna", "medklip")
def _rsna_medklip(task: Task) -> Draft:
    return parts(test=task.from_list("test.csv"))


@recipe("rsna", "clean")
def _rsna_clean(task: Task) -> Draft:
    return clean(task, None, task.pool("train"))


# ── SIIM ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@recipe("siim", "g2d")
def _siim_g2d(task: Task) -> Draft:
    n = len(task.inputs)
    # 0.3 as a share would give 8,432 / 1,808 / 1,807
    return parts(**halves(np.arange(n), 2 * int(0.15 * n), task.seed))


@recipe("siim", "mgca", "gloria")
def _siim_mgca(task: Task) -> Draft:
    owner = np.arange(len(task.inputs)) if task.inputs.rows is None else np.asarray(task.inputs.rows)
    drawn = halves(np.arange(len(owner)), 0.3, 0)
    return Draft(
        {name: Part(pd.unique(owner[rows]).astype(np.int64), rows.astype(np.int64)) for name, rows in drawn.items()}
    )


@recipe("siim", "maco")
@recipe("cxr14", "maco")
def _maco_lists(task: Task) -> Draft:
    lists = {name: task.from_list(f"{file}_list.txt") for name, file in _MACO.items()}
    return parts(**lists)


_MACO = {"train": "train", "validate": "val", "test": "test"}


@recipe("cxr14", "benchx")
def _cxr14_benchx(task: Task) -> Draft:
    # BenchX took these lists over; its own files hold the same names
    lists = {name: task.from_list(f"{file}.txt", f"{file}_list.txt") for name, file in _MACO.items()}
    return parts(**lists)


@recipe("siim", "benchx")
def _siim_benchx(task: Task) -> Draft:
    tables = [task.find(f"stage_1_{part}_images.csv") for part in ("train", "test")]
    names: dict[str, str] = {}
    for path in tables:
        frame = read_columns(path, ("new_filename", "ImageId"))
        names.update(zip(map(image_key, frame["new_filename"]), frame["ImageId"], strict=True))
    lists = {}
    for name, file in _MACO.items():
        path = task.find(f"{file}.txt")
        listed = read_list(path)
        unknown = [n for n in listed if image_key(n) not in names]
        if unknown:
            raise DataError(
                f"{len(unknown)} of the {len(listed)} images in {path} are in no table of the repack, for example "
                f"{unknown[0]}"
            )
        lists[name] = match_list([names[image_key(n)] for n in listed], task.inputs, path)
    return parts(**lists)


@recipe("siim", "clean")
def _siim_clean(task: Task) -> Draft:
    return clean(task, None, np.arange(len(task.inputs)))


# ── COVIDx ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@recipe("covidx", "g2d", "mgca")
def _covidx_mgca(task: Task) -> Draft:
    train, validate = train_test_split(task.pool("train"), train_size=0.8, random_state=0)
    return parts(train=train, validate=validate, test=task.pool("test"))


@recipe("covidx", "official")
def _covidx_official(task: Task) -> Draft:
    return as_released(task, "train", "validate", "test")


@recipe("covidx", "benchx")
def _covidx_benchx(task: Task) -> Draft:
    # its reader takes the first line of each list for a header
    released = as_released(task, "train", "validate", "test").parts
    return parts(**{name: part.records[1:] for name, part in released.items()})


@recipe("covidx", "clean")
def _covidx_clean(task: Task) -> Draft:
    return clean(task, task.pool("test"), task.pool("train", "validate"))


# ── ChestX-ray14 ─────────────────────────────────────────────────────────────────────────────────────────────────────


@recipe("cxr14", "official")
def _cxr14_official(task: Task) -> Draft:
    return parts(train=task.pool("train_val", "train"), test=task.pool("test"))


@recipe("cxr14", "kad", "g2d")
def _cxr14_kad(task: Task) -> Draft:
    records = task.pool("train_val", "train")
    # 0.1 as a share would give one image more: scikit-learn rounds up, the published number is rounded down
    train, validate = train_test_split(records, test_size=int(0.1 * len(records)), random_state=task.seed)
    return parts(train=train, validate=validate, test=task.pool("test"))


@recipe("cxr14", "medklip")
def _cxr14_medklip(task: Task) -> Draft:
    return parts(test=task.pool("test"))


@recipe("cxr14", "clean")
def _cxr14_clean(task: Task) -> Draft:
    return clean(task, task.pool("test"), task.pool("train_val", "train"))


# ── Object-CXR ───────────────────────────────────────────────────────────────────────────────────────────────────────


@recipe("object_cxr", "official", "benchx")
def _object_official(task: Task) -> Draft:
    return as_released(task, "train", "dev", "test")


@recipe("object_cxr", "g2d", "mgca_paper")
def _object_g2d(task: Task) -> Draft:
    train, validate = train_test_split(task.pool("train"), test_size=0.2, random_state=task.seed)
    return parts(train=train, validate=validate, test=task.pool("dev"))


@recipe("object_cxr", "mgca")
def _object_mgca(task: Task) -> Draft:
    train, validate = train_test_split(task.pool("train"), test_size=0.1, random_state=0)
    return parts(train=train, validate=validate, test=task.pool("dev"))


@recipe("object_cxr", "clean")
def _object_clean(task: Task) -> Draft:
    return clean(task, task.pool("test"), task.pool("train", "dev"))


# ── MS-CXR and Open-I ────────────────────────────────────────────────────────────────────────────────────────────────


@recipe("ms_cxr", "official")
def _ms_official(task: Task) -> Draft:
    draft = as_released(task, "train", "validate", "test")
    if not any(len(p) for p in draft.parts.values()):
        raise DataError(
            "MS-CXR has a column split only from release 1.1.0 on; take the file of that release, or the split all"
        )
    return draft


@recipe("ms_cxr", "all")
@recipe("open_i", "all")
def _all(task: Task) -> Draft:
    return parts(test=np.arange(len(task.inputs)))


@recipe("open_i", "clean")
def _open_i_clean(task: Task) -> Draft:
    return clean(task, None, np.arange(len(task.inputs)))
