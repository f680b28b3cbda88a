"""Reading the split files that authors publish, in their own formats and under their own names."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medvlp.errors import DataError
from medvlp.io.tables import read_cells
from medvlp.splits.types import SplitInput

_IMAGE = re.compile(r"\.(jpe?g|png|dcm|dicom|tiff?|bmp)$", re.IGNORECASE)
_CHEXPERT = re.compile(r"(patient\d+)[/_](study\d+)[/_](view\d+_(?:frontal|lateral))", re.IGNORECASE)


def find_list(folder: str | Path | None, names: Sequence[str], *, what: str, repository: str) -> Path:
    """Find one file of the authors.

    Args:
        folder: where the files were put, or a folder above it (the repository's whole folder of lists).
        names: the names that the file may have.
        what: the split or rule that needs it, for the error.
        repository: the repository and folder that publish it, for the error.

    Returns:
        The path. A file directly in the folder is preferred.

    Raises:
        DataError: there is no folder, no such file in it, or several below it.
    """
    wanted = " or ".join(names)
    if folder is None:
        raise DataError(f"{what} cannot be rebuilt: it needs {wanted} from {repository}; give their folder as lists")
    root = Path(folder)
    for name in names:
        if (root / name).is_file():
            return root / name
    found = sorted(p for name in names for p in root.rglob(name) if p.is_file()) if root.is_dir() else []
    if len(found) != 1:
        state = f"holds {len(found)} files" if found else "holds no file"
        raise DataError(f"{what} needs {wanted} from {repository}; {root} {state} of that name")
    return found[0]


def read_list(path: Path) -> list[str]:
    """Read the image names of a list: the first field of each line of a text file, or the column ID of a csv.

    Text lists carry labels after the name (``00003547_001.png 0 0 1 …``), which are not read: they may differ from the
    labels of the release.

    Raises:
        DataError: the file cannot be read, or a csv has no such column.
    """
    if path.suffix == ".csv":
        return [name for name in read_columns(path, ["ID"])["ID"] if name]
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}); get it again") from error
    return [line.split()[0] for line in lines if line.strip()]


def read_columns(path: Path, names: Sequence[str]) -> pd.DataFrame:
    """Read columns of a csv as text.

    Raises:
        DataError: the file cannot be read, or lacks one of them.
    """
    again = "get it again"
    cells = read_cells(path, again=again, settable=False)
    cells.require(dict.fromkeys(names, again))
    return cells.frame({name: cells.names.index(name) for name in names})


def image_key(name: str) -> str:
    """What stays of an image name when folders and the ending of an image file are taken off.

    CheXpert's file names repeat in every study; there, patient and study stay. Ids with dots (SIIM) are left whole.
    """
    found = _CHEXPERT.search(name)
    if found:
        return "/".join(found.groups()).lower()
    return _IMAGE.sub("", name.replace("\\", "/").rsplit("/", 1)[-1])


def match_list(names: Sequence[str], inputs: SplitInput, path: Path) -> np.ndarray:
    """Find the records that a list names.

    Args:
        names: image names as the list has them.
        inputs: the records.
        path: the list, for the error.

    Returns:
        int64 record indices, in the order of the list, each once.

    Raises:
        DataError: names are missing among the records, or two records have one key.
    """
    index = pd.Index([image_key(str(i)) for i in inputs.ids])
    if not index.is_unique:
        raise DataError(f"two records go by the name {index[index.duplicated()][0]}, so {path.name} cannot be matched")
    records = index.get_indexer(pd.Index([image_key(n) for n in names]))
    missing = np.flatnonzero(records < 0)
    if len(missing):
        first = ", ".join(names[i] for i in missing[:3])
        raise DataError(
            f"{len(missing)} of the {len(names)} images in {path.name} are not among the {len(inputs)} records, for "
            f"example {first}; the list belongs to another release, or the copy is incomplete"
        )
    return pd.unique(records.astype(np.int64))
