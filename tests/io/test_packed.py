"""Compressed files, whatever they are called and however far they unpack."""

import bz2
import gzip
import lzma
import zipfile

import pytest

from medvlp.errors import DataError
from medvlp.io.packed import open_unpacked
from medvlp.results import numbered_rows


def _zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_content_decides(tmp_path, pack):
    (tmp_path / "file.gz").write_bytes(pack(b"some text"))
    with open_unpacked(tmp_path / "file.gz") as file:
        assert file.read() == b"some text"


def test_a_zip_file_holds_one_file(tmp_path):
    _zip(tmp_path / "t.zip", {"t.csv": "some text", "__MACOSX/._t.csv": "icon"})
    with open_unpacked(tmp_path / "t.zip") as file:
        assert file.read() == b"some text"
    for members in ({}, {"a": "1", "b": "2"}):
        _zip(tmp_path / "t.zip", members)
        with pytest.raises(DataError, match=f"holds {len(members)} files"), open_unpacked(tmp_path / "t.zip"):
            pass


def test_a_bomb_ends_in_an_error(tmp_path):
    _zip(tmp_path / "t.zip", {"t.csv": bytes(65 << 20)})
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(bytes(65 << 20)))
    with pytest.raises(DataError, match="more than 64 MiB"), open_unpacked(tmp_path / "t.zip") as file:
        file.read()
    with pytest.raises(DataError, match="more than 64 MiB"):
        numbered_rows(tmp_path / "rows.jsonl.gz")
