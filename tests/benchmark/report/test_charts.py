"""Charts and figures: round ticks, readable numbers, methods that are told apart without colour."""

import re

import numpy as np
import pytest

from medvlp.benchmark.report import overlays
from medvlp.benchmark.report.charts import padded, ticks
from medvlp.benchmark.report.cost import count, duration, number
from medvlp.benchmark.report.summary import Method
from medvlp.benchmark.tables.writing import environment


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(31, 73, [40, 50, 60, 70]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (68.2, 68.9, [68.2, 68.4, 68.6, 68.8])],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_equal_values_still_have_a_range():
    low, high = padded([50.0, 50.0])
    assert low < 50 < high
    assert len(ticks(low, high)) >= 2
    assert padded([0.0, 10.0])[0] == 0
    near = padded([50.0, 50.0001])
    assert near[1] - near[0] > 1, "their labels have few digits"


def test_methods_differ_without_colour():
    swatch = environment("medvlp.benchmark.report").get_template("charts.html").module.swatch
    swatches = [str(swatch(Method("", "", number))) for number in range(16)]
    without_colour = {re.sub(r"\bc\d\b", "", one) for one in swatches}
    assert len(without_colour) == len(swatches)
    assert len({re.search("dasharray=[^/]*|$", one)[0] for one in swatches[:8]}) == 8


def test_texts_in_charts_are_escaped():
    chart = {"label": 'a "quoted" <b>', "bottom": 178, "y_label": "<i>", "y_marks": [("1", "<u>")], "x_label": "&"}
    series = [{"method": Method("'", "", 0), "title": "1 < 2", "points": [("1", "2", [])]}]
    macro = environment("medvlp.benchmark.report").get_template("charts.html").module.chart
    text = str(macro({**chart, "x_marks": [("1", "<s>")], "series": series, "connected": True}))
    assert not re.search("<[bius]>", text)
    assert "1 &lt; 2" in text
    assert 'aria-label="a &quot;quoted&quot; &lt;b&gt;"' in text


def test_figures_in_words():
    assert [duration(value) for value in (None, 12.4, 600, 754, 7200, 7500)] == [
        "",
        "12 s",
        "10 min",
        "12 min 34 s",
        "2 h",
        "2 h 05 min",
    ]
    assert [count(value) for value in (None, 900, 23_508_032, 1.2e9)] == ["", "900", "23.5 M", "1.2 G"]
    assert [number(value) for value in (None, 0, 1234.5, 13.333, 0.01234)] == ["", "0", "1234", "13.3", "0.0123"]


def test_truth_and_prediction_are_drawn_where_they_are():
    image = np.full((64, 64), 120, np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    picture, factor = overlays.enlarged(image)
    assert (picture.size, factor) == ((256, 256), 4)
    outlined = np.asarray(overlays.outlined(picture, mask, factor, dashed=False))
    assert tuple(outlined[128, 63]) == overlays.TRUTH
    assert tuple(outlined[128, 128]) == (120, 120, 120)
    filled = np.asarray(overlays.filled(picture, mask, factor))
    assert filled[128, 128, 0] > filled[128, 128, 2]
    assert tuple(filled[10, 10]) == (120, 120, 120)
    dashed = np.asarray(overlays.outlined(picture, mask, factor, dashed=True))
    on = (dashed == overlays.TRUTH).all(-1).sum()
    assert 0 < on < (outlined == overlays.TRUTH).all(-1).sum()
    boxed = np.asarray(overlays.boxed(picture, np.array([[40.0, 40, 200, 200]]), overlays.PREDICTED))
    assert tuple(boxed[120, 40]) == overlays.PREDICTED
