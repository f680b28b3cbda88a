"""Results files to make pages of."""

from pathlib import Path

import pytest
from small_benchmark import row, write_benchmark

from medvlp.results import ResultRow, append_rows


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """The results file of a whole benchmark."""
    return write_benchmark(tmp_path / "benchmark")


@pytest.fixture
def single_run(tmp_path: Path) -> Path:
    """The results file of one run, with nothing beside it."""
    numbers = row("g2d", "seg_siim", 1.0, "run0", "dice_positive", 0.41, phantom=True)
    del numbers["benchmark"]
    return append_rows(tmp_path / "one" / "results.jsonl", [ResultRow(**numbers)])
