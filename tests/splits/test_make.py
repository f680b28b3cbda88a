from pathlib import Path

import numpy as np
import pytest
import split_inputs

from medvlp.errors import ConfigError, DataError
from medvlp.splits import FRACTION_RULES, Part, describe, draw_fraction, make_split, split_names
from medvlp.splits.catalog import releases
from medvlp.splits.fractions import target
from medvlp.splits.lists import image_key
from medvlp.splits.recipes import RECIPES

CORPORA = ("mimic_cxr", "chexpert", "rsna", "siim", "covidx", "cxr14", "object_cxr", "ms_cxr", "open_i")
DOCS = Path(__file__).parents[2] / "docs/datasets/splits.md"


def test_catalog_and_recipes_name_the_same_splits():
    listed = {(corpus, name) for corpus in CORPORA for name in split_names(corpus)}
    assert listed == set(RECIPES)
    for corpus, name in listed:
        info = describe(corpus, name)
        assert info.exact in ("members", "sizes")
        assert info.title
        assert info.recipe
        assert info.source
        assert {e.release for e in info.expected} <= {"", *(r.name for r in releases(corpus))}
        for entry in info.expected:
            assert set(entry.sha256) <= set(entry.counts)
            assert all(len(h) == 64 for h in entry.sha256.values())


def test_the_page_lists_every_split_and_hash():
    text = DOCS.read_text("utf-8")
    for corpus in CORPORA:
        for name in split_names(corpus):
            assert f"| `{name}` |" in text
            for entry in describe(corpus, name).expected:
                if entry.seed in (None, 0):
                    assert all(h[:12] in text for h in entry.sha256.values()), (corpus, name)


def test_unknown_names():
    with pytest.raises(ConfigError, match="expected one of: mimic_cxr"):
        split_names("nih")
    with pytest.raises(ConfigError, match="rsna has no split 'kad'; expected one of: g2d"):
        describe("rsna", "kad")
    with pytest.raises(ConfigError, match="seed"):
        make_split("open_i", "clean", split_inputs.inputs(["a"]), seed=-1)
    with pytest.raises(ConfigError, match="unknown fraction rule"):
        draw_fraction("half", 0.5, split_inputs.inputs(["a"]), Part(np.array([0])))
    for wrong in (0, -1, 1.5):
        with pytest.raises(ConfigError):
            draw_fraction("nested", wrong, split_inputs.inputs(["a"]), Part(np.array([0])))


def test_inputs_are_checked():
    with pytest.raises(DataError, match="1 ids occur twice"):
        split_inputs.inputs(["a", "b", "a"])
    with pytest.raises(DataError, match="patients"):
        split_inputs.inputs(["a", "b"], patients=["p"])
    with pytest.raises(DataError, match="outside"):
        split_inputs.inputs(["a", "b"], rows=np.array([0, 2]))


def write_lists(folder, **lists):
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def test_lists_in_the_authors_format(tmp_path):
    """MRM writes the name, then the labels; the counts are checked, leaks are reported."""
    ids = [f"0000000{i}_000.png" for i in range(8)]
    inputs = split_inputs.inputs(ids, patients=[i[:8] for i in ids], pool="train_val")
    labelled = [f"{i} 0 0 1" for i in ids]
    folder = tmp_path / "above" / "lists"
    folder.mkdir(parents=True)
    write_lists(folder, train_list=labelled[3::-1], val_list=labelled[3:6], test_list=labelled[6:])
    with pytest.warns(UserWarning, match="1 images train&validate"):
        split = make_split("cxr14", "maco", inputs, lists=folder, strict=False)
    assert split.parts["train"].records.tolist() == [3, 2, 1, 0]  # in the order of the list
    assert split.leaks == {"images train&validate": 1, "patients train&validate": 1}
    with pytest.raises(DataError, match="counts of train: expected 78,468, found 4"):
        make_split("cxr14", "maco", inputs, lists=folder)
    with pytest.warns(UserWarning, match="shares"):  # the folder above the lists will do as well
        above = make_split("cxr14", "maco", inputs, lists=folder.parent, strict=False)
    assert above.digest == split.digest


def test_ids_that_are_only_in_the_list(tmp_path):
    inputs = split_inputs.inputs(["1.2.3", "1.2.4"])
    write_lists(tmp_path, train_list=["1.2.3", "1.2.9", "1.2.8"], val_list=["1.2.4"], test_list=["1.2.4"])
    with pytest.raises(DataError, match=r"2 of the 3 images in train_list\.txt .* for example 1\.2\.9, 1\.2\.8"):
        make_split("siim", "maco", inputs, lists=tmp_path)


def test_missing_lists_name_the_repository(tmp_path):
    with pytest.raises(DataError, match=r"needs train_list\.txt from RL4M/MRM-pytorch"):
        make_split("siim", "maco", split_inputs.inputs(["a"]))
    with pytest.raises(DataError, match="holds no file of that name"):
        make_split("siim", "maco", split_inputs.inputs(["a"]), lists=tmp_path)
    with pytest.raises(DataError, match=r"needs train_1\.txt from RL4M"):
        draw_fraction("maco", 0.01, split_inputs.inputs(["a"]), Part(np.array([0])))


