"""The inverse of :func:`medvlp.io.shapes.decode_siim`."""

import numpy as np


def encode_siim(mask: np.ndarray) -> str:
    """Encode a mask (H, W), in which all but 0 is inside."""
    flat = np.zeros(mask.size + 2, dtype=bool)
    flat[1:-1] = (mask != 0).T.ravel()
    borders = np.flatnonzero(flat[1:] != flat[:-1])
    return " ".join(map(str, np.diff(borders, prepend=0).tolist())) or "-1"
