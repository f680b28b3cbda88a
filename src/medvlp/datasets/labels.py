"""Labels of CheXpert, and policies for uncertain and unmentioned ones, by the names that the papers use."""

from typing import Literal, get_args

import numpy as np
import pandas as pd

from medvlp.datasets.tables import RELEASED
from medvlp.errors import check_choice

LabelPolicy = Literal["keep", "u_zeros", "u_ones", "u_ignore", "gloria"]
Blanks = Literal["unknown", "negative"]

LABEL_POLICIES: dict[str, str] = {
    "keep": "−1 stays −1, a blank is unknown (NaN)",
    "u_zeros": "uncertain counts as absent (CheXpert's U-Zeros)",
    "u_ones": "uncertain counts as present (CheXpert's U-Ones)",
    "u_ignore": "uncertain becomes unknown (CheXpert's U-Ignore)",
    "gloria": "uncertain counts as present for Atelectasis, Edema and Pleural Effusion, as absent for all others"
    " (GLoRIA, MGCA, MaCo and MRM; they use it on the five competition labels)",
}
"""Policy to what it does with −1. Under every policy but "keep" a blank counts as absent, as in the papers."""

CHEXPERT_14: tuple[str, ...] = tuple(RELEASED["labels"]["chexpert_14"])
"""CheXpert's labels in the order of its train.csv. MIMIC-CXR, GLoRIA and MGCA order them otherwise: select by name."""

CHEXPERT_5: tuple[str, ...] = tuple(RELEASED["labels"]["chexpert_5"])
"""The competition labels in their usual order."""

_GLORIA_ONES = ("Atelectasis", "Edema", "Pleural Effusion")


def apply_policy(labels: pd.DataFrame, policy: str, blanks: str | None = None) -> pd.DataFrame:
    """Resolve uncertain and blank labels.

    Args:
        labels: one column per label; 1 present, 0 absent, −1 uncertain, NaN not mentioned.
        policy: a key of :data:`LABEL_POLICIES`.
        blanks: whether an unmentioned label is "unknown" (NaN) or "negative"; None takes what the policy's papers do.

    Returns:
        A new frame of float32.
    """
    check_choice("label_policy", policy, LABEL_POLICIES)
    check_choice("blanks", blanks, (None, *get_args(Blanks)))
    blanks = blanks or ("unknown" if policy == "keep" else "negative")
    result = {}
    for name in labels.columns:
        values = labels[name].to_numpy(dtype=np.float32, copy=True)
        uncertain = values == -1
        if blanks == "negative":
            values[np.isnan(values)] = 0  # before −1 may become NaN under u_ignore
        if policy == "u_zeros" or (policy == "gloria" and name not in _GLORIA_ONES):
            values[uncertain] = 0
        elif policy in ("u_ones", "gloria"):
            values[uncertain] = 1
        elif policy == "u_ignore":
            values[uncertain] = np.nan
        result[name] = values
    return pd.DataFrame(result, index=labels.index)
