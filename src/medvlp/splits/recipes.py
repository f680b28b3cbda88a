"""The recipes: from what is known of each record to the members of the parts.

The calls to scikit-learn, pandas and numpy are those of the published code, on record indices in place of rows of a
table, which gives the same members. Sizes that a recipe fixes for one release shrink in proportion on a smaller copy
(a phantom), so that every recipe runs on every copy; :mod:`medvlp.splits.make` refuses such a copy unless told not to.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from medvlp.errors import DataError
from medvlp.splits.catalog import SplitInfo
from medvlp.splits.fractions import hash_split, linked_groups, target
from medvlp.splits.lists import find_list, image_key, match_list, read_columns, read_list
from medvlp.splits.types import Part, SplitInput

_VALIDATE, _TEST = 0.1, 0.2  # shares of our own split; beside an official test set, 0.1 / (1 − 0.2) of the rest


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
class Request:
    """What a recipe gets: the split, the records, the seed of the call, and the folder of the authors' lists."""

    info: SplitInfo
    inputs: SplitInput
    seed: int
    lists: str | Path | None

    def pool(self, *pools: str) -> np.ndarray:
        """Return the indices of the records of the released parts named, in order; of all records if none is named."""
        return np.flatnonzero(self.inputs.in_pool(*pools)) if pools else np.arange(len(self.inputs))

    def frontal(self, *pools: str) -> np.ndarray:
        """Return those of the records that are no laterals."""
        records = self.pool(*pools)
        return np.asarray(records[self.inputs.is_frontal[records]])

    def by_id(self, *pools: str) -> np.ndarray:
        """Return the records in alphabetical order of their ids, as pandas' groupby puts them."""
        records = self.pool(*pools)
        return records[np.argsort(np.asarray(self.inputs.ids)[records].astype(str), kind="stable")]

    def listed(self, *names: str) -> np.ndarray:
        """Return the records that one of the authors' files lists."""
        path = self.find(*names)
        return match_list(read_list(path), self.inputs, path)

    def find(self, *names: str) -> Path:
        """Return one of the authors' files, by one of its names."""
        what = f"the split {self.info.name} of {self.info.corpus}"
        return find_list(self.lists, names, what=what, repository=self.info.repository)


Recipe = Callable[[Request], Draft]
RECIPES: dict[tuple[str, str], Recipe] = {}
"""(corpus, split) to recipe."""


def recipe(corpus: str, *names: str) -> Callable[[Recipe], Recipe]:
    """Register a recipe under one or more names of a corpus."""

    def register(function: Recipe) -> Recipe:
        RECIPES.update({(corpus, name): function for name in names})
        return function

    return register


def scaled(size: int, of: int, n: int) -> int:
    """Scale a size fixed for a release of ``of`` records to a copy of n."""
    return size if n == of else round(size * n / of)


def parts(**members: np.ndarray) -> Draft:
    """Return a draft from record indices."""
    return Draft({name: Part(np.asarray(records, dtype=np.int64)) for name, records in members.items()})


def _halves(records: np.ndarray, size: int | float, seed: int) -> dict[str, np.ndarray]:
    """Cut off a test-and-validation set and halve it; the first half is the test set (GLoRIA, MGCA)."""
    train, rest = train_test_split(records, test_size=size, random_state=seed)
    test, validate = train_test_split(rest, test_size=0.5, random_state=seed)
    return {"train": train, "validate": validate, "test": test}


def _held_out(records: np.ndarray, test: np.ndarray, seed: int, **size: float) -> Draft:
    """Draw the validation set from the records."""
    train, validate = train_test_split(records, random_state=seed, **size)
    return parts(train=train, validate=validate, test=test)


