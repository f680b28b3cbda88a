"""Compressed files, whatever they are called and however far they unpack."""

import bz2
import gzip
import lzma
import zipfile

import pytest

from medvlp.errors import DataError
from medvlp.io.packed import read_unpacked
from medvlp.results import numbered_rows


def _zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_content_decides(tmp_path, pack):
    (tmp_path / "file.gz").write_bytes(pack(b"some text"))
    assert read_unpacked(tmp_path / "file.gz") == b"some text"


def test_a_zip_file_holds_one_file(tmp_path):
    _zip(tmp_path / "t.zip", {"t.csv": "some text", "__MACOSX/._t.csv": "icon"})
    assert read_unpacked(tmp_path / "t.zip") == b"some text"
    for members in ({}, {"a": "1", "b": "2"}):
        _zip(tmp_path / "t.zip", members)
        with pytest.raises(DataError, match=f"holds {len(members)} files"):
            read_unpacked(tmp_path / "t.zip")


def test_a_bomb_ends_in_an_error(tmp_path):
    _zip(tmp_path / "t.zip", {"t.csv": bytes(65 << 20)})
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(bytes(65 << 20)))
    with pytest.raises(DataError, match="more than 64 MiB"):
        read_unpacked(tmp_path / "t.zip")
    with pytest.raises(DataError, match="more than 64 MiB"):
        numbered_rows(tmp_path / "rows.jsonl.gz")
