"""The speed script of image loading runs, agrees with itself and ends with one line of JSON. No time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import environment

SCRIPT = Path(__file__).parents[1] / "experiments" / "speed" / "data.py"


@pytest.mark.slow
@pytest.mark.variant
def test_data():
    pytest.importorskip("cv2")
    tiny = ["--images", "2", "--scale", "0.1", "--repeats", "1", "--passes", "1", "--transforms", "plain"]
    tiny += ["--memory-items", "40", "--epochs", "2", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *tiny], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["ratio"] == figures["ratios"]["jpg"]["pillow"] > 0
    assert figures["device"]
    assert {"torch", "pillow", "numpy", "medvlp"} <= figures["versions"].keys()
    for kind in ("jpg", "png"):
        result = figures["results"][kind]
        assert result["file_mb"] > 0
        assert result["cache_ms_by_transform"].keys() == {"plain"}
        for way in ("pillow", "opencv", "medvlp_files", "medvlp_cache"):
            assert 0 < result[way]["min_ms"] <= result[way]["median_ms"] <= result[way]["max_ms"]
    if Path("/proc/self/smaps_rollup").is_file():
        assert [(row["workers"], row["epoch"]) for row in figures["memory"]] == [(1, 1), (1, 2)]
        assert all(0 < row["uss_mb"] <= row["pss_mb"] <= row["rss_mb"] for row in figures["memory"])
        assert figures["growth_from_first_epoch"]["1"].keys() == {"rss_mb", "pss_mb", "uss_mb"}
    assert "medvlp from prepared pixels" in done.stdout