def _clean(request: Request, official: str, pools: Sequence[str], frontal: bool = False) -> Draft:
    """Our own split: by hash of the patient, copies of an image together, beside the official test set if any.

    Records that share a patient or an image with the official test set are in no part.
    """
    inputs, info, choose = request.inputs, request.info, request.frontal if frontal else request.pool
    records, test = choose(*pools), choose(official) if official else None
    if test is not None and not len(test):
        raise DataError(
            f"the split {info.name} of {info.corpus} keeps the official test set, of which this copy has no "
            f"record; add it, or choose another split"
        )
    groups = linked_groups(inputs.patients, inputs.hashes)
    merged = pd.Series(groups).nunique() < pd.Series(inputs.patients, dtype=object).nunique()
    if test is None:
        names = hash_split(groups[records].tolist(), {"test": _TEST, "validate": _VALIDATE}, request.seed)
        test = records[names == "test"]
    else:
        records = records[~pd.Series(groups[records]).isin(groups[test]).to_numpy()]
        names = hash_split(groups[records].tolist(), {"validate": _VALIDATE / (1 - _TEST)}, request.seed)
    drawn = parts(train=records[names == "train"], validate=records[names == "validate"], test=test)
    return Draft(drawn.parts, comparable=not merged)


def _pools(request: Request, **pools: Sequence[str]) -> Draft:
    return parts(**{name: request.pool(*some) for name, some in pools.items()})


def _lists(request: Request, **files: Sequence[str]) -> Draft:
    return parts(**{name: request.listed(*names) for name, names in files.items()})


_MACO_LISTS = {"train": ("train_list.txt",), "validate": ("val_list.txt",), "test": ("test_list.txt",)}
_RELEASED = {"train": ("train",), "validate": ("validate",), "test": ("test",)}
_DEV = {"train": ("train",), "validate": ("dev",), "test": ("test",)}

for _name, _official, _rest, _frontal in (
    ("mimic_cxr clean", "test", ("train", "validate"), False),
    ("chexpert clean", "test", ("train",), True),
    ("chexpert clean_valid", "validate", ("train",), True),
    ("rsna clean", "", ("train",), False),
    ("siim clean", "", (), False),
    ("covidx clean", "test", ("train", "validate"), False),
    ("cxr14 clean", "test", ("train_val", "train"), False),
    ("object_cxr clean", "test", ("train", "dev"), False),
    ("open_i clean", "", (), False),
):
    recipe(*_name.split())(partial(_clean, official=_official, pools=_rest, frontal=_frontal))

for _name, _of_parts in (
    ("mimic_cxr official", _RELEASED),
    ("chexpert official", _RELEASED),
    ("covidx official", _RELEASED),
    ("cxr14 official", {"train": ("train_val", "train"), "test": ("test",)}),
    ("cxr14 medklip", {"test": ("test",)}),
    ("object_cxr official benchx", _DEV),
    ("ms_cxr all", {"test": ()}),
    ("open_i all", {"test": ()}),
):
    recipe(*_name.split())(partial(_pools, **_of_parts))

for _name, _files in (
    ("rsna medklip", {"test": ("test.csv",)}),
    ("siim maco", _MACO_LISTS),
    ("cxr14 maco", _MACO_LISTS),
    # BenchX took these lists over; its own files hold the same names
    ("cxr14 benchx", {name: (file.replace("_list", ""), file) for name, (file,) in _MACO_LISTS.items()}),
):
    recipe(*_name.split())(partial(_lists, **_files))


@recipe("mimic_cxr", "mgca")
def _mimic_mgca(request: Request) -> Draft:
    frontal = pd.Series(request.inputs.views, dtype=object).str.upper().isin(("AP", "PA")).to_numpy()
    train, rest = request.pool("train"), request.pool("validate", "test")
    return parts(train=train[frontal[train]], validate=rest[frontal[rest]], test=rest[frontal[rest]])


# ── CheXpert: MGCA's recipe with its bug, and the sizes of the papers ────────────────────────────────────────────────

_COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
# labels that must be absent in CheXpert 5×200; No Finding may have any value
_OTHERS: tuple[str, ...] = ("Enlarged Cardiomediastinum", "Lung Lesion", "Lung Opacity", "Pneumonia", "Pneumothorax")
_OTHERS += ("Pleural Other", "Fracture", "Support Devices")
_CHEXPERT = 223_414


