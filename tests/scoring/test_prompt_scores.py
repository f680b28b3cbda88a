"""Scoring rules against plain loops over images, classes and prompts."""

import math

import pytest
import torch
import torch.nn.functional as F

from medvlp.errors import ConfigError
from medvlp.metrics.samples import Samples
from medvlp.prompts import load_prompts
from medvlp.scoring.prompts import (
    RULES,
    PromptTable,
    class_scores,
    prompt_scores,
    standardised_over_classes,
    zero_shot_auroc,
)
from medvlp.tasks.zero_shot import zero_shot_measures

PROMPTS = {
    "Edema": (("edema", "wet lungs", "edema"), ("no edema", "clear")),
    "Mass": (("a mass",), ("clear", "no mass")),
    "Hernia": (("hernia", "hiatal hernia"), ("no hernia",)),
}


@pytest.fixture
def data():
    torch.manual_seed(0)
    table = PromptTable.of(PROMPTS)
    return torch.randn(7, 16), torch.randn(len(table.texts), 16), table


def embedding(texts, table):
    return dict(zip(table.texts, texts, strict=True))


def unit(x):
    return x / x.norm()


def slow(images, texts, table, rule, temperature):
    """The definition, one image and class at a time."""
    of = embedding(texts, table)
    rows = []
    for image in images:
        row = []
        for positive, negative in PROMPTS.values():
            p, n = [of[t] for t in positive], [of[t] for t in negative]
            mean_unit = [unit(torch.stack([unit(v) for v in side]).mean(0)) for side in (p, n)]
            cos = [float(unit(image) @ v) for v in mean_unit]
            if rule == "softmax":
                row.append(math.exp(cos[0] / temperature) / sum(math.exp(c / temperature) for c in cos))
            elif rule == "difference":
                row.append(cos[0] - cos[1])
            elif rule == "cosine":
                row.append(cos[0])
            elif rule == "dot":
                s = [float(image @ torch.stack(side).mean(0)) for side in (p, n)]
                row.append(1 / (1 + math.exp(s[1] - s[0])))
            elif rule == "biovil":
                s = [float(unit(image) @ unit(torch.stack(side).mean(0))) for side in (p, n)]
                row.append(s[0] - s[1])
            else:
                c = [[float(unit(image) @ unit(v)) for v in side] for side in (p, n)]
                if rule == "best":
                    row.append(max(c[0]))
                elif rule == "mean":
                    row.append(sum(c[0]) / len(c[0]) - sum(c[1]) / len(c[1]))
                else:
                    pairs = [1 / (1 + math.exp((b - a) / temperature)) for a in c[0] for b in c[1]]
                    row.append(sum(pairs) / len(pairs))
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"class_sigmoid"}))
@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_rules_do_what_they_say(data, rule, temperature):
    images, texts, table = data
    found = class_scores(images, texts, table, rule, temperature)
    torch.testing.assert_close(found, slow(images, texts, table, rule, temperature), rtol=1e-4, atol=1e-5)


def test_class_sigmoid_standardises_over_the_classes(data):
    images, texts, table = data
    found = class_scores(images, texts, table, "class_sigmoid")
    cosine = class_scores(images, texts, table, "cosine")
    z = (cosine - cosine.mean(1, keepdim=True)) / cosine.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(found, z.sigmoid())
    assert standardised_over_classes(torch.ones(2, 3)).eq(0.5).all()


def test_each_text_is_embedded_once(data):
    _, _, table = data
    assert len(set(table.texts)) == len(table.texts) == 9
    assert table.positive[0] == (0, 1, 0)  # a prompt that a set lists twice weighs twice
    everything = PromptTable.of(load_prompts("gloria_5x200_all").prompts)
    assert len(everything.texts) == 210 + 15 + 192 + 18 + 36


@pytest.mark.parametrize("rule", ["softmax", "difference", "probabilities"])
def test_lengths_of_embeddings_do_not_matter(data, rule):
    images, texts, table = data
    scaled = class_scores(images * 7, F.normalize(texts, dim=-1) * 3, table, rule)
    torch.testing.assert_close(scaled, class_scores(images, texts, table, rule))


