"""Making a split: run the recipe, count, hash, look for leaks, compare with what is recorded."""

import hashlib
import json
import warnings
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from medvlp.errors import DataError
from medvlp.splits import chexpert  # noqa: F401 - registers its recipes
from medvlp.splits.catalog import Expected, SplitInfo, describe, releases
from medvlp.splits.draws import target
from medvlp.splits.recipes import RECIPES, Draft, Task
from medvlp.splits.types import Part, Split, SplitInput, SplitLeakWarning, check_seed

_PARTS = ("train", "validate", "test")


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
        inputs: the records in the documented order of the corpus: the order decides who is drawn.
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
    task = Task(info, inputs, seed, lists)
    try:
        draft = RECIPES[corpus, name](task)
    except ValueError as error:  # scikit-learn and numpy: too few records, or a class of one
        raise DataError(f"{len(inputs)} records are too few for the split {name} of {corpus}: {error}") from error
    parts = {p: draft.parts[p] for p in _PARTS if p in draft.parts and len(draft.parts[p])}
    if not parts:
        wanted = f" of the released parts {', '.join(info.pools)}" if info.pools else ""
        raise DataError(f"the split {name} of {corpus} finds no records{wanted}; check that the list files are there")
    counts = {p: len(part) for p, part in parts.items()}
    sha256 = {p: _sha256(inputs, part) for p, part in parts.items()}
    leaks = find_leaks(inputs, parts)
    verified = _compare(info, inputs, draft, parts, sha256, leaks, release, seed, strict)
    if leaks:
        shared = ", ".join(f"{n:,} {what}" for what, n in leaks.items())
        warnings.warn(f"the split {name} of {corpus} shares {shared}", SplitLeakWarning, stacklevel=2)
    used = seed if info.seeded else None
    rows = [hashlib.sha256(part.rows.tobytes()).hexdigest() for part in parts.values() if part.rows is not None]
    named = json.dumps([corpus, name, used, list(sha256.items()), rows]).encode()
    members = np.concatenate([part.records for part in parts.values()])
    return Split(
        corpus=corpus,
        name=name,
        parts=parts,
        counts=counts,
        sha256=sha256,
        leaks=leaks,
        digest=hashlib.sha256(named).hexdigest(),
        verified=verified,
        seed=used,
        release=release or "",
        left_out=np.setdiff1d(np.arange(len(inputs)), members),
    )


def find_leaks(inputs: SplitInput, parts: dict[str, Part]) -> dict[str, int]:
    """Count what two parts share.

    Args:
        inputs: the records.
        parts: the parts.

    Returns:
        "images a&b" to the number of distinct images in both (equal id or, where known, equal content), and
        "patients a&b" likewise; only what is shared, and patients only where the corpus names any.
    """
    images = np.asarray(inputs.ids, dtype=object)
    if inputs.hashes is not None:
        hashes = np.asarray(inputs.hashes, dtype=object)
        images = np.where(hashes == "", images, hashes)
    kinds = {"images": images}
    if inputs.has_patients:
        kinds["patients"] = np.asarray(inputs.patients, dtype=object)
    leaks = {}
    for what, values in kinds.items():
        codes = pd.factorize(values)[0]
        for first, second in combinations(parts, 2):
            shared = np.intersect1d(codes[parts[first].records], codes[parts[second].records])
            if len(shared):
                leaks[f"{what} {first}&{second}"] = len(shared)
    return leaks


def _sha256(inputs: SplitInput, part: Part) -> str:
    ids = sorted(str(i) for i in np.asarray(inputs.ids, dtype=object)[part.records])
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def _recognise(info: SplitInfo, inputs: SplitInput, strict: bool) -> str | None:
    """The release that the sizes of the input speak for; "" if the split asks for none, None if they fit none."""
    named = {e.release for e in info.expected}
    known = [r for r in releases(info.corpus) if r.name in named or not named]
    if not known:
        return ""
    differences = {r.name: r.differences(inputs, info.pools) for r in known}
    for release, wrong in differences.items():
        if not wrong:
            return release
    if not strict:
        return None
    others = [
        r.name for r in releases(info.corpus) if r.name not in differences and not r.differences(inputs, info.pools)
    ]
    found = f"; the sizes are those of {', '.join(others)}" if others else ""
    closest, wrong = min(differences.items(), key=lambda item: len(item[1]))
    raise DataError(
        f"the split {info.name} of {info.corpus} belongs to the release {closest}, which this copy is not "
        f"({'; '.join(wrong)}){found}. {_REMEDY}"
    )


_REMEDY = (
    "Likely causes: another version of the label file, missing or left-out rows, or records in another order. Get the "
    "full release, choose another split, or set check_split: false to go on with a split that is not the published one"
)


def _compare(
    info: SplitInfo,
    inputs: SplitInput,
    draft: Draft,
    parts: dict[str, Part],
    sha256: dict[str, str],
    leaks: dict[str, int],
    release: str | None,
    seed: int,
    strict: bool,
) -> bool:
    """Whether there are recorded numbers and they agree; they raise where they do not."""
    if release is None or not draft.comparable:
        return False
    expected = info.expected_for(release, seed)
    if expected is None:
        return False
    used = inputs.in_pool(*info.pools) if info.pools else np.ones(len(inputs), dtype=bool)
    patients = pd.Series(np.asarray(inputs.patients, dtype=object)[used]).nunique()
    if expected.patients not in (None, patients):
        return False  # a mapping of images to patients that the recorded numbers do not know
    found = _found(inputs, parts, sha256, leaks, expected)
    wrong = [
        f"{kind} of {part}: expected {_show(value)}, found {_show(found[kind].get(part, 0))}"
        for kind in found
        for part, value in getattr(expected, kind).items()
        if found[kind].get(part, 0) != value
    ]
    if expected.leaks is not None and expected.leaks != leaks:
        wrong.append(f"shared by two parts: expected {expected.leaks}, found {leaks}")
    if wrong and strict:
        raise DataError(
            f"the split {info.name} of {info.corpus} is not the one recorded{f' for {release}' if release else ''} "
            f"({'; '.join(wrong)}). {_REMEDY}"
        )
    return not wrong


def _found(
    inputs: SplitInput, parts: dict[str, Part], sha256: dict[str, str], leaks: dict[str, int], expected: Expected
) -> dict[str, dict]:
    found: dict[str, dict] = {
        "counts": {p: len(part) for p, part in parts.items()},
        "rows": {p: len(part.rows) for p, part in parts.items() if part.rows is not None},
        "frontal": {p: int(inputs.is_frontal[part.records].sum()) for p, part in parts.items()},
        "sha256": sha256,
    }
    try:
        classes = target(inputs.labels) if expected.positives else None
    except DataError:  # the labels at hand do not hold the one that the numbers are of
        classes = None
    if classes is not None:
        unknown = inputs.labels.isna().all(axis=1).to_numpy()
        found["positives"] = {
            # labels that were published later may not be at hand
            p: expected.positives.get(p, 0) if unknown[part.records].any() else int((classes[part.records] == 1).sum())
            for p, part in parts.items()
        }
    return found


def _show(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value[:12]
