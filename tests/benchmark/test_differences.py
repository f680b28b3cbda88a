"""Differences of cells: against what the metrics' own bootstrap and tests say."""

import math

import numpy as np
import pytest
import torch
from made_results import predictions, rows_of, write

from medvlp.benchmark.differences import Difference, Statistics, mean_of_drawn_runs
from medvlp.benchmark.resampled import Resampled, measures_of, samples_of
from medvlp.benchmark.rows import collected, records
from medvlp.errors import ConfigError, DataError
from medvlp.metrics.bootstrap import distribution
from medvlp.metrics.significance import delong_test


def cell(folder, method, effects, metric="auroc", images=1, classes=1, **changes):
    """A cell with a run for each effect."""
    rows = [
        row
        for seed, effect in enumerate(effects)
        for row in rows_of(
            folder, method, f"run{seed}", predictions(effect, seed, 150, images, classes), images=images, **changes
        )
        if row["metric"] == metric
    ]
    return records(collected(write(folder / f"{method}.jsonl", rows)))


def test_one_run_and_one_image_per_patient_is_delong(tmp_path):
    a, b = cell(tmp_path, "a", [1.2]), cell(tmp_path, "b", [0.8])
    found = Statistics(tmp_path).difference(a, b, "auroc")
    first, second = (samples_of(rows[0], tmp_path).samples for rows in (a, b))
    expected = delong_test(first["score"][:, 0], second["score"][:, 0], first["label"][:, 0])
    assert (found.test, found.runs, found.p) == ("delong", 1, expected.p)
    assert found.value == pytest.approx(a[0]["value"] - b[0]["value"])
    assert found.high - found.value == pytest.approx(1.959964 * expected.standard_error, rel=1e-5)
    back = Statistics(tmp_path).difference(b, a, "auroc")
    assert (back.value, back.low, back.p) == pytest.approx((-found.value, -found.high, found.p))


def test_of_several_classes_delong_takes_the_named_one(tmp_path):
    a, b = (cell(tmp_path, m, [e], "auroc/Mass", classes=2) for m, e in (("a", 1.2), ("b", 0.8)))
    assert Statistics(tmp_path).difference(a, b, "auroc/Mass").test == "delong"
    a, b = (cell(tmp_path, m, [e], "auroc", classes=2) for m, e in (("a", 1.2), ("b", 0.8)))
    assert Statistics(tmp_path, 200).difference(a, b, "auroc").test == "bootstrap"


def test_several_images_of_a_patient_are_resampled_together(tmp_path):
    a, b = (cell(tmp_path, m, [e], images=2) for m, e in (("a", 1.2), ("b", 0.8)))
    found = Statistics(tmp_path, 400).difference(a, b, "auroc")
    sides = [samples_of(rows[0], tmp_path) for rows in (a, b)]
    values = [distribution(measures_of(a[0]), side.samples, sides[0].codes, 400, 0)["auroc"] for side in sides]
    low, high = (values[0] - values[1]).nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert (found.test, found.runs) == ("bootstrap", 1)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)


def test_p_is_that_of_the_resamples_and_never_zero(tmp_path):
    a, b = (cell(tmp_path, m, [e], "average_precision") for m, e in (("a", 3.0), ("b", 0.0)))
    assert Statistics(tmp_path, 199).difference(a, b, "average_precision").p == pytest.approx(2 / 200)
    same = Statistics(tmp_path, 199).difference(a, a, "average_precision")
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_runs_that_disagree_widen_the_interval(tmp_path):
    """Each pair of runs alone looks certain, but the differences go both ways."""
    b = cell(tmp_path, "b", [1.0, 1.0, 1.0, 1.0])
    steady = Statistics(tmp_path).difference(cell(tmp_path, "a", [1.6] * 4), b, "auroc")
    torn = Statistics(tmp_path).difference(cell(tmp_path, "c", [0.1, 3.2, 0.2, 3.0]), b, "auroc")
    assert steady.p < 0.01
    assert torn.p > 0.1
    assert torn.low < 0 < torn.high
    assert (torn.high - torn.low) > 2 * (steady.high - steady.low)
    assert torn.runs == 4


@pytest.mark.parametrize("runs", [2, 5])
def test_coverage_with_runs_that_differ_as_much_as_samples_of_patients_do(runs):
    """Of 500 simulated studies with 200 patients; the truth is 0."""
    rng = np.random.default_rng(0)
    inside, alone = 0, 0
    for _ in range(500):
        own = rng.normal(size=(1, 200)) + 0.5 * rng.normal(size=(runs, 200)) + rng.normal(size=(runs, 1)) / 200**0.5
        drawn = own @ rng.multinomial(200, np.full(200, 1 / 200), size=400).T / 200
        low, high = np.quantile(mean_of_drawn_runs(drawn, rng), [0.025, 0.975])
        inside += low <= 0 <= high
        low, high = np.quantile(drawn.mean(0), [0.025, 0.975])
        alone += low <= 0 <= high
    assert 0.92 <= inside / 500 <= 0.98
    assert alone < inside  # patients alone promise too much


