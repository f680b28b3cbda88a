"""The phantom's cases and drawings: determinism, exact masks, sides, shares, difficulty, speed-independent facts."""

import dataclasses
import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest

from medvlp.errors import ConfigError
from medvlp.phantom.cases import (
    MOST_FINDINGS,
    READERS,
    sample_finding,
    sample_patient,
    sample_studies,
    sample_study,
    split_of,
)
from medvlp.phantom.fields import axes, parts, texture
from medvlp.phantom.model import CATALOGUE, FINDINGS, Difficulty, Finding, PhantomSpec, RenderedView, Study
from medvlp.phantom.render import render_study, render_view

PLAIN = Difficulty()
DEVICES, OBJECTS = (CATALOGUE["findings"][name]["subtypes"] for name in ("Support Devices", "Foreign Object"))
MIDLINE_OR_BILATERAL = {"Cardiomegaly", "Hernia", "Edema", "Emphysema", "COVID-19"}
# These change the chest's shape as well (domes, heart, lung volume), so their image differs beyond the mask too.
SHAPE = {"Cardiomegaly", "Emphysema", "Atelectasis"}


def study_with(*findings: Finding, index: int = 3, view: str = "PA") -> Study:
    study = sample_study(PhantomSpec(), index)
    return dataclasses.replace(study, findings=findings, views=(view,))


def finding(name: str, seed: int = 0, **values) -> Finding:
    return dataclasses.replace(sample_finding(name, np.random.default_rng(seed)), severity="moderate", **values)


def difference(study: Study, size: int = 128, knobs: Difficulty = PLAIN) -> tuple[RenderedView, np.ndarray]:
    drawn = render_view(study, "PA", size, knobs)
    without = render_view(dataclasses.replace(study, findings=()), "PA", size, knobs)
    return drawn, np.abs(drawn.image.astype(float) - without.image)


@pytest.fixture(scope="module")
def studies() -> list[Study]:
    return list(sample_studies(PhantomSpec(studies=3000)))


def test_same_seed_same_bytes_in_any_order():
    spec = PhantomSpec(studies=12, size=96, laterals=0.5)
    forward = [render_study(study, spec) for study in sample_studies(spec)]
    for index in reversed(range(12)):
        again = render_study(sample_study(spec, index), spec)
        assert len(again) == len(forward[index])
        for one, two in zip(again, forward[index], strict=True):
            assert one.boxes == two.boxes
            for x, y in zip((one.image, one.lungs, *one.masks), (two.image, two.lungs, *two.masks), strict=True):
                np.testing.assert_array_equal(x, y)


def test_a_shorter_phantom_is_the_beginning_of_a_longer_one():
    assert list(sample_studies(PhantomSpec(studies=20))) == list(sample_studies(PhantomSpec(studies=50)))[:20]


def test_patients_differ_and_follow_ups_resemble():
    spec = PhantomSpec(studies=60)
    by_patient = defaultdict(list)
    for study in sample_studies(spec):
        plain = dataclasses.replace(study, findings=())
        by_patient[study.patient.index].append(render_view(plain, "PA", 96, PLAIN).image.astype(float))
    first = [images[0] for images in by_patient.values()]
    between = [np.abs(a - b).mean() for a, b in itertools.pairwise(first)]
    within = [np.abs(images[0] - images[1]).mean() for images in by_patient.values() if len(images) > 1]
    assert min(between) > 2
    assert min(within) > 0.5
    assert np.mean(within) < np.mean(between)


def test_other_seed_other_phantom():
    one, two = (sample_study(PhantomSpec(seed=seed), 0) for seed in (0, 1))
    assert one.patient.seed != two.patient.seed


@pytest.mark.parametrize("name", FINDINGS)
def test_finding_is_drawn_inside_its_mask(name):
    ratios = []
    for seed in range(4):
        view, change = difference(study_with(finding(name, seed), index=seed))
        mask = view.masks[0]
        assert mask.any()
        ratios.append(change[mask].mean() / (change[~mask].mean() + 0.05))
        assert change[mask].mean() > 3  # grey levels of 255
    assert np.median(ratios) > (2 if name in SHAPE else 8)


@pytest.mark.parametrize("subtype", [*DEVICES, *OBJECTS, "rib", "clavicle", "plate-like", "lobar"])
def test_every_subtype_is_drawn(subtype):
    names = {"rib": "Fracture", "clavicle": "Fracture", "plate-like": "Atelectasis", "lobar": "Atelectasis"}
    name = names.get(subtype, "Support Devices" if subtype in DEVICES else "Foreign Object")
    view, change = difference(study_with(finding(name, subtype=subtype, side="left")))
    assert change[view.masks[0]].mean() > 5


