"""What holds for any corpus: no leaks in our own split, nested shares, and no say for the order of the records."""

import numpy as np
import pytest
import split_inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp.errors import ConfigError
from medvlp.splits import Part, draw_fraction, hash_split, make_split, nested_fraction
from medvlp.splits.fractions import linked_groups

records = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 20), st.booleans()), min_size=2, max_size=40)
CORPORA = ("siim", "open_i", "covidx", "cxr14")


def build(rows, corpus):
    pool = ["test" if held else "train" for *_, held in rows]
    if not any(held for *_, held in rows):
        pool[0] = "test"
    return split_inputs.inputs(
        [f"i{i}" for i in range(len(rows))],
        patients=[f"p{p}" for p, *_ in rows],
        pool=pool,
        hashes=np.array([f"h{h}" if h else "" for _, h, _ in rows], dtype=object),
    )


def members(split, inputs):
    return {p: set(inputs.ids[part.records]) for p, part in split.parts.items()}


@settings(max_examples=60, deadline=None)
@given(records, st.integers(0, 5), st.sampled_from(CORPORA), st.randoms(use_true_random=False))
def test_clean_never_leaks_and_ignores_order(rows, seed, corpus, random):
    inputs = build(rows, corpus)
    split = make_split(corpus, "clean", inputs, seed=seed, strict=False)
    if "train" in split.parts or "validate" in split.parts:
        # two official test images may be copies of each other, but nothing crosses between parts
        assert split.leaks == {}
    total = np.concatenate([*(part.records for part in split.parts.values()), split.left_out])
    assert np.array_equal(np.sort(total), np.arange(len(inputs)))
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = split_inputs.inputs(
        inputs.ids[order],
        patients=inputs.patients[order],
        pool=inputs.pool[order],
        hashes=inputs.hashes[order],
    )
    again = make_split(corpus, "clean", shuffled, seed=seed, strict=False)
    assert members(again, shuffled) == members(split, inputs)
    assert again.digest == split.digest


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(0, 5))
def test_nested_shares(patients, seed):
    inputs = split_inputs.inputs([f"i{i}" for i in range(len(patients))], patients=[f"p{p}" for p in patients])
    part = Part(np.arange(len(patients))[::-1].copy())
    one, ten, whole = (draw_fraction("nested", f, inputs, part, seed=seed) for f in (0.01, 0.1, 1.0))
    assert one.any()
    assert (one <= ten).all()
    assert (ten <= whole).all()
    assert whole.all()
    kept = set(inputs.patients[part.records[ten]])
    assert kept.isdisjoint(inputs.patients[part.records[~ten]])  # no patient is cut


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=1, max_size=40))
def test_linked_groups_are_connected_components(pairs):
    patients = np.array([f"p{p}" for p, _ in pairs], dtype=object)
    hashes = np.array([f"h{h}" for _, h in pairs], dtype=object)
    groups = linked_groups(patients, hashes)
    parent = {}

    def find(x):
        while parent.setdefault(x, x) != x:
            x = parent[x]
        return x

    for p, h in zip(patients, hashes, strict=True):
        parent[find(p)] = find(h)
    for i in range(len(pairs)):
        for j in range(i):
            assert (groups[i] == groups[j]) == (find(patients[i]) == find(patients[j]))
    assert all(groups[i] <= patients[i] for i in range(len(pairs)))  # named after the first patient
    assert np.array_equal(linked_groups(patients, None), patients)
    assert np.array_equal(linked_groups(patients, np.full(len(pairs), "", dtype=object)), patients)


def test_adding_patients_moves_nobody():
    ids = [f"i{i}" for i in range(500)]
    small = make_split("siim", "clean", split_inputs.inputs(ids[:300]), strict=False)
    large = make_split("siim", "clean", split_inputs.inputs(ids), strict=False)
    for name, part in small.parts.items():
        assert set(part.records) <= set(large.parts[name].records)


def test_clean_keeps_the_official_test_set():
    patients = ["p0", "p1", "p1", "p2", "p3", "p4"]
    hashes = np.array(["", "", "", "h", "h", ""], dtype=object)
    pool = ["train", "train", "test", "test", "train", "train"]
    inputs = split_inputs.inputs(list("abcdef"), patients=patients, pool=pool, hashes=hashes)
    split = make_split("covidx", "clean", inputs, strict=False)
    assert split.parts["test"].records.tolist() == [2, 3]
    assert split.left_out.tolist() == [1, 4]  # the patient of c, and a copy of d
    assert split.leaks == {}


@pytest.mark.parametrize("seed", [0, 3])
def test_shares(seed):
    names = hash_split(range(20_000), {"test": 0.2, "validate": 0.1}, seed)
    for name, share in (("train", 0.7), ("validate", 0.1), ("test", 0.2)):
        assert abs((names == name).mean() - share) < 0.01
    with pytest.raises(ConfigError):
        hash_split([1], {"validate": 0.7, "test": 0.7})
    with pytest.raises(ConfigError):
        nested_fraction([1], 0)