def test_runs_are_paired_by_name_and_else_drawn_apart(tmp_path):
    a, b = cell(tmp_path, "a", [1.5, 1.0, 1.2]), cell(tmp_path, "b", [1.0, 0.8, 0.9])
    shared = Statistics(tmp_path, 200).difference(a, b[:2][::-1], "auroc")
    assert (shared.runs, shared.paired) == (2, True)
    assert shared.value == pytest.approx(np.mean([a[i]["value"] - b[i]["value"] for i in (0, 1)]))
    apart = Statistics(tmp_path, 200).difference(
        a, [{**row, "bm_run": f"other{i}"} for i, row in enumerate(b)], "auroc"
    )
    assert (apart.runs, apart.paired) == (6, False)
    assert apart.low < apart.value < apart.high


def test_interval_of_a_mean_over_runs(tmp_path):
    rows = cell(tmp_path, "a", [1.5, 1.0, 1.2])
    low, high = Statistics(tmp_path, 300).interval(rows, "auroc")
    sides = [samples_of(row, tmp_path) for row in rows]
    means = torch.stack([distribution(measures_of(rows[0]), s.samples, s.codes, 300, 0)["auroc"] for s in sides]).mean(
        0
    )
    assert (low, high) == pytest.approx(means.quantile(torch.tensor([0.025, 0.975]).double()).tolist(), abs=1e-6)
    assert low < np.mean([row["value"] for row in rows]) < high


def test_best_of_a_row(tmp_path):
    cells = {name: cell(tmp_path, name, [effect]) for name, effect in (("a", 0.5), ("b", 1.5), ("c", 0.3))}
    assert Statistics(tmp_path).best(cells, "auroc") == "b"
    assert Statistics(tmp_path).best({"b": cells["b"], "d": cell(tmp_path, "d", [1.45])}, "auroc") is None


def test_the_best_is_corrected_for_the_number_of_comparisons(tmp_path, monkeypatch):
    cells = {name: cell(tmp_path, name, [effect]) for name, effect in (("a", 1.5), ("b", 0.5), ("c", 0.3))}
    monkeypatch.setattr(Statistics, "difference", lambda *_: Difference(0.1, 0, 1, 0.03, "delong", 1))
    assert Statistics(tmp_path).best({name: cells[name] for name in "ab"}, "auroc") == "a"
    assert Statistics(tmp_path).best(cells, "auroc") is None


def test_nobody_leads_as_long_as_the_cells_hold_different_runs(tmp_path):
    first, second = cell(tmp_path, "a", [2.0, 2.0]), cell(tmp_path, "b", [0.5, 0.5])
    assert Statistics(tmp_path, 200).best({"a": first, "b": second}, "auroc") == "a"
    assert Statistics(tmp_path, 200).best({"a": first[:1], "b": second}, "auroc") is None


def test_best_of_few(tmp_path):
    rows = cell(tmp_path, "a", [0.5])
    assert Statistics(tmp_path).best({}, "auroc") is None
    assert Statistics(tmp_path).best({"a": rows, "b": [], "c": [{**rows[0], "value": None}]}, "auroc") is None


def test_what_cannot_be_compared(tmp_path):
    a = cell(tmp_path, "a", [1.0])
    fewer = cell(tmp_path, "b", [1.0], images=2)
    with pytest.raises(ConfigError, match=r"other samples than what it is compared with \(300 and 150\)"):
        Statistics(tmp_path).difference(a, fewer, "auroc")
    with pytest.raises(ConfigError, match=r"run run0 is given twice \(lines 1 and 1\)"):
        Statistics(tmp_path).difference([*a, *a], a, "auroc")
    with pytest.raises(ConfigError, match="no rows"):
        Statistics(tmp_path).difference(a, [], "auroc")
    with pytest.raises(ConfigError, match="not defined"):
        Statistics(tmp_path).difference(a, [{**a[0], "value": math.nan}], "auroc")
    with pytest.raises(ConfigError, match="cannot hold a row of auroc"):
        Statistics(tmp_path).difference(a, a, "f1")
    file = tmp_path / a[0]["predictions"]
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"changed since its rows were written"):
        Statistics(tmp_path).difference(a, a, "auroc")
    file.unlink()
    with pytest.raises(DataError, match=r"no such file, but the row a, linear_rsna, auroc, line 1 names it"):
        Statistics(tmp_path).difference(a, a, "auroc")


def test_resamples_are_kept_on_disk(tmp_path, monkeypatch):
    rows = cell(tmp_path, "a", [1.0])
    first = Resampled(tmp_path / "cache").of(rows[0], "auroc", tmp_path, 100)
    monkeypatch.setattr("medvlp.benchmark.resampled.distribution", None)  # must not be asked again
    again = Resampled(tmp_path / "cache")
    assert np.array_equal(again.of(rows[0], "auroc", tmp_path, 100), first)
    assert again.of(rows[0], "f1", tmp_path, 100).shape == (100,)
    with pytest.raises(ConfigError, match="has no metric 'dice'"):
        again.of(rows[0], "dice", tmp_path, 100)