@pytest.mark.parametrize("name", [name for name in FINDINGS if name not in MIDLINE_OR_BILATERAL])
@pytest.mark.parametrize("side", ["left", "right"])
def test_sides_are_the_patients(name, side):
    subtype = {"Support Devices": "chest tube", "Foreign Object": "coin", "Atelectasis": "plate-like"}.get(name, "")
    view = render_view(study_with(finding(name, side=side, subtype=subtype)), "PA", 128, PLAIN)
    columns = np.flatnonzero(view.masks[0].any(axis=0))
    middle = columns.mean()
    assert middle > 68 if side == "left" else middle < 60


def test_bilateral_finding_has_parts_on_both_sides():
    view = render_view(study_with(finding("Pleural Effusion", side="bilateral")), "PA", 128, PLAIN)
    centres = [(box[0] + box[2]) / 2 for box in view.boxes[0]]
    assert min(centres) < 64 < max(centres)


def test_boxes_enclose_the_masks_exactly(studies):
    for study in studies[:40]:
        view = render_view(study, study.views[0], 96, PLAIN)
        assert len(view.masks) == len(view.boxes) == len(study.findings)
        for mask, boxes in zip(view.masks, view.boxes, strict=True):
            covered = np.zeros_like(mask)
            for x0, y0, x1, y1 in boxes:
                assert 0 <= x0 < x1 <= 96
                assert 0 <= y0 < y1 <= 96
                inside = mask[y0:y1, x0:x1]
                assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
                covered[y0:y1, x0:x1] = True
            assert not (mask & ~covered).any()
            assert bool(boxes) == bool(mask.any())


def test_parts_finds_the_connected_components():
    mask = np.zeros((12, 14), dtype=bool)
    mask[1:4, 0:3] = True
    mask[4, 3] = True  # touches by a corner
    mask[6:11, 6] = mask[10, 6:12] = mask[6:11, 11] = True  # a U, joined only at the bottom
    mask[2:5, 11:14] = True  # at the right edge: must not run on into the next row
    cleaned, boxes = parts(mask)
    np.testing.assert_array_equal(cleaned, mask)
    assert set(boxes) == {(0, 1, 4, 5), (6, 6, 12, 11), (11, 2, 14, 5)}
    mask[8, 0] = True
    cleaned, boxes = parts(mask)
    assert not cleaned[8, 0]
    assert len(boxes) == 3
    assert parts(np.zeros((4, 4), dtype=bool))[1] == ()


def test_masks_agree_between_sizes():
    for name in FINDINGS:
        study = study_with(finding(name, 1))
        small = render_view(study, "PA", 128, PLAIN).masks[0]
        large = render_view(study, "PA", 256, PLAIN).masks[0]
        halved = large.reshape(128, 2, 128, 2).mean(axis=(1, 3)) >= 0.5
        union = (small | halved).sum()
        # Tubes, bands and small nodules are a few pixels wide, so they agree less than areas.
        thin = {"Support Devices": 0.35, "Foreign Object": 0.35, "Atelectasis": 0.6, "Nodule": 0.65}
        assert (small & halved).sum() / union > thin.get(name, 0.75), name


@pytest.mark.parametrize("name", FINDINGS)
def test_less_contrast_less_difference(name):
    study = study_with(finding(name, 2))
    full, change = difference(study)
    faint, less = difference(study, knobs=Difficulty(contrast=0.4))
    assert less[faint.masks[0]].mean() < 0.8 * change[full.masks[0]].mean()


@pytest.mark.parametrize("name", ["Mass", "Nodule", "Pneumonia", "Pleural Effusion", "Pneumothorax", "Hernia"])
def test_lesion_size_scales_the_mask(name):
    study = study_with(finding(name, 2))
    areas = [render_view(study, "PA", 128, Difficulty(lesion_size=size)).masks[0].sum() for size in (0.6, 1.0)]
    assert areas[0] < 0.8 * areas[1]


def test_noise_knob():
    study = study_with()
    images = [render_view(study, "PA", 128, Difficulty(noise=noise)).image.astype(float) for noise in (0, 1, 3)]
    rough = [np.abs(np.diff(image, axis=1)).mean() for image in images]
    assert rough[0] < rough[1] < rough[2]


def test_bright_is_dense():
    view = render_view(study_with(), "PA", 128, PLAIN)
    assert view.image[view.heart].mean() > view.image[view.lungs].mean() + 50
    assert 0.15 < view.lungs.mean() < 0.5
    assert not (view.lungs & view.heart).any()
    assert 40 < view.image.mean() < 200


@pytest.mark.parametrize("size", [32, 96, 200, 512])
@pytest.mark.parametrize("view", ["PA", "AP", "LATERAL"])
def test_shapes_and_types_at_every_size(size, view):
    study = study_with(*(finding(name) for name in FINDINGS), view=view)
    drawn = render_view(study, view, size, PLAIN)
    assert drawn.view == view
    for array, kind in ((drawn.image, np.uint8), (drawn.lungs, bool), (drawn.heart, bool)):
        assert array.shape == (size, size)
        assert array.dtype == kind
    assert len(drawn.masks) == len(FINDINGS)
    assert all(mask.shape == (size, size) and mask.dtype == bool for mask in drawn.masks)
    assert drawn.image.std() > 20


