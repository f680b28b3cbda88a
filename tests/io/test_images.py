import contextlib
import io
import os
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from medvlp.errors import ConfigError, DataError, UnreadableItemError
from medvlp.io.images import INTENSITIES, read_image

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


def test_intensities_of_pngs(tmp_path):
    values = np.array([[300, 1000], [2000, 3000]])
    wide = _save(tmp_path, Image.fromarray(values.astype(np.uint16)), "wide.png")
    byte = _save(tmp_path, Image.fromarray((values // 100).astype(np.uint8)), "byte.png")
    expected = {
        "minmax": (np.rint((values - 300) * 255 / 2700), np.rint((values // 100 - 3) * 255 / 27)),
        "image_max": (np.floor(values / 3000 * 255), np.floor(values // 100 / 30 * 255)),
    }
    for rule in INTENSITIES:
        wide_expected, byte_expected = expected.get(rule, (np.rint(values / 257), values // 100))
        assert np.array_equal(read_image(wide, intensity=rule), wide_expected), rule
        assert np.array_equal(read_image(byte, intensity=rule), byte_expected), rule
    flat = _save(tmp_path, Image.fromarray(np.zeros((3, 3), np.uint16)), "flat.png")
    assert not any(read_image(flat, intensity=rule).any() for rule in INTENSITIES)
    with pytest.raises(ConfigError, match="minmax"):
        read_image(flat, intensity="max")


@pytest.mark.parametrize("turn", range(1, 9))
def test_photographs_come_out_upright(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = Image.fromarray(np.kron(RAMP[:8], np.ones((8, 8), np.uint8)))
    for name in ("x.jpg", "x.png"):
        path = _save(tmp_path, picture, name, exif=exif)
        with Image.open(path) as stored:
            expected = np.asarray(ImageOps.exif_transpose(stored))
        result = read_image(path)
        assert np.array_equal(result, expected)
        assert result.flags.c_contiguous
        assert result.flags.writeable


def test_bomb_is_refused_before_decoding(tmp_path, monkeypatch):
    path = _save(tmp_path, Image.fromarray(RAMP), "x.png")
    data = bytearray(path.read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    monkeypatch.setattr("medvlp.io.images._png", lambda *a: pytest.fail("decoded"))
    with pytest.raises(UnreadableItemError, match="decompression bomb: 3600000000 pixels"):
        read_image(path)


def test_sizes_up_to_the_limit_bring_no_warning(tmp_path):
    path = tmp_path / "x.png"
    Image.new("L", (10000, 9500)).save(path, compress_level=1)  # beyond the 89 megapixels at which Pillow warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).shape == (9500, 10000)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_bytes_never_raise_anything_else(tmp_path, kind):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP).save(buffer, kind, exif=exif)
    whole = buffer.getvalue()
    rng = np.random.default_rng(0)
    path = tmp_path / "x.img"
    for _ in range(300):
        broken = bytearray(whole)
        for place in rng.integers(3, len(whole), 3):
            broken[place] = rng.integers(256)
        path.write_bytes(broken[: rng.integers(20, 2 * len(whole))])
        with contextlib.suppress(UnreadableItemError):
            assert read_image(path).dtype == np.uint8


def test_empty_files_links_and_pipes(tmp_path):
    path = _save(tmp_path, Image.fromarray(RAMP), "x.png")
    (tmp_path / "link.png").symlink_to(path)
    assert np.array_equal(read_image(tmp_path / "link.png"), RAMP)
    (tmp_path / "empty.png").touch()
    with pytest.raises(UnreadableItemError, match="zero-byte file"):
        read_image(tmp_path / "empty.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableItemError, match="not a regular file"):
        read_image(tmp_path / "pipe.png")


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


def _chunks(data):
    at = 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_png_with_fewer_rows_than_it_says_or_a_wrong_checksum_is_refused(tmp_path, mode):
    path = tmp_path / "x.png"
    Image.fromarray(np.arange(200, 255, dtype=np.uint8).reshape(11, 5)).convert(mode).save(path)
    whole = path.read_bytes()
    assert read_image(path).shape == (11, 5)
    taller = b"\x89PNG\r\n\x1a\n"
    for kind, data in _chunks(whole):
        body = data[:4] + (14).to_bytes(4, "big") + data[8:] if kind == b"IHDR" else data
        taller += len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    path.write_bytes(taller)
    with pytest.raises(UnreadableItemError, match="instead of"):
        read_image(path)
    at = whole.index(b"IDAT") + 4 + int.from_bytes(whole[whole.index(b"IDAT") - 4 :][:4], "big")
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(UnreadableItemError, match="checksum"):
        read_image(path)
