"""Make a split: run the recipe, count, hash, look for leaks, compare with the recorded numbers."""

import hashlib
import json
import warnings
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medvlp.errors import DataError
from medvlp.splits.catalog import Expected, SplitInfo, describe, releases
from medvlp.splits.fractions import target
from medvlp.splits.recipes import RECIPES, Request
from medvlp.splits.types import Part, Split, SplitInput, SplitLeakWarning, check_seed

_PARTS = ("train", "validate", "test")
_REMEDY = (
    "Likely causes: another version of the label file, missing or left-out rows, or records in another order. Get the "
    "full release, choose another split, or set check_split: false to go on with a split that is not the published one"
)


def make_split(
    corpus: str,
    name: str,
    inputs: SplitInput,
    *,
    seed: int = 0,
    lists: str | Path | None = None,
    strict: bool = True,
) -> Split:
    """Split a corpus.

    Args:
        corpus: its layout name, for example "rsna".
        name: one of :func:`~medvlp.splits.split_names`.
        inputs: the records in the documented order of the corpus, on which the draws depend.
        seed: decides the members where ``describe(corpus, name).seeded``; other recipes fix their own.
        lists: folder of the authors' lists, for the splits that need them.
        strict: raise where the numbers differ from the recorded ones. False is for phantoms and partial copies: sizes
            that the recipe fixes shrink in proportion, and the split then counts as not verified.

    Returns:
        The split. Parts without a record are missing from it.

    Raises:
        ConfigError: an unknown corpus or split, or a seed outside [0, 2^32).
        DataError: the numbers differ from the recorded ones, lists or labels are missing, or there are too few records.

    Warns:
        SplitLeakWarning: two parts share images or patients.
    """
    info = describe(corpus, name)
    check_seed(seed)
    release = _recognise(info, inputs, strict)
    try:
        draft = RECIPES[corpus, name](Request(info, inputs, seed, lists))
    except ValueError as error:  # scikit-learn and numpy: too few records, or a class of one
        raise DataError(f"{len(inputs)} records are too few for the split {name} of {corpus}: {error}") from error
    parts = {p: draft.parts[p] for p in _PARTS if p in draft.parts and len(draft.parts[p])}
    if not parts:
        pools = f" of the released parts {', '.join(info.pools)}" if info.pools else ""
        raise DataError(f"the split {name} of {corpus} finds no records{pools}; check that the list files are there")
    sha256 = {p: _sha256(inputs, part) for p, part in parts.items()}
    leaks = _find_leaks(inputs, parts)
    verified = False
    used = inputs.in_pool(*info.pools) if info.pools else np.ones(len(inputs), dtype=bool)
    patients = pd.Series(np.asarray(inputs.patients, dtype=object)[used]).nunique()
    expected = info.expected_for(release, seed) if release is not None and draft.comparable else None
    if expected is not None and expected.patients in (None, patients):
        wrong = _differences(inputs, parts, sha256, leaks, expected)
        verified = not wrong
        if wrong and strict:
            recorded = f" for {release}" if release else ""
            raise DataError(
                f"the split {name} of {corpus} is not the one recorded{recorded} ({'; '.join(wrong)}). {_REMEDY}"
            )
    if leaks:
        shared = ", ".join(f"{n:,} {what}" for what, n in leaks.items())
        warnings.warn(f"the split {name} of {corpus} shares {shared}", SplitLeakWarning, stacklevel=2)
    used_seed = seed if info.seeded else None
    rows = [hashlib.sha256(part.rows.tobytes()).hexdigest() for part in parts.values() if part.rows is not None]
    identity = json.dumps([corpus, name, used_seed, list(sha256.items()), rows]).encode()
    members = np.concatenate([part.records for part in parts.values()])
    return Split(
        corpus=corpus,
        name=name,
        parts=parts,
        counts={p: len(part) for p, part in parts.items()},
        sha256=sha256,
        leaks=leaks,
        digest=hashlib.sha256(identity).hexdigest(),
        verified=verified,
        seed=used_seed,
        release=release or "",
        left_out=np.setdiff1d(np.arange(len(inputs)), members),
    )


def _find_leaks(inputs: SplitInput, parts: dict[str, Part]) -> dict[str, int]:
    """Count the images (by id or content) and patients that two parts share: "images train&test" to their number."""
    kinds = {"images": np.asarray(inputs.ids, dtype=object)}
    if inputs.hashes is not None:
        hashes = np.asarray(inputs.hashes, dtype=object)
        kinds["images"] = np.where(hashes == "", kinds["images"], hashes)
    if inputs.has_patients:
        kinds["patients"] = np.asarray(inputs.patients, dtype=object)
    leaks = {}
    for kind, values in kinds.items():
        codes = pd.factorize(values)[0]
        for first, second in combinations(parts, 2):
            shared = np.intersect1d(codes[parts[first].records], codes[parts[second].records])
            if len(shared):
                leaks[f"{kind} {first}&{second}"] = len(shared)
    return leaks


def _sha256(inputs: SplitInput, part: Part) -> str:
    ids = sorted(str(i) for i in np.asarray(inputs.ids, dtype=object)[part.records])
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def _recognise(info: SplitInfo, inputs: SplitInput, strict: bool) -> str | None:
    """Return the release that has the sizes of the input, "" if the split needs none, None if they fit none."""
    recorded = {e.release for e in info.expected}
    differences = {r.name: r.differences(inputs, info.pools) for r in releases(info.corpus)}
    candidates = {name: wrong for name, wrong in differences.items() if name in recorded or not recorded}
    if not candidates:
        return ""
    closest = min(candidates, key=lambda name: len(candidates[name]))
    if not candidates[closest]:
        return closest
    if not strict:
        return None
    others = [name for name, wrong in differences.items() if name not in candidates and not wrong]
    fits = f"; the sizes are those of {', '.join(others)}" if others else ""
    raise DataError(
        f"the split {info.name} of {info.corpus} belongs to the release {closest}, which this copy is not "
        f"({'; '.join(candidates[closest])}){fits}. {_REMEDY}"
    )


def _differences(
    inputs: SplitInput, parts: dict[str, Part], sha256: dict[str, str], leaks: dict[str, int], expected: Expected
) -> list[str]:
    """List where the parts differ from the recorded numbers."""
    actual: dict[str, dict[str, Any]] = {
        "counts": {p: len(part) for p, part in parts.items()},
        "rows": {p: len(part.rows) for p, part in parts.items() if part.rows is not None},
        "frontal": {p: int(inputs.is_frontal[part.records].sum()) for p, part in parts.items()},
        "sha256": sha256,
    }
    if expected.positives:
        with suppress(DataError):  # the labels at hand may not hold the one that the numbers are of
            classes = target(inputs.labels)
            unknown = inputs.labels.isna().all(axis=1).to_numpy()
            actual["positives"] = {
                # labels that were published later may not be at hand
                p: expected.positives.get(p, 0)
                if unknown[part.records].any()
                else int((classes[part.records] == 1).sum())
                for p, part in parts.items()
            }
    wrong = [
        f"{kind} of {part}: expected {_format(value)}, found {_format(values.get(part, 0))}"
        for kind, values in actual.items()
        for part, value in getattr(expected, kind).items()
        if values.get(part, 0) != value
    ]
    if expected.leaks is not None and expected.leaks != leaks:
        wrong.append(f"shared by two parts: expected {expected.leaks}, found {leaks}")
    return wrong


def _format(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value[:12]
