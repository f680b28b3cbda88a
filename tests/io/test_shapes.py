import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp.errors import DataError
from medvlp.io import shapes as module
from medvlp.io.shapes import bounds, check, draw, parse_object_cxr


def _inside(kind, n, cx, cy):
    """The definition, for one pixel centre."""
    if kind == "rectangle":
        return n[0] <= cx < n[2] and n[1] <= cy < n[3]
    if kind == "ellipse":
        if n[0] == n[2] or n[1] == n[3]:
            return False
        u = (cx - (n[0] + n[2]) / 2) / ((n[2] - n[0]) / 2)
        v = (cy - (n[1] + n[3]) / 2) / ((n[3] - n[1]) / 2)
        return u**2 + v**2 <= 1
    points = list(zip(n[0::2], n[1::2], strict=True))
    odd = False
    for (xa, ya), (xb, yb) in zip(points, points[1:] + points[:1], strict=True):
        if (ya <= cy) != (yb <= cy) and xa + (cy - ya) * (xb - xa) / (yb - ya) <= cx:
            odd = not odd
    return odd


def _slow(shape, height, width):
    kind, *words = shape.split()
    n = [float(word) for word in words]
    return np.array([[_inside(kind, n, x + 0.5, y + 0.5) for x in range(width)] for y in range(height)])


coordinate = st.one_of(st.integers(-6, 20), st.floats(-6, 20, width=32), st.sampled_from([0.5, 1.5, 7.5, 12.5]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=9))
def test_polygons_as_point_by_point(points):
    shape = "polygon " + " ".join(f"{x} {y}" for x, y in points)
    assert np.array_equal(draw([shape], 12, 14), _slow(shape, 12, 14))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["rectangle", "ellipse"]), coordinate, coordinate, coordinate, coordinate)
def test_boxes_as_point_by_point(kind, xa, ya, xb, yb):
    shape = f"{kind} {min(xa, xb)} {min(ya, yb)} {max(xa, xb)} {max(ya, yb)}"
    assert np.array_equal(draw([shape], 12, 14), _slow(shape, 12, 14))


def test_whole_numbers_are_edges():
    mask = draw(["rectangle 2 1 5 3"], 6, 8)
    assert mask.sum() == 6
    assert mask[1:3, 2:5].all()
    assert np.array_equal(draw(["polygon 2 1 5 1 5 3 2 3"], 6, 8), mask)
    assert np.array_equal(draw(["polygon 2 3 5 3 5 1 2 1"], 6, 8), mask)  # the other way round


def test_neighbours_share_no_pixel():
    a, b = "polygon 0 0 10 0 0 10", "polygon 10 0 10 10 0 10"  # centres lie on the common diagonal
    assert not (draw([a], 10, 10) & draw([b], 10, 10)).any()
    assert draw([a, b], 10, 10).all()


def test_ellipse_is_round():
    mask = draw(["ellipse 10 20 110 80"], 100, 120)
    assert mask.sum() == pytest.approx(np.pi * 50 * 30, rel=0.005)
    assert np.array_equal(mask[20:80], mask[20:80][::-1])
    assert not mask[20, 10]


def test_self_crossing_polygon_is_even_odd():
    outer_and_inner = "polygon 0 0 12 0 12 12 0 12 0 0 3 3 3 9 9 9 9 3 3 3"
    mask = draw([outer_and_inner], 12, 12)
    assert not mask[3:9, 3:9].any()
    assert mask.sum() == 144 - 36
    same_direction = "polygon 0 0 12 0 12 12 0 12 0 0 3 3 9 3 9 9 3 9 3 3"
    assert np.array_equal(draw([same_direction], 12, 12), mask)


def test_many_vertices_in_parts(monkeypatch):
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    points = np.stack([30 + 25 * np.cos(7 * angle), 30 + 25 * np.sin(5 * angle)], 1).ravel()
    shape = "polygon " + " ".join(f"{v:.3f}" for v in points)
    whole = draw([shape], 60, 60)
    monkeypatch.setattr(module, "_CROSSINGS_AT_ONCE", 7)
    assert np.array_equal(draw([shape], 60, 60), whole)
    assert np.array_equal(whole, _slow(shape, 60, 60))


