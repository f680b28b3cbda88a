"""What a notebook asks of a method: scores and heatmaps of images in any form."""

import numpy as np
import pytest
import torch
from helpers import SIZE, chest, sizes, text_config, tokenizer

import medvlp
from medvlp.datasets.inputs import prepare_images
from medvlp.errors import CheckpointError, ConfigError, DataError, NotSupportedError
from medvlp.registry import get_method
from medvlp.scoring.prompts import prompt_embeddings, zero_shot_probability

RULE = {"transform": "mgca", "size": SIZE, "intensity": "standard"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = medvlp.G2D(**sizes(prompts="phantom"))
    made.attach_tokenizer(tokenizer())
    made.preprocess = RULE
    return made.eval()


IMAGES = [chest(60, seed) for seed in range(3)]


def test_zero_shot_is_the_softmax_of_the_prompts(model):
    prompts = {"Edema": (["edema is seen"], ["no edema", "clear lungs"]), "Fracture": (["rib fracture"], ["normal"])}
    scores = model.zero_shot(IMAGES, prompts)
    assert list(scores.columns) == ["Edema", "Fracture"]
    with torch.no_grad():
        image = model.embed_image(prepare_images(IMAGES, RULE).batch)
        sides = [
            torch.stack([prompt_embeddings(model.embed_text(sides[i])) for sides in prompts.values()]) for i in (0, 1)
        ]
        expected = zero_shot_probability(image, *sides)
    np.testing.assert_allclose(scores.to_numpy(), expected.numpy(), rtol=1e-5)
    one = model.zero_shot(IMAGES[1], prompts, batch_size=1)
    np.testing.assert_allclose(one.to_numpy()[0], scores.to_numpy()[1], rtol=1e-5)


def test_ways_to_name_classes(model):
    own = model.zero_shot(IMAGES)
    assert len(own.columns) == 18, "the set that the model was validated with"
    assert list(model.zero_shot(IMAGES[0], ["Edema", "Mass"]).columns) == ["Edema", "Mass"]
    np.testing.assert_array_equal(own, model.zero_shot(IMAGES, "phantom"))
    assert model.zero_shot(IMAGES, "kad").to_numpy().min() < 0.5, "cosines: a set without negation"


def test_the_mode_of_the_model_is_left_as_it_was(model):
    model.train()
    model.zero_shot(IMAGES[0], ["Edema"])
    model.ground(IMAGES[0], "edema")
    assert model.training
    model.eval()


def test_heatmaps_lie_over_the_image(model):
    tall = np.pad(IMAGES[0], ((0, 40), (0, 0)))
    maps = model.ground([IMAGES[0], tall], ["small left effusion", "edema"])
    assert [m.shape for m in maps] == [(2, 60, 60), (2, 100, 60)]
    seen = maps[0][np.isfinite(maps[0])]
    assert np.isnan(maps[0]).any(), "what the centre crop cuts off is not known"
    assert seen.min() >= -1.0001
    assert seen.max() <= 1.0001
    with torch.no_grad():
        patches = model.embed_patches(prepare_images(IMAGES[0], RULE).batch)
        cosines = torch.einsum("bdhw,pd->bphw", patches, model.embed_text(["small left effusion", "edema"]))
    assert seen.max() <= float(cosines.max()) + 1e-5
    smooth = model.ground(IMAGES[0], "edema", sigma=1.5)[0]
    assert np.nanstd(smooth) < np.nanstd(maps[0][1])


def test_bad_questions(model):
    with pytest.raises(DataError, match="non-empty text"):
        model.ground(IMAGES[0], ["edema", " "])
    with pytest.raises(ConfigError, match="class names must be non-empty"):
        model.zero_shot(IMAGES[0], ["Edema", ""])
    with pytest.raises(ConfigError, match="scoring rule"):
        model.zero_shot(IMAGES[0], ["Edema"], rule="magic")
    convirt = get_method("convirt")(**sizes(text=text_config(pooling="max")))
    convirt.attach_tokenizer(tokenizer())
    convirt.preprocess = RULE
    assert convirt.zero_shot(IMAGES[0], ["Edema"]).shape == (1, 1)
    nothing = get_method("random")(image=sizes()["image"], image_size=SIZE)
    nothing.preprocess = RULE
    with pytest.raises(NotSupportedError, match="no text encoder"):
        nothing.zero_shot(IMAGES[0], ["Edema"])


@pytest.mark.parametrize("factor", [1e30, float("nan")])
def test_weights_that_are_no_use_give_no_answer(factor):
    spoilt = medvlp.G2D(**sizes(prompts="phantom"))
    spoilt.attach_tokenizer(tokenizer())
    spoilt.preprocess = RULE
    spoilt.eval()
    with torch.no_grad():
        for name, weight in spoilt.named_parameters():
            if name.startswith(("projector", "pool")):
                weight.mul_(factor)
    for ask in (lambda: spoilt.zero_shot(IMAGES[0], ["Edema"]), lambda: spoilt.ground(IMAGES[0], "edema")):
        with pytest.raises(CheckpointError, match="g2d: embeddings are NaN or infinite"):
            ask()