def test_lateral_view_shows_some_findings_and_not_others():
    shown = render_view(study_with(finding("Mass")), "LATERAL", 128, PLAIN)
    hidden = render_view(study_with(finding("Pneumothorax")), "LATERAL", 128, PLAIN)
    assert shown.masks[0].any()
    assert not hidden.masks[0].any()
    assert hidden.boxes == ((),)


def test_lesions_keep_their_height_in_the_lateral_view():
    study = study_with(finding("Mass", zone="upper"))
    rows = [np.flatnonzero(render_view(study, view, 128, PLAIN).masks[0].any(1)).mean() for view in ("PA", "LATERAL")]
    assert abs(rows[0] - rows[1]) < 10


def test_prevalences(studies):
    labels = np.array([study.labels for study in studies])
    share = dict(zip(FINDINGS, labels.mean(axis=0).tolist(), strict=True))
    assert all(0.06 <= value <= 0.16 for value in share.values()), share
    assert 0.24 < (labels.sum(axis=1) == 0).mean() < 0.31
    assert labels.sum(axis=1).max() <= MOST_FINDINGS
    devices, edema = FINDINGS.index("Support Devices"), FINDINGS.index("Edema")
    assert labels[labels[:, edema] == 1, devices].mean() > 1.5 * labels[:, devices].mean()
    more = np.array([s.labels for s in sample_studies(PhantomSpec(studies=1000, difficulty=Difficulty(prevalence=2)))])
    assert more.mean() > 1.25 * labels.mean()


def test_studies_are_well_formed(studies):
    counts = Counter(study.patient.index for study in studies)
    assert set(counts.values()) == {1, 2, 3}
    assert 1.2 < np.mean(list(counts.values())) < 1.45
    assert [study.index for study in studies] == list(range(len(studies)))
    assert 0.17 < np.mean([len(study.views) == 2 for study in studies]) < 0.23
    for study in studies:
        assert study.views[0] in {"PA", "AP"}
        assert 18 <= study.patient.age <= 95
        assert 0 <= study.patient.habitus <= 1
        assert 0 <= study.reader < READERS
        names = [f.name for f in study.findings]
        assert len(set(names)) == len(names)
        for f in study.findings:
            assert (8 <= f.size_mm <= 30) if f.name == "Nodule" else True
            assert (f.size_mm > 30) if f.name == "Mass" else True


def test_chronic_findings_return(studies):
    by_patient = defaultdict(list)
    for study in studies:
        by_patient[study.patient.index].append({f for f in study.findings if f.name == "Emphysema"})
    returned = [bool(visits[0] & visits[1]) for visits in by_patient.values() if len(visits) > 1 and visits[0]]
    assert len(returned) > 20
    assert np.mean(returned) > 0.6


def test_split_is_by_patient_and_has_its_shares(studies):
    spec = PhantomSpec(split=(0.7, 0.1, 0.2))
    shares = Counter(split_of(spec, index) for index in range(1000))
    assert abs(shares["train"] - 700) < 10
    assert abs(shares["validate"] - 100) < 10
    assert abs(shares["test"] - 200) < 10
    assert {split_of(PhantomSpec(), index) for index in range(30)} == {"train", "validate", "test"}
    assert {split_of(PhantomSpec(split=(0.5, 0.5, 0.0)), index) for index in range(200)} == {"train", "validate"}
    assert {split_of(PhantomSpec(split=(0.0, 0.0, 1.0)), index) for index in range(200)} == {"test"}


def test_patient_alone_equals_patient_in_study(studies):
    assert all(sample_patient(0, study.patient.index) == study.patient for study in studies[:50])


@pytest.mark.parametrize(
    "spec",
    [
        PhantomSpec(split=(0.5, 0.1, 0.1)),
        PhantomSpec(split=(1.2, -0.1, -0.1)),
        PhantomSpec(laterals=1.5),
        PhantomSpec(difficulty=Difficulty(contrast=0)),
        PhantomSpec(difficulty=Difficulty(prevalence=-1)),
        PhantomSpec(seed=-1),
    ],
)
def test_impossible_settings_are_refused(spec):
    with pytest.raises(ConfigError):
        next(iter(sample_studies(spec)))


def test_unknown_study_finding_and_size_are_refused():
    with pytest.raises(IndexError):
        sample_study(PhantomSpec(studies=3), 3)
    with pytest.raises(ConfigError, match="unknown phantom finding"):
        sample_finding("Cough", np.random.default_rng(0))
    with pytest.raises(ConfigError, match="too small"):
        render_view(study_with(), "PA", 16, PLAIN)


def test_texture_is_the_same_at_every_size():
    small, large = (texture(np.random.default_rng(0), size, 6) for size in (64, 128))
    np.testing.assert_allclose(large.reshape(64, 2, 64, 2).mean(axis=(1, 3)), small, atol=0.02)
    assert 0.7 < texture(np.random.default_rng(1), 128, 40).std() < 1.3
    assert axes(64)[0].shape == (1, 64)
