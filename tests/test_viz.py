import numpy as np
import pytest
from PIL import Image

from medvlp import viz


def figure(studies=2, **options):
    rng = np.random.default_rng(0)
    images = [rng.random((3, 32, 32)), rng.normal(-400, 100, (32, 32)), np.full((1, 32, 32), 7.0)][:studies]
    maps = {"attention": [rng.random((1, 32, 32))] * studies, "mask": [rng.random((32, 32))] * studies}
    texts = ["The heart is enlarged.\n" * 40, "Costs $5 and 10$ _{", "clear"][:studies]
    return viz.study_figure(images, maps, texts, **options)


@pytest.mark.parametrize("studies", [1, 3])
def test_a_row_per_study_and_a_column_per_map(studies, tmp_path):
    made = figure(studies, titles=["a$1$", "b", "c"][:studies])
    assert len(made.axes) == studies * 4
    assert [axis.get_title() for axis in made.axes[:3]] == ["radiograph", "attention", "mask"]
    path = viz.save(made, tmp_path / "deep" / "figure.png", dpi=60)
    with Image.open(path) as image:
        width, height = image.size
        pixels = np.asarray(image.convert("L"))
    assert 400 < width < 1600
    assert 100 * studies < height < 400 * studies
    assert pixels.std() > 20  # not an empty canvas


def test_long_reports_are_cut():
    text = figure(1, max_chars=50).axes[-1].texts[0].get_text()
    assert text.endswith("…")
    assert len(text) < 60


def test_no_maps(tmp_path):
    made = viz.study_figure([np.eye(8)], {}, ["x"])
    assert viz.save(made, tmp_path / "f.png").stat().st_size > 1000


@pytest.mark.parametrize("samples", [1, 5])
def test_phrases_beside_their_heatmaps(samples, tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.random((3, 32, 32)) for _ in range(samples)]
    heat = [rng.normal(size=(32, 32)) for _ in range(samples)]
    heat[0][:4] = np.nan
    masks = [np.pad(np.ones((8, 8)), 12) for _ in range(samples)]
    masks[-1] = np.zeros((32, 32))  # nothing to outline
    made = viz.grounding_figure(
        images, {"similarity": heat}, masks, ["costs $5 and 10$ _{"] * samples, ["id"] * samples
    )
    columns = min(samples, 3)
    assert len(made.axes) == 2 * columns * -(-samples // 3)
    assert made.axes[1].get_title() == "similarity"
    assert made.axes[0].texts[0].get_text() == "id\ncosts $5 and 10$ _{"
    with Image.open(viz.save(made, tmp_path / "g.png", dpi=60)) as image:
        assert image.size[0] > 80 * columns
    flat = viz.grounding_figure(images[:1], {"flat": [np.full((32, 32), np.nan)]}, masks[:1], ["x"])
    assert viz.save(flat, tmp_path / "f.png").stat().st_size > 1000
