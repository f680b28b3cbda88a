"""Made-up inputs of the size and structure of the corpora whose files are not public."""

import numpy as np
import pandas as pd

from medvlp.splits import SplitInput

CHEXPERT_14 = [
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
]


def inputs(ids, *, patients=None, pool="", frontal=None, labels=None, rows=None, hashes=None):
    ids = np.asarray(ids, dtype=object)
    n = len(ids)
    pool = np.full(n, pool, dtype=object) if isinstance(pool, str) else np.asarray(pool, dtype=object)
    return SplitInput(
        ids=ids,
        patients=ids if patients is None else np.asarray(patients, dtype=object),
        pool=pool,
        views=np.full(n, "", dtype=object),
        frontal=np.ones(n, bool) if frontal is None else np.asarray(frontal),
        labels=pd.DataFrame(index=range(n)) if labels is None else pd.DataFrame(labels),
        rows=rows,
        hashes=hashes,
    )


def siim():
    """12,047 images with 12,954 rows: rows per positive image as in the stage 2 file."""
    histogram = {1: 2045, 2: 447, 3: 112, 4: 40, 5: 18, 6: 3, 7: 1, 8: 2, 10: 1}
    per_image = np.concatenate([np.full(9_378, 1), *(np.full(n, k) for k, n in histogram.items())])
    positive = np.arange(len(per_image)) >= 9_378
    order = np.random.default_rng(0).permutation(len(per_image))
    per_image, positive = per_image[order], positive[order]
    return inputs(
        [f"1.2.276.{i}" for i in range(len(per_image))],
        labels={"Pneumothorax": positive.astype(float)},
        rows=np.repeat(np.arange(len(per_image)), per_image),
    )


def chexpert():
    """223,414 rows of train.csv with 32,387 laterals and 64,540 patients, 234 of valid.csv; labels drawn at random."""
    random = np.random.default_rng(0)
    n, patients = 223_414, 64_540
    frontal = np.ones(n, bool)
    frontal[random.choice(n, 32_387, replace=False)] = False
    patient = np.sort(np.concatenate([np.arange(patients), random.integers(0, patients, n - patients)]))
    labels = random.choice([1.0, 0.0, -1.0, np.nan], size=(n + 234, 14), p=[0.1, 0.1, 0.05, 0.75]).astype(np.float32)
    ids = [f"train/patient{p:05}/study1/view{i}_frontal" for i, p in enumerate(patient)]
    held = np.arange(64_541, 64_741).repeat(2)[:234]
    ids += [f"valid/patient{p:05}/study1/view{i}_frontal" for i, p in enumerate(held)]
    return inputs(
        ids,
        patients=[f"patient{p:05}" for p in np.concatenate([patient, held])],
        pool=["train"] * n + ["valid"] * 234,
        frontal=np.concatenate([frontal, np.arange(234) >= 32]),
        labels=pd.DataFrame(labels, columns=CHEXPERT_14),
    )
