"""Draws by hash, which depend neither on the order of the records nor on what else is in the corpus."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from medvlp.errors import ConfigError
from medvlp.seeding import derive_seed


def _hash(group: Any, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{group}".encode(), digest_size=8).digest(), "big")


def nested_fraction(groups: Sequence[Any], fraction: float, seed: int = 0) -> np.ndarray:
    """Draw a share of the groups so that smaller shares lie inside larger ones (1 % ⊂ 10 % ⊂ 100 %).

    Groups (patients) are ordered by a hash of (seed, group); the first ceil(fraction × groups) are kept whole. The
    draw does not depend on the order of the rows. Published code draws its 1 % and 10 % independently of each
    other and mostly by image; this one is comparable across shares and does not cut patients.

    Args:
        groups: N group names, one per record.
        fraction: share of the groups to keep, in (0, 1].
        seed: another seed gives another order.

    Returns:
        Bool (N,), true for the records that are kept.

    Raises:
        ConfigError: fraction is outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction must lie in (0, 1], not {fraction}")
    codes, unique = pd.factorize(np.asarray([str(g) for g in groups], dtype=object))
    if fraction == 1 or len(unique) == 0:
        return np.ones(len(codes), dtype=bool)
    order = sorted(range(len(unique)), key=lambda i: (_hash(unique[i], seed), unique[i]))
    keep = np.zeros(len(unique), dtype=bool)
    # a hair is taken off before rounding up: 0.1 × 30 is 3.0000000000000004 in binary
    keep[order[: math.ceil(fraction * len(unique) - 1e-9)]] = True
    return keep[codes]


def hash_split(groups: Sequence[Any], shares: dict[str, float], seed: int = 0) -> np.ndarray:
    """Assign each group to a split by its hash, so that adding records later moves none of the old ones.

    Args:
        groups: N group names, one per record.
        shares: split name to share; the shares sum to at most 1, the rest goes to "train".
        seed: another seed gives another assignment.

    Returns:
        Object array (N,) of split names.

    Raises:
        ConfigError: a share is negative or they sum to more than 1.
    """
    if any(s < 0 for s in shares.values()) or sum(shares.values()) > 1:
        raise ConfigError(f"split shares must be non-negative and sum to at most 1, not {shares}")

    def name_of(group: str) -> str:
        position = _hash(group, derive_seed(seed, 1)) / 2**64
        edge = 0.0
        for name, share in shares.items():
            edge += share
            if position < edge:
                return name
        return "train"

    codes, unique = pd.factorize(np.asarray([str(g) for g in groups], dtype=object))
    return np.array([name_of(g) for g in unique], dtype=object)[codes]


def linked_groups(patients: np.ndarray, hashes: np.ndarray | None) -> np.ndarray:
    """Join patients who share an image: connected components of patient and content hash.

    A component is named after the first of its patients in alphabetical order, so that the name, and with it what
    :func:`hash_split` does, depends neither on the order of the records nor on how the patients are linked.

    Args:
        patients: (N,) str.
        hashes: (N,) str, "" where unknown; None for none known.

    Returns:
        Object array (N,) of component names.
    """
    unique, labels = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    if hashes is None or len(labels) == 0:
        return unique.astype(object)[labels]
    named = np.asarray(hashes, dtype=str)
    keys = np.where(named == "", np.arange(len(named)).astype(str), np.char.add("#", named))
    images = np.unique(keys, return_inverse=True)[1]
    people = labels.copy()
    while True:  # the smallest label spreads over shared images and patients in turn until nothing changes
        before = labels
        for codes in (images, people):
            smallest = np.full(int(codes.max()) + 1, len(unique))
            np.minimum.at(smallest, codes, labels)
            labels = smallest[codes]
        if np.array_equal(before, labels):
            return unique.astype(object)[labels]