def test_chexpert_names_match_across_variants(tmp_path):
    ids = [f"train/patient0000{i}/study1/view1_frontal" for i in range(4)]
    inputs = split_inputs.inputs(
        [*ids, "valid/patient64541/study1/view1_frontal"],
        patients=[f"p{i}" for i in range(5)],
        pool=["train"] * 4 + ["valid"],
    )
    line = "CheXpert-v1.0-small/train/patient00002/study1/view1_frontal.jpg 0 0 1 1 0"
    write_lists(tmp_path, val_list=[line], train_1=[line.replace("00002", "00001")])
    split = make_split("chexpert", "maco", inputs, lists=tmp_path, strict=False)
    assert split.parts["train"].records.tolist() == [0, 1, 3]
    assert split.parts["validate"].records.tolist() == [2]
    assert split.parts["test"].records.tolist() == [4]
    drawn = draw_fraction("maco", 0.01, inputs, split.parts["train"], lists=tmp_path)
    assert drawn.tolist() == [False, True, False]
    with pytest.raises(ConfigError, match=r"0\.01 and 0\.1"):
        draw_fraction("maco", 0.5, inputs, split.parts["train"], lists=tmp_path)
    write_lists(tmp_path, train_1=[line])
    with pytest.raises(DataError, match="not in the training part"):
        draw_fraction("maco", 0.01, inputs, split.parts["train"], lists=tmp_path)


def test_medklip_csv(tmp_path):
    (tmp_path / "test.csv").write_text("ID,img_path,boxes,classes\nb,x/1.2/b.dcm,nan,0\na,x/1.3/a.dcm,1;2;3;4,1\n")
    split = make_split(
        "rsna", "medklip", split_inputs.inputs(["a", "b", "c"], pool="train"), lists=tmp_path, strict=False
    )
    assert split.parts["test"].records.tolist() == [1, 0]
    assert split.left_out.tolist() == [2]


def test_benchx_siim_through_the_repack(tmp_path):
    ids = [f"1.2.{i}" for i in range(6)]
    names = [f"{i}_{'test' if i > 3 else 'train'}_{i % 2}_.png" for i in range(6)]
    for part, rows in (("train", range(4)), ("test", range(4, 6))):
        lines = ["new_filename,ImageId,has_pneumo", *(f"{names[i]},{ids[i]},{i % 2}" for i in rows)]
        (tmp_path / f"stage_1_{part}_images.csv").write_text("\n".join(lines))
    stems = [n[:-4] for n in names]
    write_lists(tmp_path, train=stems[:3], val=stems[3:4], test=stems[4:])
    split = make_split("siim", "benchx", split_inputs.inputs(ids), lists=tmp_path, strict=False)
    assert {p: v.records.tolist() for p, v in split.parts.items()} == {
        "train": [0, 1, 2],
        "validate": [3],
        "test": [4, 5],
    }
    write_lists(tmp_path, val=["9_train_0_"])
    with pytest.raises(DataError, match="in no table of the repack"):
        make_split("siim", "benchx", split_inputs.inputs(ids), lists=tmp_path, strict=False)


def test_image_key():
    assert image_key("stage_2_train_images/ab-12.dcm") == "ab-12"
    assert image_key("1.2.276.0.490940") == "1.2.276.0.490940"
    assert image_key("train/COVID(294).PNG") == "COVID(294)"
    assert image_key("patient00001_study2_view1_frontal") == image_key("x/train/patient00001/study2/view1_frontal.jpg")


def test_digest_follows_the_members():
    ids = [f"i{i}" for i in range(40)]
    a, b = (make_split("open_i", "clean", split_inputs.inputs(ids), seed=s, strict=False) for s in (0, 1))
    assert a.digest == make_split("open_i", "clean", split_inputs.inputs(ids), strict=False).digest
    assert a.digest != b.digest
    # a recipe that fixes its own seed does not depend on the call's
    pool = ["train"] * 30 + ["test"] * 10
    c, d = (make_split("covidx", "mgca", split_inputs.inputs(ids, pool=pool), seed=s, strict=False) for s in (0, 1))
    assert (c.digest, c.seed) == (d.digest, None)


def test_too_small_or_empty():
    with pytest.raises(DataError, match="too few"):
        make_split(
            "rsna",
            "benchx",
            split_inputs.inputs(["a", "b", "c"], pool="train", labels={"Pneumonia": [0, 0, 1.0]}),
            strict=False,
        )
    with pytest.raises(DataError, match="finds no records of the released parts train_val, test"):
        make_split("cxr14", "official", split_inputs.inputs(["a"]), strict=False)
    with pytest.raises(DataError, match="leaves none"):
        draw_fraction("mgca", 0.01, split_inputs.inputs(["a", "b"]), Part(np.array([0, 1])))


def test_target_label():
    n = 6
    classes = np.eye(3)[[0, 1, 2, 0, 1, 2]]
    rsna = {"Normal": classes[:, 0], "No Lung Opacity / Not Normal": classes[:, 1], "Lung Opacity": classes[:, 2]}
    frame = split_inputs.inputs([str(i) for i in range(n)], labels=rsna).labels
    assert target(frame).tolist() == [0, 0, 1, 0, 0, 1]
    three = {"Pneumonia": classes[:, 0], "Normal": classes[:, 1], "COVID-19": classes[:, 2]}
    assert target(split_inputs.inputs([str(i) for i in range(n)], labels=three).labels).tolist() == [2, 1, 0, 2, 1, 0]
    with pytest.raises(DataError, match="no label to balance"):
        target(split_inputs.inputs(["a"], labels={"Edema": [1.0], "Fracture": [1.0]}).labels)


def test_fraction_rules_are_all_there():
    assert set(FRACTION_RULES) == {
        "nested", "mgca", "mgca_choice", "mgca_siim", "gloria", "benchx", "benchx_object_cxr", "maco",
    }  # fmt: skip
