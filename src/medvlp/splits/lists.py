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
    """Find one file of the authors, by one of its names, directly in a folder or anywhere below it.

    Raises:
        DataError: no folder is given, no such file lies in it, or several lie below it. The error names the split or
            rule that needs the file (``what``), and the ``repository`` that publishes it.
    """
    expected = " or ".join(names)
    if folder is None:
        raise DataError(f"{what} needs {expected} from {repository}; set lists to the folder that holds it")
    root = Path(folder)
    for name in names:
        if (root / name).is_file():
            return root / name
    matches = sorted(p for name in names for p in root.rglob(name) if p.is_file()) if root.is_dir() else []
    if len(matches) != 1:
        state = f"holds {len(matches)} files" if matches else "holds no file"
        raise DataError(f"{what} needs {expected} from {repository}; {root} {state} of that name")
    return matches[0]


def read_list(path: Path) -> list[str]:
    """Read the image names of a list: the first field of each line of a text file, or the column ID of a CSV.

    Labels after the name (``00003547_001.png 0 0 1 …``) are ignored, since they may differ from those of the release.
    """
    if path.suffix == ".csv":
        return [name for name in read_columns(path, ["ID"])["ID"] if name]
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}); get it again") from error
    return [line.split()[0] for line in lines if line.strip()]


def read_columns(path: Path, names: Sequence[str]) -> pd.DataFrame:
    """Read columns of a CSV as text."""
    again = "get it again"
    cells = read_cells(path, again=again, settable=False)
    cells.require(dict.fromkeys(names, again))
    return cells.frame({name: cells.names.index(name) for name in names})


def image_key(name: str) -> str:
    """Return an image name without folders and the suffix of an image file; ids with dots (SIIM) stay whole.

    CheXpert's file names repeat in every study, so patient and study stay.
    """
    if match := _CHEXPERT.search(name):
        return "/".join(match.groups()).lower()
    return _IMAGE.sub("", name.replace("\\", "/").rsplit("/", 1)[-1])


def match_list(names: Sequence[str], inputs: SplitInput, path: Path) -> np.ndarray:
    """Return the indices of the records that a list names, in the order of the list, each once."""
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
