"""What a page says first: where the numbers come from, and what they must not be taken for."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from medvlp.benchmark.gridfile import GridFile, JobRecord

PHANTOM = (
    "These numbers come from the phantom, drawn radiographs with made-up reports. "
    "They say nothing about clinical performance."
)

PARTLY_PHANTOM = (
    "Numbers on {datasets} come from the phantom, drawn radiographs with made-up reports. "
    "They say nothing about clinical performance."
)


@dataclass(frozen=True)
class About:
    """Facts of a results file.

    Attributes:
        name: of the grid, or of the results file's folder.
        warning: the sentence about phantom data; empty on real data.
        when: first and last time at which a row was written.
        rows: how many rows.
        versions: package and its version, or versions.
        hardware: what the runs were on.
        splits: dataset, name of the split, first digits of its hash.
        states: how many jobs are done, failed and so on.
        unfinished: the jobs that are not done.
    """

    name: str
    warning: str
    when: str
    rows: int
    versions: tuple[tuple[str, str], ...]
    hardware: tuple[str, ...]
    splits: tuple[tuple[str, str, str], ...]
    states: Mapping[str, int]
    unfinished: tuple[JobRecord, ...]


def about(frame: pd.DataFrame, grid: GridFile, fallback: str) -> About:
    """Gathers the facts.

    Args:
        frame: rows as of :func:`medvlp.benchmark.rows.collected`.
        grid: what ``grid.json`` holds.
        fallback: name where neither grid nor rows have one.
    """
    names = [str(name) for name in frame["bm_grid"].dropna().unique()]
    return About(
        name=grid.title or grid.name or ", ".join(names) or fallback,
        warning=_warning(frame),
        when=_when(frame),
        rows=len(frame),
        versions=_versions(frame),
        hardware=_distinct(frame, "hardware"),
        splits=_splits(frame),
        states=Counter(job.state for job in grid.jobs),
        unfinished=tuple(job for job in grid.jobs if job.state != "done"),
    )


def _warning(frame: pd.DataFrame) -> str:
    drawn = frame["phantom"]
    if drawn.all():
        return PHANTOM
    return (
        PARTLY_PHANTOM.format(datasets=", ".join(sorted(frame.loc[drawn, "dataset"].unique()))) if drawn.any() else ""
    )


def _distinct(frame: pd.DataFrame, column: str) -> tuple[str, ...]:
    return tuple(str(value) for value in frame[column].dropna().unique()) if column in frame else ()


def _when(frame: pd.DataFrame) -> str:
    times = sorted(_distinct(frame, "time"))
    if not times:
        return ""
    first, last = (time.replace("T", " ").replace("+00:00", " UTC") for time in (times[0], times[-1]))
    return first if first == last else f"{first} to {last}"


def _versions(frame: pd.DataFrame) -> tuple[tuple[str, str], ...]:
    found: dict[str, dict[str, None]] = {}
    if "versions" in frame:
        for versions in frame["versions"]:
            for name, version in versions.items() if isinstance(versions, dict) else ():
                found.setdefault(str(name), {})[str(version)] = None
    return tuple((name, ", ".join(own)) for name, own in found.items())


def _splits(frame: pd.DataFrame) -> tuple[tuple[str, str, str], ...]:
    columns = ["dataset", "split", "split_sha256"]
    known = frame[columns].drop_duplicates().dropna(subset="split_sha256")
    return tuple((str(d), str(s) if s is not None else "", str(h)[:12]) for d, s, h in known.itertuples(index=False))
