"""COVIDx: images of several sources in ``train/`` and ``test/``, and text lists that class them.

A line of a list is ``patient file class [source]``, separated by blanks. In the older lists a patient's name may hold
a blank, so the file is the word that ends in an image extension, what precedes it is the patient, the next word the
class.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from medvlp.datasets.base import Dropped, OnError, make_table
from medvlp.datasets.corpus import Corpus, Records, Task
from medvlp.datasets.folders import IMAGE_SUFFIXES
from medvlp.datasets.tables import read_lines
from medvlp.errors import ConfigError, DataError, check_choice
from medvlp.splits import SplitInput

Classes = Literal["three", "binary"]

THREE: dict[str, str] = {"normal": "Normal", "pneumonia": "Pneumonia", "covid-19": "COVID-19"}
"""Class of the lists, in lower case, to label."""
_BINARY = ("negative", "positive")
_COVID = ("positive", "covid-19")
_KAGGLE = {"train": "train.txt", "validate": "val.txt", "test": "test.txt"}
_FOLDERS = {"train": "train", "validate": "val", "test": "test"}


class COVIDx(Corpus):
    """COVIDx in any version of its lists.

    Records are images in the order of the train list, the validation list (COVIDx CXR-4) and the test list. The id is
    the file name, the patient the first field; for images from RSNA that is the image itself.

    Args:
        root: folder with the lists and the folders train and test (and val).
        version: name of the lists: "COVIDx9A" reads train_COVIDx9A.txt and test_COVIDx9A.txt, in the root or in
            labels/; "kaggle" reads train.txt, test.txt and, if available, val.txt.
        classes: "three" has the labels Normal, Pneumonia and COVID-19, "binary" COVID-19 alone. Lists of positive and
            negative do not support three (MGCA's code silently takes each of their lines as COVID-19).
    """

    name = "covidx"
    title = "COVIDx"
    source = "Kaggle's andyczhao/covidx-cxr2 (images), and the folder labels of the COVID-Net repository (lists)"
    tasks = ("classification",)
    tables = ()
    image_folders = ("train", "val", "test")

    def __init__(
        self, root: str | Path, *, version: str, classes: Classes = "three", on_error: OnError = "raise"
    ) -> None:
        super().__init__(root, on_error=on_error)
        if not version or "/" in version or "\\" in version:
            raise ConfigError(
                f"unknown version {version!r}; COVIDx9A stands for train_COVIDx9A.txt, kaggle for train.txt"
            )
        check_choice("classes", classes, get_args(Classes))
        self.version = version
        self.classes = classes

    @classmethod
    def variants(cls, root: str | Path) -> tuple[dict[str, str], ...]:
        """One for each version with a list, with the classes of its lists."""
        versions: dict[str, str] = {}
        for path in sorted(p for f in (Path(root), Path(root) / "labels") for p in f.glob("t*.txt")):
            version = "kaggle" if path.name in _KAGGLE.values() else path.stem.partition("_")[2]
            if path.stem.partition("_")[0] not in ("train", "test") or not version:
                continue
            words = path.read_text(encoding="utf-8", errors="replace").lower().split()
            if versions.get(version) != "binary":
                versions[version] = "binary" if any(w in _BINARY for w in words) else "three"
        return tuple({"version": version, "classes": classes} for version, classes in sorted(versions.items()))

    def list_path(self, pool: str) -> Path | None:
        """The list of a part ("train", "validate" or "test"), or None if it does not exist."""
        if self.version == "kaggle":
            names = [_KAGGLE[pool]]
        else:
            starts = ("val", "valid") if pool == "validate" else (pool,)
            names = [f"{start}_{self.version}.txt" for start in starts]
        paths = (folder / name for folder in (self.root, self.root / "labels") for name in names)
        return next((p for p in paths if p.is_file()), None)

    def records(self, task: Task | None = None, pools: Sequence[str] | None = None) -> Records:
        """Images in the order of the lists."""
        dropped = self.begin(task)
        lines = self._lines(pools, dropped)
        lines = self.pools_on_disk(lines.assign(image=lines["id"]), _FOLDERS, dropped)
        return self._records(lines, dropped)

    def listing(self) -> SplitInput:
        """Every file of the lists; of a malformed line the first word that names a file, of unknown class."""
        dropped = self.begin(listing=True)
        return self.split_input(self._records(self._lines(None, dropped).assign(image=""), dropped))

    def _lines(self, pools: Sequence[str] | None, dropped: Dropped) -> pd.DataFrame:
        parts = []
        for pool in _FOLDERS:
            path = self.list_path(pool)
            if pool not in pools if pools is not None else path is None and pool == "validate":
                continue
            if path is None:
                lists = ", ".join(sorted(p.name for f in (self.root, self.root / "labels") for p in f.glob("*.txt")))
                raise DataError(
                    f"{self.root} has no {pool} list of version {self.version}; it has {lists or 'no list'}; get it"
                    f" from {self.remedy}, or set version to one that is there"
                )
            parts.append(self._read_list(pool, path, dropped))
        if not parts:
            raise DataError(f"COVIDx has the parts {', '.join(_FOLDERS)}, not {', '.join(pools or ())}")
        lines = pd.concat(parts, ignore_index=True)
        self._require_vocabulary(lines)
        return self.unique_items(lines, ["patient", "label"], dropped, "line")

    def _records(self, lines: pd.DataFrame, dropped: Dropped) -> Records:
        labels = pd.DataFrame({"COVID-19": lines["label"].isin(_COVID)})
        if self.classes == "three":
            labels = pd.DataFrame({label: lines["label"] == word for word, label in THREE.items()})
        labels = labels.astype("float32").where(lines["label"] != "")
        return Records(make_table(lines, labels), dropped.frame())

    def _read_list(self, pool: str, path: Path, dropped: Dropped) -> pd.DataFrame:
        """Columns pool, table, row (line), patient, id and label, in lower case ("" only while listing)."""
        lines = read_lines(path, again := f"get it again from {self.remedy}")
        if lines == [""]:
            raise DataError(f"{path} is an empty file; {again}")
        rows = []
        for row, line in enumerate(lines):
            words = line.split()
            if not words:
                continue
            files = [i for i, word in enumerate(words) if word.lower().endswith(IMAGE_SUFFIXES)]
            at = files[0] if files else 0
            label, reason = "", ""
            if len(files) != 1 or at == 0 or len(words) - at not in (2, 3):
                reason = "malformed line: it must read patient, file, class and perhaps source"
            elif (label := words[at + 1].lower()) not in THREE and label not in _BINARY:
                reason = "unknown class"
            if reason:
                self.broken(dropped, words[at] if files else "", row, reason, str(path))
                label = ""
            if not label and not (files and dropped.listing):
                continue  # a listing counts every line that names a file
            name = words[at].replace("\\", "/").rpartition("/")[2]
            rows.append((pool, str(path), row, " ".join(words[:at]), name, label))
        return pd.DataFrame(rows, columns=["pool", "table", "row", "patient", "id", "label"])

    def _require_vocabulary(self, lines: pd.DataFrame) -> None:
        binary = lines[lines["label"].isin(_BINARY)]
        if not len(binary):
            return
        first = binary.iloc[0]
        if len(binary) < (lines["label"] != "").sum():
            raise DataError(
                f"{first['table']}, row {first['row']}: the lists mix {'/'.join(_BINARY)} with {'/'.join(THREE)};"
                f" take all lists of one version, from {self.remedy}"
            )
        if self.classes == "three":
            raise ConfigError(
                f"{first['table']} has only positive and negative, so classes: three is not available; set"
                " classes: binary, or a version with three classes, such as COVIDx9A"
            )