def test_a_mean_of_probabilities_is_not_one_of_embeddings(data):
    images, texts, table = data
    embeddings, probabilities = (class_scores(images, texts, table, r, 0.05) for r in ("softmax", "probabilities"))
    assert not torch.allclose(embeddings[:, 0], probabilities[:, 0], atol=0.01)
    pair = PromptTable.of({"Mass": (("a",), ("b",))})
    one, other = (class_scores(images, texts[:2], pair, r, 0.05) for r in ("softmax", "probabilities"))
    torch.testing.assert_close(one, other)


def test_own_scores_of_a_method_go_through_per_prompt_rules(data):
    images, texts, table = data
    similarity = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    for rule in ("best", "mean", "probabilities"):
        torch.testing.assert_close(prompt_scores(similarity, table, rule), class_scores(images, texts, table, rule))
    with pytest.raises(ConfigError, match="needs embeddings"):
        prompt_scores(similarity, table, "softmax")


def test_sets_without_negation():
    table = PromptTable.of({"Edema": (("edema",), ()), "Mass": (("mass",), ())})
    texts = torch.eye(2)
    for rule in ("cosine", "best", "mean"):
        torch.testing.assert_close(class_scores(torch.eye(2), texts, table, rule), torch.eye(2))
    for rule in ("softmax", "difference", "dot", "biovil", "probabilities"):
        with pytest.raises(ConfigError, match="Edema has none"):
            class_scores(torch.eye(2), texts, table, rule)


def test_validation_of_methods_scores_sets_without_negation():
    images = F.normalize(torch.tensor([[1.0, 0.1], [0.9, 0.2], [0.1, 1.0], [0.0, 1.0]]), dim=-1)
    vectors = {"edema": [1.0, 0.0], "mass": [0.0, 1.0]}
    labels = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    found = zero_shot_auroc(
        images,
        labels,
        ["Edema", "Mass"],
        {"Edema": (("edema",), ()), "Mass": (("mass",), ())},
        lambda texts: torch.tensor([vectors[t] for t in texts]),
    )
    assert found == {"Edema": 1.0, "Mass": 1.0, "mean": 1.0}


@pytest.mark.parametrize("names", [list(PROMPTS), ["Mass"]])
def test_validation_of_methods_gives_the_number_of_the_task(data, names):
    """Bit for bit, with ties, unknown labels and a class without a positive."""
    images, texts, table = data
    images = torch.cat([images, images[:2]])
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(-1, 2, (len(images), 3), generator=generator).float()
    labels[:, 2] = labels[:, 2].clamp_max(0)
    embeddings = dict(zip(table.texts, texts, strict=True))
    found = zero_shot_auroc(
        images,
        labels,
        list(PROMPTS),
        {name: PROMPTS[name] for name in names},
        lambda given: torch.stack([embeddings[text] for text in given]),
    )
    chosen = PromptTable.of({name: PROMPTS[name] for name in names})
    scores = class_scores(images, torch.stack([embeddings[text] for text in chosen.texts]), chosen)
    columns = [list(PROMPTS).index(name) for name in names]
    samples = Samples(torch.arange(len(images)), {"score": scores, "label": labels[:, columns]})
    expected = zero_shot_measures(samples, names=names)
    assert found["mean"] == float(expected["auroc"])
    for name in names:
        key = f"auroc/{name}" if len(names) > 1 else "auroc"
        assert found.get(name, math.nan) == pytest.approx(float(expected[key]), abs=0, nan_ok=True)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "at least one class"),
        ({"Edema": ((), ("no",))}, "no positive prompt"),
        ({"Edema": (("edema", " "), ("no",))}, "empty prompt"),
        ({"Edema": (("edema",), ("",))}, "empty prompt"),
    ],
)
def test_bad_prompts(prompts, message):
    with pytest.raises(ConfigError, match=message):
        PromptTable.of(prompts)


def test_bad_rules(data):
    images, texts, table = data
    with pytest.raises(ConfigError, match="unknown scoring rule 'softmix'"):
        class_scores(images, texts, table, "softmix")
    one = PromptTable.of({"Edema": (("edema",), ("no",))})
    with pytest.raises(ConfigError, match="at least two"):
        one.check("class_sigmoid")
