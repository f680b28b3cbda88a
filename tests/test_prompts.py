import json

import pytest

from medvlp.errors import ConfigError
from medvlp.phantom.model import FINDINGS
from medvlp.prompts import available, load_prompts

CHEXPERT = {
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
}


@pytest.mark.parametrize("name", available())
def test_every_set_loads(name):
    prompts = load_prompts(name)
    assert prompts.name == name
    assert prompts.version >= 1
    assert prompts.prompts
    for finding, sides in prompts.prompts.items():
        for side in sides:
            assert side, finding
            assert all(text.strip() == text and text for text in side), finding
        assert not set(sides[0]) & set(sides[1]), finding


def test_the_sets_cover_their_labels():
    assert {"chexpert", "phantom"} <= set(available())
    assert set(load_prompts("phantom").prompts) >= set(FINDINGS)
    assert set(load_prompts("chexpert").prompts) == CHEXPERT


def test_a_file_of_the_users(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"prompts": {"Opacity é": {"positive": ["a", "b"], "negative": ["c"]}}}), "utf-8")
    prompts = load_prompts(str(path))
    assert prompts.prompts == {"Opacity é": (("a", "b"), ("c",))}
    assert (prompts.name, prompts.version) == ("mine", 1)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b'{"prompts": []}',
        b'{"name": "x"}',
        b'{"prompts": {"Edema": ["a"]}}',
        b'{"prompts": {"Edema": {"positive": ["a"]}}}',
        b'{"prompts": {"Edema": {"positive": ["a"], "negative": []}}}',
        b'{"prompts": {"Edema": {"positive": "edema", "negative": ["none"]}}}',
        b'{"prompts": {"Edema": {"positive": [1], "negative": ["none"]}}}',
        b'{"prompts": {"Edema": {"positive": [" "], "negative": ["none"]}}}',
        b'{"version": "two", "prompts": {"Edema": {"positive": ["a"], "negative": ["none"]}}}',
    ],
)
def test_broken_files(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"prompts .*broken\.json"):
        load_prompts(str(path))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="chexpert"):
        load_prompts("chexprt")