def test_union_of_all_kinds():
    parts = ["rectangle 0 0 2 2", "ellipse 4 4 9 9", "polygon 0 9 3 9 0 6", "rle 50 3", "rle -1", "rle"]
    each = [draw([shape], 10, 10) for shape in parts]
    assert np.array_equal(draw(parts, 10, 10), np.any(each, axis=0))
    assert each[3][0:3, 5].all()
    assert not draw([], 10, 10).any()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("rectangle -3 1 5 99", (-3, 1, 5, 99)),
        ("ellipse 1.5 2 4 6", (1.5, 2, 4, 6)),
        ("polygon 5 1 0 7 9 3", (0, 1, 9, 7)),
        ("rle 12 3", (1, 2, 2, 5)),
        ("rle 8 3", (0, 0, 2, 10)),  # the end of one column and the beginning of the next
        ("rle -1", (0, 0, 0, 0)),
    ],
)
def test_bounds(shape, expected):
    assert bounds(shape, 10, 10) == expected


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ("rectangle 0 0 10 10", ""),
        ("rectangle 0 0 10.5 10", "box outside the image"),
        ("ellipse -1 0 5 5", "box outside the image"),
        ("polygon 0 0 5 5 0 11", "box outside the image"),
        ("polygon 0 0 5 5 0 9", ""),
        ("rectangle 0 0 0 0", "empty box"),
        ("ellipse 3 3 3 8", "empty box"),
        ("polygon 1 1 5 1 9 1", "empty box"),
        ("rle 99 1", ""),
        ("rle 99 2", "RLE runs past the image"),
        ("rle -1", "empty RLE"),
        ("rle 1 2 3", "malformed shape"),
        ("rectangle 5 0 1 4", "malformed shape"),
        ("rectangle 1 2 3", "malformed shape"),
        ("rectangle 1 2 3 x", "malformed shape"),
        ("rectangle 1 2 3 nan", "malformed shape"),
        ("rectangle 1 2 3 inf", "malformed shape"),
        ("polygon 1 2 3 4", "malformed shape"),
        ("polygon 1 2 3 4 5 6 7", "malformed shape"),
        ("circle 1 2 3", "malformed shape"),
        ("", "malformed shape"),
    ],
)
def test_check_agrees_with_draw(shape, reason):
    assert check(shape, 10, 10) == reason
    if reason in ("malformed shape", "RLE runs past the image"):
        with pytest.raises(DataError, match=r"shape 2 of 2: (malformed|RLE)"):
            draw(["rectangle 0 0 1 1", shape], 10, 10)
    else:
        assert draw([shape], 10, 10).any() == ("empty" not in reason)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.text(max_size=20), st.sampled_from(["rectangle", "ellipse", "polygon", "rle"])),
    st.lists(st.one_of(st.floats(), st.integers(), st.text(max_size=4)), max_size=8),
)
def test_no_string_raises_anything_else(kind, words):
    shape = " ".join([kind, *map(str, words)])
    reason = check(shape, 6, 7)
    try:
        assert draw([shape], 6, 7).shape == (6, 7)
        assert len(bounds(shape, 6, 7)) == 4
        assert reason not in ("malformed shape", "RLE runs past the image")
    except DataError:
        assert reason in ("malformed shape", "RLE runs past the image")


def test_object_cxr():
    assert parse_object_cxr("") == parse_object_cxr("  ") == []
    assert parse_object_cxr("0 100 200 180 260") == ["rectangle 100 200 180 260"]
    assert parse_object_cxr("1 50 60 90 110;2 10 10 40 12 38 60 8 50") == [
        "ellipse 50 60 90 110",
        "polygon 10 10 40 12 38 60 8 50",
    ]


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ("0 1 2 3 4;", "object 2 of 2 is empty"),
        ("3 1 2 3 4", "object 1 of 1: the type"),
        ("0 1 2 3 4;1 1 2 3", "object 2 of 2: ellipse with 3 numbers"),
        ("2 1 2 3 4", "polygon with 4 numbers"),
        ("2 1 2 3 4 5 6 7", "polygon with 7 numbers"),
        ("0 1 2 3 4.5", "no whole number"),
        ("0 1 2 3 --4", "no whole number"),
        (float("nan"), "must be text, not float"),
    ],
)
def test_object_cxr_errors_name_the_object(annotation, reason):
    with pytest.raises(DataError, match=reason):
        parse_object_cxr(annotation)
