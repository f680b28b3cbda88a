"""The recipes: from what is known of each record to the members of the parts.

The calls to scikit-learn, pandas and numpy are those of the published code, on record indices instead of rows of a
table, which gives the same members. Sizes that a recipe fixes for one release shrink in proportion on a smaller copy
(a phantom), so that every recipe runs on every copy; :mod:`medvlp.splits.make` refuses such a copy unless told not to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from medvlp.errors import DataError
from medvlp.splits.catalog import SplitInfo
from medvlp.splits.fractions import hash_split, linked_groups, target
from medvlp.splits.lists import find_list, image_key, match_list, read_columns, read_list
from medvlp.splits.types import Part, SplitInput

_VALIDATE, _TEST = 0.1, 0.2  # shares of our own split; beside an official test set, 0.1 / (1 − 0.2) of the rest
_CHEXPERT, _RSNA = 223_414, 26_684  # records of the releases

_COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
# labels that must be absent in CheXpert 5×200; No Finding may have any value
_OTHERS: tuple[str, ...] = ("Enlarged Cardiomediastinum", "Lung Lesion", "Lung Opacity", "Pneumonia", "Pneumothorax")
_OTHERS += ("Pleural Other", "Fracture", "Support Devices")


class Draft(NamedTuple):
    """The parts of a split before they are checked."""

    parts: dict[str, Part]
    comparable: bool = True  # whether the recorded numbers apply; not if copies of images changed what stays together


@dataclass(frozen=True, eq=False)
class Request:
    """What a recipe gets."""

    info: SplitInfo
    inputs: SplitInput
    seed: int
    lists: str | Path | None  # the folder of the authors' lists

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


def _scaled(size: int, of: int) -> Callable[[int], int]:
    """Return a function that scales a size fixed for a release of ``of`` records to a copy of n."""
    return lambda n: size if n == of else round(size * n / of)


def _parts(**members: np.ndarray) -> Draft:
    return Draft({name: Part(np.asarray(records, dtype=np.int64)) for name, records in members.items()})


def _halves(records: np.ndarray, size: float | Callable[[int], int], seed: int) -> dict[str, np.ndarray]:
    """Cut off a test-and-validation set and halve it; the first half is the test set (GLoRIA, MGCA)."""
    size = size(len(records)) if callable(size) else size
    train, rest = train_test_split(records, test_size=size, random_state=seed)
    test, validate = train_test_split(rest, test_size=0.5, random_state=seed)
    return {"train": train, "validate": validate, "test": test}


def _held_out(records: np.ndarray, test: np.ndarray, seed: int, **size: float | Callable[[int], int]) -> Draft:
    """Draw the validation set from the records; ``size`` is ``test_size`` or ``train_size`` of scikit-learn."""
    settings = {name: value(len(records)) if callable(value) else value for name, value in size.items()}
    train, validate = train_test_split(records, random_state=seed, **settings)
    return _parts(train=train, validate=validate, test=test)


def _clean(request: Request, official: str, *pools: str, frontal: bool = False) -> Draft:
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
    drawn = _parts(train=records[names == "train"], validate=records[names == "validate"], test=test)
    return Draft(drawn.parts, comparable=not merged)


def _pools(request: Request, pools: Mapping[str, Sequence[str]]) -> Draft:
    return _parts(**{name: request.pool(*some) for name, some in pools.items()})


def _lists(request: Request, files: Mapping[str, Sequence[str]]) -> Draft:
    return _parts(**{name: request.listed(*names) for name, names in files.items()})


def _mimic_mgca(request: Request) -> Draft:
    frontal = pd.Series(request.inputs.views, dtype=object).str.upper().isin(("AP", "PA")).to_numpy()
    train, rest = request.pool("train"), request.pool("validate", "test")
    return _parts(train=train[frontal[train]], validate=rest[frontal[rest]], test=rest[frontal[rest]])


def _chexpert_5x200(request: Request, random: int | np.random.RandomState) -> np.ndarray:
    """CheXpert 5×200: frontal images with exactly one of the five competition labels, 200 of each.

    Blanks count as absent, an uncertain label excludes an image. The state ``random`` starts each of the five draws
    (MGCA: 0), or is one generator for all (GLoRIA). Returns record indices, one label after the other.
    """
    inputs, records = request.inputs, request.pool("train")
    missing = [n for n in (*_COMPETITION, *_OTHERS) if n not in inputs.labels.columns]
    if missing:
        raise DataError(f"CheXpert 5×200 needs the labels {missing}, which the records lack; read all 14 of train.csv")
    labels = inputs.labels.iloc[records].fillna(0)
    five = labels[list(_COMPETITION)].to_numpy()
    free = inputs.is_frontal[records] & (labels[list(_OTHERS)].to_numpy() == 0).all(axis=1)
    drawn = []
    for only in np.eye(len(_COMPETITION)):
        pool = pd.Series(records[free & (five == only).all(axis=1)])
        size = _scaled(200, _CHEXPERT)(len(records))
        if size > len(pool):
            raise DataError(f"CheXpert 5×200 needs {size} images with one label alone, which only {len(pool)} have")
        drawn.append(pool.sample(n=size, random_state=random).to_numpy())
    return np.concatenate(drawn).astype(np.int64)


def _without_5x200(request: Request, seed: int, *, one_generator: bool) -> Draft:
    """Validation rows are drawn by position in a table that has lost 1,000 rows, and dropped by label.

    Label and position no longer agree, so nearly all validation rows stay in train and other rows are lost.
    """
    random, records = np.random.RandomState(seed), request.pool("train")
    taken = _chexpert_5x200(request, random if one_generator else seed)
    labels = np.flatnonzero(~np.isin(records, taken))
    positions = random.choice(len(labels), size=_scaled(5_000, _CHEXPERT)(len(records)), replace=False)
    train = records[labels[~np.isin(labels, positions)]]
    return _parts(train=train, validate=records[labels[positions]], test=request.pool("validate"))


def _chexpert_maco(request: Request) -> Draft:
    records, validate = request.pool("train"), request.listed("val_list.txt")
    return _parts(train=records[~np.isin(records, validate)], validate=validate, test=request.pool("validate"))


def _chexpert_kad(request: Request) -> Draft:
    # view1 sorts before view2, and every patient of the test set has one study
    records = request.by_id("test")
    patients = pd.Series(np.asarray(request.inputs.patients, dtype=object)[records])
    return _parts(test=np.sort(records[~patients.duplicated().to_numpy()]))


def _rsna_benchx(request: Request) -> Draft:
    records = request.by_id("train")
    classes = target(request.inputs.labels)
    train, rest = train_test_split(records, test_size=0.3, stratify=classes[records], random_state=42)
    validate, test = train_test_split(rest, test_size=0.5, stratify=classes[rest], random_state=42)
    return _parts(train=train, validate=validate, test=test)


def _rsna_maco(request: Request) -> Draft:
    records = request.by_id("train")
    edge = _scaled(25_184, _RSNA)(len(records))
    return _parts(train=records[:edge], validate=records[edge:], test=request.by_id("test"))


def _siim_mgca(request: Request) -> Draft:
    owner = np.arange(len(request.inputs)) if request.inputs.rows is None else np.asarray(request.inputs.rows)
    drawn = _halves(np.arange(len(owner), dtype=np.int64), 0.3, 0)
    return Draft({name: Part(pd.unique(owner[rows]).astype(np.int64), rows) for name, rows in drawn.items()})


def _siim_benchx(request: Request) -> Draft:
    names: dict[str, str] = {}
    for part in ("train", "test"):
        frame = read_columns(request.find(f"stage_1_{part}_images.csv"), ("new_filename", "ImageId"))
        names.update(zip(map(image_key, frame["new_filename"]), frame["ImageId"], strict=True))
    members = {}
    for name, (file,) in _MACO_LISTS.items():
        path = request.find(file.replace("_list", ""))
        listed = read_list(path)
        if unknown := [n for n in listed if image_key(n) not in names]:
            count = f"{len(unknown)} of the {len(listed)} images"
            raise DataError(f"{count} in {path} are in no table of the repack, for example {unknown[0]}")
        members[name] = match_list([names[image_key(n)] for n in listed], request.inputs, path)
    return _parts(**members)


def _ms_official(request: Request) -> Draft:
    draft = _pools(request, _RELEASED)
    if not any(len(p) for p in draft.parts.values()):
        raise DataError(
            "MS-CXR has a column split only from release 1.1.0 on; take the file of that release, or the split all"
        )
    return draft


_MACO_LISTS = {"train": ("train_list.txt",), "validate": ("val_list.txt",), "test": ("test_list.txt",)}
_RELEASED = {"train": ("train",), "validate": ("validate",), "test": ("test",)}

Recipe = Callable[[Request], Draft]
_BY_CORPUS: dict[str, dict[str, Recipe]] = {
    "mimic_cxr": {
        "official": lambda r: _pools(r, _RELEASED),
        "mgca": _mimic_mgca,
        "clean": lambda r: _clean(r, "test", "train", "validate"),
    },
    "chexpert": {
        "g2d mgca_paper": lambda r: _held_out(
            r.frontal("train"), r.frontal("validate"), r.seed, test_size=_scaled(5_000, 191_027)
        ),
        "mgca": lambda r: _without_5x200(r, 0, one_generator=False),
        "mgca_5x200": lambda r: _parts(test=_chexpert_5x200(r, 0)),
        "gloria": lambda r: _without_5x200(r, r.seed, one_generator=True),
        "maco": _chexpert_maco,
        "kad": _chexpert_kad,
        "official": lambda r: _pools(r, _RELEASED),
        "clean": lambda r: _clean(r, "test", "train", frontal=True),
        "clean_valid": lambda r: _clean(r, "validate", "train", frontal=True),
    },
    "rsna": {  # recipes sort the images of stage_2_train_labels.csv by patientId, as its groupby does
        "g2d mgca_detection": lambda r: _parts(**_halves(r.by_id("train"), _scaled(2 * 5_337, _RSNA), 0)),
        "mgca gloria": lambda r: _parts(**_halves(r.by_id("train"), 0.3, 0)),
        "benchx": _rsna_benchx,
        "maco": _rsna_maco,
        "medklip": lambda r: _lists(r, {"test": ("test.csv",)}),
        "clean": lambda r: _clean(r, "", "train"),
    },
    "siim": {
        # 0.3 as a share would give 8,432 / 1,808 / 1,807
        "g2d": lambda r: _parts(**_halves(r.pool(), 2 * int(0.15 * len(r.inputs)), r.seed)),
        "mgca gloria": _siim_mgca,
        "benchx": _siim_benchx,
        "maco": lambda r: _lists(r, _MACO_LISTS),
        "clean": lambda r: _clean(r, ""),
    },
    "covidx": {
        "g2d mgca": lambda r: _held_out(r.pool("train"), r.pool("test"), 0, train_size=0.8),
        # its reader takes the first line of each list for a header
        "benchx": lambda r: _parts(**{name: r.pool(name)[1:] for name in _RELEASED}),
        "official": lambda r: _pools(r, _RELEASED),
        "clean": lambda r: _clean(r, "test", "train", "validate"),
    },
    "cxr14": {
        # 0.1 as a share would give one image more: scikit-learn rounds up, the published number is rounded down
        "kad g2d": lambda r: _held_out(
            r.pool("train_val", "train"), r.pool("test"), r.seed, test_size=lambda n: int(0.1 * n)
        ),
        "official": lambda r: _pools(r, {"train": ("train_val", "train"), "test": ("test",)}),
        "medklip": lambda r: _pools(r, {"test": ("test",)}),
        "maco": lambda r: _lists(r, _MACO_LISTS),
        # BenchX took these lists over; its own files hold the same names
        "benchx": lambda r: _lists(
            r, {name: (file.replace("_list", ""), file) for name, (file,) in _MACO_LISTS.items()}
        ),
        "clean": lambda r: _clean(r, "test", "train_val", "train"),
    },
    "object_cxr": {
        "g2d mgca_paper": lambda r: _held_out(r.pool("train"), r.pool("dev"), r.seed, test_size=0.2),
        "mgca": lambda r: _held_out(r.pool("train"), r.pool("dev"), 0, test_size=0.1),
        "official benchx": lambda r: _pools(r, {"train": ("train",), "validate": ("dev",), "test": ("test",)}),
        "clean": lambda r: _clean(r, "test", "train", "dev"),
    },
    "ms_cxr": {"official": _ms_official, "all": lambda r: _pools(r, {"test": ()})},
    "open_i": {"all": lambda r: _pools(r, {"test": ()}), "clean": lambda r: _clean(r, "")},
}
RECIPES: dict[tuple[str, str], Recipe] = {
    (corpus, name): recipe
    for corpus, recipes in _BY_CORPUS.items()
    for names, recipe in recipes.items()
    for name in names.split()
}
"""(corpus, split) to recipe."""
