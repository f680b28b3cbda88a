"""What pre-training cost, as means over the runs of each method."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from medvlp.benchmark.gridfile import GridFile
from medvlp.benchmark.report.summary import Method


def duration(seconds: float | None) -> str:
    """Return a time in at most two units, such as ``2 h 05 min``; empty for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60:02d} s" if whole % 60 else "")
    minutes = whole % 3600 // 60
    return f"{whole // 3600} h" + (f" {minutes:02d} min" if minutes else "")


def count(number: float | None) -> str:
    """Return a number of parameters in short, such as ``23.5 M``; empty for None."""
    if number is None:
        return ""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {letter}"
    return f"{number:.0f}"


def number(value: float | None) -> str:
    """Return three significant digits without an exponent, such as ``1234`` or ``0.0123``; empty for None."""
    if value is None:
        return ""
    places = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{places}f}"


FIGURES = {
    "seconds": ("Time", duration),
    "samples_per_second": ("Samples per second", number),
    "peak_memory_mb": ("Peak memory, MiB", number),
    "parameters": ("Parameters", count),
    "trainable_parameters": ("Trained", count),
    "energy_kwh": ("Energy, kWh (estimate)", number),
}
"""Fields of :class:`medvlp.benchmark.gridfile.Cost` that the page shows, with heading and format."""


def costs_of(frame: pd.DataFrame, grid: GridFile, methods: Sequence[Method]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the mean cost of each method's pre-training jobs, and notes on what the figures rest on.

    A method's jobs are those that its result rows name, and those in its own name: several methods may share one
    encoder. Both lists are empty if no job of the grid has a cost.
    """
    costs = {job.hash: job.cost for job in grid.jobs if job.kind == "pretrain" and job.cost is not None}
    if not costs:
        return [], []
    pairs = {(job.method, job.hash) for job in grid.jobs} | {
        *zip(frame["bm_method"], frame["pretrain_job"], strict=True)
    }
    entries, devices, watts = [], dict[str, None](), set[float]()
    for method in methods:
        runs = [costs[job] for job in sorted(costs) if (method.name, job) in pairs]
        figures = []
        for name, (_, form) in FIGURES.items():
            known = [value for cost in runs if (value := getattr(cost, name)) is not None]
            mean = fmean(known) if known else None
            figures.append((mean, form(mean)))
        entries.append({"method": method, "runs": len(runs), "seconds": figures[0][0], "figures": figures})
        devices |= dict.fromkeys(sorted({cost.device for cost in runs if cost.device}))
        watts |= {cost.watts for cost in runs if cost.watts is not None}
    notes = [f"Pre-training ran on {', '.join(devices)}."] if devices else []
    if watts:
        powers = " or ".join(f"{value:g} W" for value in sorted(watts))
        notes.append(f"Energy is time multiplied by an assumed constant power of {powers} per device, not measured.")
    if any(not entry["runs"] for entry in entries):
        notes.append("Methods without runs were not pre-trained here; what it cost elsewhere is not known.")
    return entries, notes
