"""Where the system refuses a place, ``medvlp benchmark`` says so in one line that names it."""

from pathlib import Path

import pytest
from helpers import mostly_variants
from made_results import write
from printed_tables import result_row


@pytest.fixture
def results(tmp_path) -> Path:
    (tmp_path / "file").touch()
    (tmp_path / "folder.md").mkdir()
    return write(tmp_path / "results.jsonl", [result_row("g2d", "dice_positive", 0.5)])


@pytest.mark.parametrize("place", mostly_variants(["folder.md", "file/t.md", "file/tables", "file"]))
@pytest.mark.parametrize("part", ["table", "report"])
def test_an_output_that_cannot_be(command, results, part, place):
    if (part, place) == ("report", "file"):
        assert command("benchmark", part, results, "--output", results.parent / place).ok()
        return
    line = command("benchmark", part, results, "--output", results.parent / place).error()
    assert str(results.parent / place.split("/")[0]) in line


def test_a_missing_disk(command, results):
    line = command("benchmark", "table", results, "--output", "/proc/nothing/tables.md").error()
    assert line == "medvlp: error: /proc/nothing: no such file or directory"


@pytest.mark.parametrize("part", ["table", "report"])
def test_a_folder_in_the_place_of_the_described_grid(command, results, part):
    (results.parent / "grid.json").mkdir()
    assert "grid.json: not readable as JSON" in command("benchmark", part, results).error()


@pytest.mark.parametrize("name", ["results.jsonl", "grid.json"])
def test_a_folder_in_the_place_of_what_a_run_collects(command, tiny_grid, tmp_path, name):
    """The error names the file itself, not the part that is written beside it."""
    (tmp_path / "work" / name).mkdir(parents=True)
    line = command("benchmark", "run", "-c", tiny_grid(), "--only", "random").error()
    assert line == f"medvlp: error: {tmp_path / 'work' / name}: is a directory"


@pytest.mark.parametrize("work", ["file", "file/work"])
def test_a_work_folder_that_cannot_be(command, results, tiny_grid, work):
    line = command("benchmark", "run", "-c", tiny_grid(), "--work", results.parent / work).error()
    assert str(results.parent / work) in line