def _chexpert_5x200(request: Request, random: int | np.random.RandomState) -> np.ndarray:
    """CheXpert 5×200: frontal images with exactly one of the five competition labels, 200 of each.

    Blanks count as absent, an uncertain label excludes an image. The state ``random`` starts each of the five draws
    (MGCA: 0), or is one generator for all (GLoRIA). Returns record indices, one label after the other.
    """
    inputs, records = request.inputs, request.pool("train")
    missing = [n for n in (*_COMPETITION, *_OTHERS) if n not in inputs.labels.columns]
    if missing:
        raise DataError(f"CheXpert 5×200 needs the labels {missing}, which the records lack; read all 14 of train.csv")
    labels = inputs.labels.iloc[records]
    five = labels[list(_COMPETITION)].fillna(0).to_numpy()
    free = inputs.is_frontal[records] & (labels[list(_OTHERS)].fillna(0).to_numpy() == 0).all(axis=1)
    drawn = []
    for only in np.eye(len(_COMPETITION)):
        pool = pd.Series(records[free & (five == only).all(axis=1)])
        size = scaled(200, _CHEXPERT, len(records))
        if size > len(pool):
            raise DataError(f"CheXpert 5×200 needs {size} images with one label alone, which only {len(pool)} have")
        drawn.append(pool.sample(n=size, random_state=random).to_numpy())
    return np.concatenate(drawn).astype(np.int64)


def _without_5x200(request: Request, taken: np.ndarray, random: np.random.RandomState) -> Draft:
    """Validation rows are drawn by position in a table that has lost 1,000 rows, and dropped by label.

    Label and position no longer agree, so nearly all validation rows stay in train and other rows are lost.
    """
    records = request.pool("train")
    labels = np.flatnonzero(~np.isin(records, taken))
    positions = random.choice(len(labels), size=scaled(5_000, _CHEXPERT, len(records)), replace=False)
    train = records[labels[~np.isin(labels, positions)]]
    return parts(train=train, validate=records[labels[positions]], test=request.pool("validate"))


@recipe("chexpert", "mgca")
def _chexpert_mgca(request: Request) -> Draft:
    return _without_5x200(request, _chexpert_5x200(request, 0), np.random.RandomState(0))


@recipe("chexpert", "mgca_5x200")
def _chexpert_mgca_5x200(request: Request) -> Draft:
    return parts(test=_chexpert_5x200(request, 0))


@recipe("chexpert", "gloria")
def _chexpert_gloria(request: Request) -> Draft:
    random = np.random.RandomState(request.seed)
    return _without_5x200(request, _chexpert_5x200(request, random), random)


@recipe("chexpert", "g2d", "mgca_paper")
def _chexpert_g2d(request: Request) -> Draft:
    records = request.frontal("train")
    size = scaled(5_000, 191_027, len(records))
    return _held_out(records, request.frontal("validate"), request.seed, test_size=size)


@recipe("chexpert", "maco")
def _chexpert_maco(request: Request) -> Draft:
    records, validate = request.pool("train"), request.listed("val_list.txt")
    return parts(train=records[~np.isin(records, validate)], validate=validate, test=request.pool("validate"))


@recipe("chexpert", "kad")
def _chexpert_kad(request: Request) -> Draft:
    # view1 sorts before view2, and every patient of the test set has one study
    records = request.by_id("test")
    patients = pd.Series(np.asarray(request.inputs.patients, dtype=object)[records])
    return parts(test=np.sort(records[~patients.duplicated().to_numpy()]))


# ── RSNA: recipes sort the images of stage_2_train_labels.csv by patientId, as its groupby does ──────────────────────

_RSNA = 26_684


@recipe("rsna", "mgca", "gloria")
def _rsna_mgca(request: Request) -> Draft:
    return parts(**_halves(request.by_id("train"), 0.3, 0))


