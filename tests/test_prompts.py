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
    assert prompts.source
    for finding, sides in prompts.prompts.items():
        assert sides[0], finding
        assert bool(sides[1]) == prompts.negation, finding
        for side in sides:
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
        b'{"version": 1}',
        b'{"promts": {}, "prompts": {"Edema": {"positive": ["a"], "negative": ["none"]}}}',
        b'{"prompts": {"Edema": {"positive": ["a"], "negative": ["none"]}}, "synonyms": {"Oedema": "Edemas"}}',
        b'{"negation": "no", "prompts": {"Edema": {"positive": ["a"]}}}',
        b'{"negation": false, "prompts": {"Edema": {"positive": []}}}',
        b'{"negation": false, "prompts": {"Edema": {"positive": ["a"], "negative": ["none"]}}}',
        b'{"negation": false, "classes": {"Edema": "edema"}, "templates": {"positive": ["{}"], "negative": ["no {}"]}}',
        b'{"classes": {"Edema": "edema"}}',
        b'{"classes": {"Edema": ""}, "templates": {"positive": ["{}"], "negative": ["no {}"]}}',
        b'{"classes": {"Edema": "edema"}, "templates": {"positive": ["{}"]}}',
        b'{"classes": {"Edema": "edema"}, "templates": {"positive": ["disease"], "negative": ["no {}"]}}',
        b'{"negation": false, "prompts": {"Edema": {"positive": {"parts": ["mild", "edema"]}}}}',
        b'{"negation": false, "prompts": {"Edema": {"positive": {"parts": [["", " "], [""]]}}}}',
        b'{"negation": false, "prompts": {"Edema": {"positive": {"part": [["a"]]}}}}',
        b'{"negation": false, "prompts": {"Edema": {"positive": ["a", "b"]}}, "draw": {"count": 1}}',
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


NIH_LABELS = ("Atelectasis", "Effusion", "Pleural_Thickening", "Mass", "No Finding")


@pytest.mark.parametrize(
    ("name", "label", "positive", "negative"),
    [
        ("chexzero", "Pleural Effusion", ("Pleural Effusion",), ("no Pleural Effusion",)),
        ("chexzero", "Effusion", ("Pleural Effusion",), ("no Pleural Effusion",)),
        ("g2d", "Effusion", ("Effusion",), ("No Effusion",)),
        ("g2d", "Pleural_Thickening", ("Pleural Thickening",), ("No Pleural Thickening",)),
        (
            "maco",
            "Pleural_Thickening",
            ("There is pleural thickening.",),
            (
                "the lung is clear.",
                "There is no pleural thickening.",
                "no pleural thickening.",
                "no evidence of pleural thickening.",
            ),
        ),
        ("kad", "Effusion", ("pleural effusion",), ()),
        ("medklip", "Infiltration", ("infiltrate",), ()),
    ],
)
def test_labels_of_the_corpora_find_their_prompts(name, label, positive, negative):
    assert load_prompts(name).among([label]) == {label: (positive, negative)}


def test_sets_cover_the_labels_of_their_corpora():
    from medvlp.datasets.cxr14 import NIH_14
    from medvlp.datasets.labels import CHEXPERT_5, CHEXPERT_14

    for name in ("g2d", "maco", "kad"):
        assert list(load_prompts(name).among(NIH_14)) == list(NIH_14)
        assert list(load_prompts(name).among(CHEXPERT_5)) == list(CHEXPERT_5)
    assert set(NIH_14) - set(load_prompts("medklip").among(NIH_14)) == {"Fibrosis"}
    for name in ("chexzero", "g2d", "chexpert"):
        assert list(load_prompts(name).among(CHEXPERT_14)) == list(CHEXPERT_14)
    for name in ("biovil_rsna", "cxrclip_rsna", "maco_rsna", "medclip_rsna", "g2d"):
        assert "Pneumonia" in load_prompts(name).among(["Pneumonia"])
    for name in ("cxrclip_siim", "maco_siim", "g2d", "maco_grounding"):
        assert "Pneumothorax" in load_prompts(name).among(["Pneumothorax"])
    assert load_prompts("maco_rsna").among(["Pneumonia"])["Pneumonia"][0] == ("There is lung opacity.",)


def test_labels_keep_their_order_and_unknown_classes_are_told():
    prompts = load_prompts("kad")
    assert list(prompts.among(NIH_LABELS)) == ["Atelectasis", "Effusion", "Pleural_Thickening", "Mass"]
    left = prompts.unknown(NIH_LABELS)
    assert "Hernia" in left
    assert not {"Pleural Effusion", "Pleural Thickening", "Mass"} & set(left)


def test_composed_prompts_are_those_of_gloria():
    prompts = load_prompts("gloria_5x200_all").prompts
    counts = {name: (len(sides[0]), len(set(sides[0]))) for name, sides in prompts.items()}
    assert counts == {
        "Atelectasis": (210, 210),
        "Cardiomegaly": (15, 15),
        "Consolidation": (192, 192),
        "Edema": (18, 18),
        "Pleural Effusion": (54, 36),
    }
    assert prompts["Atelectasis"][0][:2] == (
        "subsegmental atelectasis at the mid lung zone",
        "subsegmental atelectasis at the upper lung zone",
    )
    assert prompts["Atelectasis"][0][70] == "mild subsegmental atelectasis at the mid lung zone"
    assert "apperance of patchy consolidation at the right uppper lobe" in prompts["Consolidation"][0]
    assert "presistent pulmonary edema" in prompts["Edema"][0]
    assert "small tiny subpulmonic pleural effusion" in prompts["Pleural Effusion"][0]
    # 6 kinds × 4 agents × 13 places, less the empty combination
    assert len(load_prompts("medclip_rsna").prompts["Pneumonia"][0]) == 311
    assert len(load_prompts("medclip_covid").prompts["COVID-19"][0]) == 12


def test_drawn_prompts_are_five_of_all_and_always_the_same():
    drawn, everything = load_prompts("gloria_5x200"), load_prompts("gloria_5x200_all")
    assert drawn.prompts == load_prompts("gloria_5x200").prompts
    for name, (positive, negative) in drawn.prompts.items():
        assert len(positive) == 5
        assert not negative
        assert set(positive) <= set(everything.prompts[name][0])
    # Python's random is stable across versions; the numbers depend on it
    assert drawn.prompts["Edema"][0][0] == "pulmonary edema"


def test_a_composition_of_the_users(tmp_path):
    path = tmp_path / "mine.json"
    content = {
        "negation": False,
        "classes": {"Mass": "mass"},
        "templates": {"positive": ["a {}"]},
        "prompts": {"Edema": {"positive": {"parts": [["", "mild"], ["edema"]]}}},
        "synonyms": {"Oedema": "Edema"},
    }
    path.write_text(json.dumps(content))
    prompts = load_prompts(str(path))
    assert prompts.prompts == {"Mass": (("a mass",), ()), "Edema": (("edema", "mild edema"), ())}
    assert prompts.among(["Oedema", "Nodule"]) == {"Oedema": (("edema", "mild edema"), ())}
    assert prompts.unknown(["Oedema"]) == ["Mass"]
