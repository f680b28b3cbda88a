"""ConVIRT as a whole, in both variants; the loss itself is in tests/methods and tests/conformance."""

import dataclasses
import math

import pytest
import torch
from helpers import batch, datamodule, image_config, sizes, text_config, tokenizer, trainer
from medvlp_baselines.convirt.module import ConVIRT

import medvlp
from medvlp.errors import ConfigError
from medvlp.text import Collate

TEXTS = ["small left effusion", "normal heart size", "edema is seen", "no pneumothorax", "clear lungs", "rib fracture"]
VARIANTS = ["paper", "mgca"]


def text_side(variant):
    """The variant's own text encoder, tiny."""
    if variant == "paper":
        return text_config(num_layers=2, pooling="max", freeze_layers=1, freeze_embeddings=True)
    return text_config(num_layers=2, keep_layers=1, positions="zero", token_types=False, dropout=True)


def build(variant, **changes):
    torch.manual_seed(0)
    model = ConVIRT(variant=variant, prompts=None, **sizes(**{"text": text_side(variant), **changes}))
    model.attach_tokenizer(tokenizer())
    return model


def pairs(texts=TEXTS, size=32):
    return {**batch(len(texts), size), **Collate(tokenizer(), 24).tokenize(texts), "text": texts}


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_falls_on_a_fixed_batch(variant):
    # Dropout in an untrained BERT, after which six reports are batch-normed, is noise beyond any signal.
    model, data = build(variant, text=dataclasses.replace(text_side(variant), dropout=False)).train(), pairs()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    seen = []
    for _ in range(20):
        loss = model.losses(data)["contrast"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert all(math.isfinite(value) for value in seen)
    assert seen[-1] < 0.6 * seen[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_steps_on_random_sentences_and_a_checkpoint(variant, tmp_path):
    sampling = "sentence" if variant == "paper" else "whole"
    data = datamodule(tmp_path / "data", batch_size=4, transform="convirt", text_sampling=sampling)
    torch.manual_seed(0)
    model = ConVIRT(variant=variant, prompts=None, **sizes(text=text_side(variant)))
    fit = trainer(tmp_path / "run", max_steps=2)
    fit.fit(model, datamodule=data)
    assert fit.global_step == 2
    assert math.isfinite(float(fit.callback_metrics["train/contrast"]))
    model.save(tmp_path / "model.ckpt")
    loaded, images = medvlp.load(tmp_path / "model.ckpt"), batch()["image"]
    model.eval()
    torch.testing.assert_close(loaded.embed_image(images), model.embed_image(images))
    torch.testing.assert_close(loaded.embed_text(TEXTS), model.embed_text(TEXTS))


@pytest.mark.parametrize("variant", VARIANTS)
def test_bad_input(variant):
    model = build(variant).train()
    with pytest.raises(ConfigError, match="at least two pairs"):
        model.training_step(pairs(TEXTS[:1]), 0)
    with pytest.raises(ConfigError, match="batch holds 6 samples"):
        build(variant, contrastive_chunks=7).encode(pairs())
    # Reports without a word: [CLS] and [SEP] are what is left.
    loss = model.losses(pairs(["", "", "clear lungs", "edema"]))["contrast"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.eval().embed_text([" ".join(TEXTS * 30)]).isfinite().all()  # cut


def test_mgca_knows_no_word_order():
    model = build("mgca").eval()
    there, back = model.embed_text(["small left effusion", "effusion left small"])
    torch.testing.assert_close(there, back)
    there, back = build("paper").eval().embed_text(["small left effusion", "effusion left small"])
    assert not torch.allclose(there, back, atol=1e-3)


def test_a_vision_transformer_takes_other_sizes():
    model = build("paper", image=image_config(name="test_vit", depth=None)).eval()
    for size in (32, 48):
        assert model.embed_patches(pairs(size=size)["image"]).shape == (6, 16, size // 16, size // 16)