@recipe("rsna", "mgca_detection", "g2d")
def _rsna_detection(request: Request) -> Draft:
    records = request.by_id("train")
    return parts(**_halves(records, scaled(2 * 5_337, _RSNA, len(records)), 0))


@recipe("rsna", "benchx")
def _rsna_benchx(request: Request) -> Draft:
    records = request.by_id("train")
    classes = target(request.inputs.labels)
    train, rest = train_test_split(records, test_size=0.3, stratify=classes[records], random_state=42)
    validate, test = train_test_split(rest, test_size=0.5, stratify=classes[rest], random_state=42)
    return parts(train=train, validate=validate, test=test)


@recipe("rsna", "maco")
def _rsna_maco(request: Request) -> Draft:
    records = request.by_id("train")
    edge = scaled(25_184, _RSNA, len(records))
    return parts(train=records[:edge], validate=records[edge:], test=request.by_id("test"))


@recipe("siim", "g2d")
def _siim_g2d(request: Request) -> Draft:
    n = len(request.inputs)
    # 0.3 as a share would give 8,432 / 1,808 / 1,807
    return parts(**_halves(np.arange(n), 2 * int(0.15 * n), request.seed))


@recipe("siim", "mgca", "gloria")
def _siim_mgca(request: Request) -> Draft:
    owner = np.arange(len(request.inputs)) if request.inputs.rows is None else np.asarray(request.inputs.rows)
    drawn = _halves(np.arange(len(owner)), 0.3, 0)
    return Draft(
        {name: Part(pd.unique(owner[rows]).astype(np.int64), rows.astype(np.int64)) for name, rows in drawn.items()}
    )


@recipe("siim", "benchx")
def _siim_benchx(request: Request) -> Draft:
    names: dict[str, str] = {}
    for part in ("train", "test"):
        frame = read_columns(request.find(f"stage_1_{part}_images.csv"), ("new_filename", "ImageId"))
        names.update(zip(map(image_key, frame["new_filename"]), frame["ImageId"], strict=True))
    lists = {}
    for name, (file,) in _MACO_LISTS.items():
        path = request.find(file.replace("_list", ""))
        listed = read_list(path)
        if unknown := [n for n in listed if image_key(n) not in names]:
            count = f"{len(unknown)} of the {len(listed)} images"
            raise DataError(f"{count} in {path} are in no table of the repack, for example {unknown[0]}")
        lists[name] = match_list([names[image_key(n)] for n in listed], request.inputs, path)
    return parts(**lists)


@recipe("covidx", "g2d", "mgca")
def _covidx_mgca(request: Request) -> Draft:
    return _held_out(request.pool("train"), request.pool("test"), 0, train_size=0.8)


@recipe("covidx", "benchx")
def _covidx_benchx(request: Request) -> Draft:
    # its reader takes the first line of each list for a header
    released = _pools(request, **_RELEASED).parts
    return parts(**{name: part.records[1:] for name, part in released.items()})


@recipe("cxr14", "kad", "g2d")
def _cxr14_kad(request: Request) -> Draft:
    records = request.pool("train_val", "train")
    # 0.1 as a share would give one image more: scikit-learn rounds up, the published number is rounded down
    return _held_out(records, request.pool("test"), request.seed, test_size=int(0.1 * len(records)))


@recipe("object_cxr", "g2d", "mgca_paper")
def _object_g2d(request: Request) -> Draft:
    return _held_out(request.pool("train"), request.pool("dev"), request.seed, test_size=0.2)


@recipe("object_cxr", "mgca")
def _object_mgca(request: Request) -> Draft:
    return _held_out(request.pool("train"), request.pool("dev"), 0, test_size=0.1)


@recipe("ms_cxr", "official")
def _ms_official(request: Request) -> Draft:
    draft = _pools(request, **_RELEASED)
    if not any(len(p) for p in draft.parts.values()):
        raise DataError(
            "MS-CXR has a column split only from release 1.1.0 on; take the file of that release, or the split all"
        )
    return draft
