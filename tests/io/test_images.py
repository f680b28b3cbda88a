import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvlp.errors import DataError, UnreadableItemError
from medvlp.io.images import read_image

ROOT = Path(os.environ.get("MEDVLP_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def _save(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_png_of_every_mode(tmp_path):
    grey = Image.fromarray(RAMP)
    for mode in ("L", "RGB", "RGBA", "LA"):
        assert np.array_equal(read_image(_save(tmp_path, grey.convert(mode), f"{mode}.png")), RAMP)
    palette = grey.convert("P")
    assert np.array_equal(read_image(_save(tmp_path, palette, "p.png")), RAMP)
    bit = read_image(_save(tmp_path, Image.fromarray(RAMP > 127), "1.png"))
    assert np.array_equal(bit, np.where(RAMP > 127, 255, 0))
    for result in (bit, read_image(tmp_path / "L.png")):
        assert result.dtype == np.uint8
        assert result.flags.writeable


def test_16_bits_scale_by_the_full_range(tmp_path):
    wide = RAMP.astype(np.uint16) * 257
    assert np.array_equal(read_image(_save(tmp_path, Image.fromarray(wide), "wide.png")), RAMP)
    dark = np.array([[0, 1000], [2000, 257]], np.uint16)
    assert read_image(_save(tmp_path, Image.fromarray(dark), "dark.png")).tolist() == [[0, 4], [8, 1]]


def test_jpeg_in_colour_and_grey(tmp_path):
    smooth = np.linspace(0, 255, 64, dtype=np.uint8)[None].repeat(64, 0)
    for mode in ("L", "RGB"):
        path = _save(tmp_path, Image.fromarray(smooth).convert(mode), f"{mode}.jpg", quality=95)
        result = read_image(path)
        assert result.shape == (64, 64)
        assert np.abs(result.astype(int) - np.asarray(Image.open(path).convert("L"))).max() <= 1


def test_min_side_decodes_smaller(tmp_path):
    path = _save(tmp_path, Image.fromarray(np.full((800, 640), 99, np.uint8)), "x.jpg")
    assert read_image(path).shape == (800, 640)
    assert read_image(path, min_side=150).shape == (200, 160)
    assert read_image(path, min_side=700).shape == (800, 640)


def test_content_decides_and_not_the_name(tmp_path):
    _save(tmp_path, Image.fromarray(RAMP), "x.png").rename(tmp_path / "x.jpg")
    assert np.array_equal(read_image(tmp_path / "x.jpg"), RAMP)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated(tmp_path, kind):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    path = tmp_path / "half.img"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(UnreadableItemError, match=r"half\.img: truncated") as caught:
        read_image(path)
    assert caught.value.item_id == "half"
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UnreadableItemError, match="missing file"):
        read_image(tmp_path / "none.png")
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(UnreadableItemError, match="not a JPEG, PNG or DICOM"):
        read_image(tmp_path / "x.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError):
        read_image(tmp_path / "empty.png")
    with pytest.raises(UnreadableItemError, match="folder"):
        read_image(tmp_path)


def test_real_pngs_and_jpegs():
    folder = ROOT / "samples"
    if not folder.is_dir():
        pytest.skip("shared/data/samples is not here")
    assert read_image(folder / "00000001_000.png").shape == (512, 512)
    assert read_image(folder / "16747_3_1.jpg").shape == (885, 1036)


def test_real_images_of_figure1():
    folder = ROOT / "figure1/images"
    if not folder.is_dir():
        pytest.skip("shared/data/figure1 is not here")
    files = sorted(folder.iterdir())
    for path in files[::6]:
        image = read_image(path)
        assert image.ndim == 2
        assert image.std() > 10
