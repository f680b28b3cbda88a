"""The recipes of CheXpert: MGCA's with its bug, the sizes of the papers, and ours."""

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from medvlp.errors import DataError
from medvlp.splits.recipes import Draft, Task, clean, parts, recipe, scaled
from medvlp.splits.types import SplitInput

COMPETITION: tuple[str, ...] = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
OTHERS: tuple[str, ...] = (
    "Enlarged Cardiomediastinum",
    "Lung Lesion",
    "Lung Opacity",
    "Pneumonia",
    "Pneumothorax",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""Labels that must be absent in CheXpert 5×200. No Finding may have any value."""

_ROWS = 223_414
_VALIDATE = 5_000


def chexpert_5x200(inputs: SplitInput, records: np.ndarray, random: int | np.random.RandomState) -> np.ndarray:
    """CheXpert 5×200: frontal images with exactly one of the five competition labels, 200 of each.

    Blanks count as absent, an uncertain label excludes an image.

    Args:
        inputs: the corpus.
        records: the rows of train.csv.
        random: the state that each of the five draws starts from (MGCA: 0), or one generator for all (GLoRIA).

    Returns:
        Record indices, the five labels one after the other.

    Raises:
        DataError: a label is missing.
    """
    missing = [n for n in (*COMPETITION, *OTHERS) if n not in inputs.labels.columns]
    if missing:
        raise DataError(f"CheXpert 5×200 needs the labels {missing}, which the records lack; read all 14 of train.csv")
    labels = inputs.labels.iloc[records]
    five = labels[list(COMPETITION)].fillna(0).to_numpy()
    free = inputs.is_frontal[records] & (labels[list(OTHERS)].fillna(0).to_numpy() == 0).all(axis=1)
    drawn = []
    for wanted in np.eye(len(COMPETITION)):
        pool = pd.Series(records[free & (five == wanted).all(axis=1)])
        size = scaled(200, _ROWS, len(records))
        if size > len(pool):
            raise DataError(f"CheXpert 5×200 needs {size} images of a kind of which there are {len(pool)}")
        drawn.append(pool.sample(n=size, random_state=random).to_numpy())
    return np.concatenate(drawn).astype(np.int64)


def _gloria_rows(
    inputs: SplitInput, records: np.ndarray, taken: np.ndarray, random: np.random.RandomState
) -> dict[str, np.ndarray]:
    """Validation rows are drawn by position in a table that has lost 1,000 rows, and dropped by label.

    Label and position no longer agree, so nearly all validation rows stay in train and other rows are lost.
    """
    labels = np.flatnonzero(~np.isin(records, taken))
    positions = random.choice(len(labels), size=scaled(_VALIDATE, _ROWS, len(records)), replace=False)
    return {"train": records[labels[~np.isin(labels, positions)]], "validate": records[labels[positions]]}


@recipe("chexpert", "official")
def _official(task: Task) -> Draft:
    return parts(train=task.pool("train"), validate=task.pool("validate"), test=task.pool("test"))


@recipe("chexpert", "mgca")
def _mgca(task: Task) -> Draft:
    records = task.pool("train")
    taken = chexpert_5x200(task.inputs, records, 0)
    rows = _gloria_rows(task.inputs, records, taken, np.random.RandomState(0))
    return parts(**rows, test=task.pool("validate"))


@recipe("chexpert", "mgca_5x200")
def _mgca_5x200(task: Task) -> Draft:
    return parts(test=chexpert_5x200(task.inputs, task.pool("train"), 0))


@recipe("chexpert", "gloria")
def _gloria(task: Task) -> Draft:
    records, random = task.pool("train"), np.random.RandomState(task.seed)
    taken = chexpert_5x200(task.inputs, records, random)
    return parts(**_gloria_rows(task.inputs, records, taken, random), test=task.pool("validate"))


@recipe("chexpert", "g2d", "mgca_paper")
def _g2d(task: Task) -> Draft:
    records = task.frontal(task.pool("train"))
    size = scaled(_VALIDATE, 191_027, len(records))
    train, validate = train_test_split(records, test_size=size, random_state=task.seed)
    return parts(train=train, validate=validate, test=task.frontal(task.pool("validate")))


@recipe("chexpert", "maco")
def _maco(task: Task) -> Draft:
    records, validate = task.pool("train"), task.from_list("val_list.txt")
    return parts(train=records[~np.isin(records, validate)], validate=validate, test=task.pool("validate"))


@recipe("chexpert", "kad")
def _kad(task: Task) -> Draft:
    # view1 sorts before view2, and every patient of the test set has one study
    records = task.by_id(task.pool("test"))
    patients = pd.Series(np.asarray(task.inputs.patients, dtype=object)[records])
    return parts(test=np.sort(records[~patients.duplicated().to_numpy()]))


@recipe("chexpert", "clean")
def _clean(task: Task) -> Draft:
    return clean(task, task.frontal(task.pool("test")), task.frontal(task.pool("train")))


@recipe("chexpert", "clean_valid")
def _clean_valid(task: Task) -> Draft:
    return clean(task, task.frontal(task.pool("validate")), task.frontal(task.pool("train")))
