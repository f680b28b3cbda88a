"""MaCo as a method: training, chunks, checkpoints, bad input, figures."""

import dataclasses
import math

import numpy as np
import pytest
import timm
import torch
from helpers import batch, datamodule, text_config, tokenizer, trainer
from medvlp_baselines.maco.autoencoder import fixed_noise
from medvlp_baselines.maco.figures import MaCoFigures, reconstruction_figure, weight_figure
from medvlp_baselines.maco.losses import position_table
from medvlp_baselines.maco.module import MaCo

import medvlp
from medvlp.datasets.base import sample_text
from medvlp.encoders.image import ImageEncoderConfig
from medvlp.errors import ConfigError, MedVLPError, NotSupportedError

SIDE = 64
VIT = ImageEncoderConfig("vit_tiny_patch16_224", options={"embed_dim": 32, "depth": 3, "num_heads": 2})


def build(variant="paper", **changes) -> MaCo:
    torch.manual_seed(0)
    options = {"image": VIT, "text": text_config(pooling="pooler"), "image_size": SIDE, "prompts": None}
    decoder = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
    # patches of 16 px of an image at half its size would leave a grid of 2 × 2
    side = {"image_size": 2 * SIDE} if changes.get("super_resolution", variant == "official") else {}
    return MaCo(variant, **{**options, **decoder, **side, **changes})


def items(model: MaCo, count=6) -> dict:
    made = batch(count, model.image_size)
    g = torch.Generator().manual_seed(1)
    return {**made, "mask_noise": torch.rand(count, model.grid**2, generator=g)}


def gradients(model: MaCo, data: dict) -> tuple[float, dict]:
    model.zero_grad()
    loss = sum(model.losses(data, model.encode(data)).values())
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("contrast", ["weighted", "plain", "none"])
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_every_weight_is_trained(variant, contrast):
    model = build(variant, contrast=contrast).train()
    terms = model.losses(items(model))
    assert set(terms) == {"reconstruction"} | ({"contrast"} if contrast != "none" else set())
    assert all(torch.isfinite(term) for term in terms.values())
    _, found = gradients(model, items(model))
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found.keys() == wanted, "DistributedDataParallel waits for the others"
    assert not [name for name, g in found.items() if not g.abs().max() > 0]
    assert not model.vit.pos_embed.requires_grad


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_loss_falls_on_a_fixed_batch(variant):
    model = build(variant).train()
    data = items(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    seen = []
    for _ in range(25):
        optimizer.zero_grad()
        terms = model.losses(data)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        seen.append({key: float(value.detach()) for key, value in terms.items()})
    for term in ("reconstruction", "contrast"):
        assert seen[-1][term] < 0.8 * seen[0][term], term
    assert model.correlation_map().abs().max() > 0


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_fit_predict_and_load(variant, tmp_path):
    data = datamodule(tmp_path / "data", image_size=SIDE, batch_size=4)
    # No super-resolution, for speed; the official losses remain.
    model = build(variant, super_resolution=False)
    figures = MaCoFigures(studies=2)
    run = trainer(tmp_path / "run", max_steps=2, callbacks=[figures])
    run.fit(model, datamodule=data)
    assert {"train/reconstruction", "train/contrast", "train/temperature"} <= run.callback_metrics.keys()
    assert all(torch.isfinite(value) for value in run.callback_metrics.values())
    assert run.callback_metrics["val/reconstruction"] > 0
    run.save_checkpoint(tmp_path / "model.ckpt")

    loaded = medvlp.load(tmp_path / "model.ckpt")
    assert loaded.variant == variant
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    images = batch(3, SIDE)["image"]
    model.eval()
    with torch.no_grad():
        assert torch.equal(loaded.embed_image(images), model.embed_image(images))
        assert torch.equal(loaded.embed_text(["clear lungs"]), model.embed_text(["clear lungs"]))
        assert torch.equal(loaded.decoder.positions, model.decoder.positions)

    made = trainer(tmp_path / "predicted", callbacks=[figures]).predict(loaded, data.val_dataloader())
    assert made[0]["image"].shape == made[0]["text"].shape
    names = {path.name for path in (tmp_path / "predicted" / "figures").iterdir()}
    assert names == {"weights.png", "reconstructions.png"}
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == {"weights-epoch=000.png"}
    assert all(path.stat().st_size > 2000 for path in (tmp_path / "predicted" / "figures").iterdir())


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("chunks", [2, 4])
def test_chunks_equal_the_whole(variant, chunks):
    whole = build(variant).double().train()
    cut = build(variant, contrastive_chunks=chunks).double().train()
    data = items(whole)
    data["image"] = data["image"].double()
    loss, wanted = gradients(whole, data)
    cut_loss, found = gradients(cut, data)
    assert cut_loss == pytest.approx(loss, rel=1e-12)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10)


def test_chunks_draw_the_masks_of_the_whole():
    data = batch(4, SIDE)
    seen = []
    for chunks in (1, 2):
        model = build(contrastive_chunks=chunks).train()
        torch.manual_seed(3)
        seen.append(model.encode(data)["logit"] if model.correlation is None else model.encode(data)["reconstruction"])
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_half_precision(variant):
    model = build(variant).train()
    data = items(model)
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.losses(data)
    exact = model.losses(data)
    assert all(term.dtype == torch.float32 for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    for key, value in exact.items():
        torch.testing.assert_close(terms[key], value, rtol=0.1, atol=0.02)


def test_compiled(tmp_path):
    model = build(compile="eager")
    names = set(model.state_dict())
    run = trainer(tmp_path / "run", max_steps=1, limit_val_batches=0)
    run.fit(model, datamodule=datamodule(tmp_path / "data", image_size=SIDE))
    assert set(model.state_dict()) == names
    assert model.vit.blocks._compiled_call_impl is not None
    assert torch.isfinite(run.callback_metrics["train/loss"])


def test_starts_from_the_weights_of_a_masked_autoencoder(tmp_path):
    """A file of a plain timm transformer, as MAE checkpoints are: weights and position table are taken as they are."""
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=SIDE, **VIT.options)
    torch.nn.init.normal_(source.pos_embed)
    torch.save({"model": source.state_dict()}, tmp_path / "mae.pth")
    model = build(image=dataclasses.replace(VIT, weights=str(tmp_path / "mae.pth")))
    for name, value in source.state_dict().items():
        assert torch.equal(model.vit.state_dict()[name], value), name
    fresh = build()
    assert torch.equal(fresh.vit.pos_embed[0], position_table(32, 4))
    model.attach_tokenizer(tokenizer())
    model.save(tmp_path / "model.ckpt")
    assert torch.equal(medvlp.load(tmp_path / "model.ckpt").vit.pos_embed, source.pos_embed)


# ---------------------------------------------------------------- what it computes


def test_the_encoder_sees_visible_patches_alone():
    model = build().train()
    data = items(model, 2)
    hidden = model.reconstruct(data["image"], data["mask_noise"]).hidden
    other = {**data, "image": torch.where(hidden > 0, torch.rand_like(data["image"]), data["image"])}
    first, second = model(data), model(other)
    torch.testing.assert_close(first["image"], second["image"])
    assert not torch.allclose(first["reconstruction"], second["reconstruction"])
    assert float(hidden.mean()) == 0.5


def test_without_a_mask_training_and_evaluation_agree():
    model, data = build(mask_ratio=0.0), batch(3, SIDE)
    torch.testing.assert_close(model.train()(data)["image"], model.eval()(data)["image"])


def test_decoder_puts_patches_in_their_places():
    """Predictions are of patches in image order: hiding others does not move them."""
    model = build(normalise_target=True).eval()
    data = items(model, 1)
    with torch.no_grad():
        for parameter in model.decoder.blocks.parameters():
            parameter.zero_()
        model.decoder.head.weight.zero_()
        model.decoder.head.bias.fill_(0.5)
    made = model.reconstruct(data["image"], data["mask_noise"])
    visible = made.hidden == 0
    assert torch.equal(made.pasted[visible.expand_as(made.pasted)], data["image"][visible.expand_as(made.pasted)])
    # a constant in units of each patch's deviation, above each patch's mean
    cell = data["image"][0, :, :16, :16]
    wanted = cell.mean() + 0.5 * (cell.var() + 1e-6).sqrt()
    torch.testing.assert_close(made.predicted[0, :, :16, :16], wanted.expand(3, 16, 16))


def test_validation_masks_depend_on_the_study_alone():
    model = build().eval()
    data = batch(6, SIDE)
    data["index"] = torch.tensor([10, 4, 7, 1, 30, 2])
    assert torch.equal(fixed_noise(data["index"], 16)[2], fixed_noise(torch.tensor([7]), 16)[0])
    with torch.no_grad():
        whole = model._masked(data["image"], model._fixed(data))["reconstruction"]
        half = {key: data[key][3:] for key in ("image", "index")}
        torch.testing.assert_close(model._masked(half["image"], model._fixed(half))["reconstruction"], whole[3:])
        assert model.losses(data) == model.losses(data)


def test_fixed_noise_is_uniform():
    noise = fixed_noise(torch.arange(500), 196)
    assert noise.min() >= 0
    assert noise.max() < 1
    counts = torch.histc(noise.float(), 10, 0, 1) / noise.numel()
    assert (counts - 0.1).abs().max() < 0.005
    shown = (noise.argsort(1).argsort(1) < 98).double().mean(0)
    assert (shown - 0.5).abs().max() < 0.1, "each patch is visible as often as any other"
    assert len(torch.unique(noise)) == noise.numel()


def test_super_resolution_reconstructs_the_large_image():
    model = build("official")
    assert (model.image_size, model.grid, model.target_patch) == (128, 4, 32)
    data = items(model, 2)
    assert model.reconstruct(data["image"]).predicted.shape == (2, 3, 128, 128)
    assert (
        MaCo("official", image=VIT, text=text_config(), prompts=None, decoder_dim=32, decoder_heads=2).image_size == 448
    )


def test_mask_ratio_zero_reconstructs_nothing():
    terms = build(mask_ratio=0.0).train().losses(batch(3, SIDE))
    assert terms["reconstruction"].item() == 0
    assert torch.isfinite(terms["contrast"])


def test_temperature_has_a_floor_in_the_paper_variant():
    model = build()
    assert float(model.temperature) == pytest.approx(0.03)
    assert float(build("official").temperature) == pytest.approx(0.03)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    model.log = lambda *_, **__: None
    model.on_train_batch_end(None, None, 0)
    assert float(model.temperature) == pytest.approx(0.01)


def test_all_equal_embeddings():
    for variant, share in (("paper", 0.1), ("official", 1.0)):
        model = build(variant).train()
        same = {"image": torch.ones(5, 8), "text": torch.ones(5, 8), "logit": torch.randn(5)}
        terms = model.losses(batch(5, SIDE), {**same, "reconstruction": torch.zeros(5)})
        assert float(terms["contrast"]) == pytest.approx(share * math.log(5), rel=1e-5)
    plain = build(contrast="plain").train()
    terms = plain.losses(batch(5, SIDE), {**same, "reconstruction": torch.zeros(5)})
    assert float(terms["contrast"]) == pytest.approx(0.1 * math.log(5), rel=1e-5)


# ---------------------------------------------------------------- embeddings and maps


def test_patches_and_maps():
    model, data = build().eval(), batch(3, SIDE)
    with torch.no_grad():
        model.correlation.weight.copy_(torch.arange(16.0))
        patches = model.embed_patches(data["image"])
    assert patches.shape == (3, 32, 4, 4)
    torch.testing.assert_close(patches.norm(dim=1), torch.ones(3, 4, 4))
    assert float(model.patch_weights().sum()) == pytest.approx(1)
    assert model.patch_weights(100.0)[3, 3] < 0.1 < model.patch_weights(1.0)[3, 3]
    maps = model.explain(data)
    assert set(maps) == {"similarity to the report", "correlation weight", "reconstruction"}
    for value in maps.values():
        assert value.shape == (3, 1, SIDE, SIDE)
        assert value.min() >= 0
        assert value.max() <= 1
    assert float(maps["correlation weight"][0, 0, -1, -1]) == 1


def test_a_masked_autoencoder_has_no_text_side(tmp_path):
    model = build(contrast="none")
    assert not any(name.startswith("text_encoder") for name, _ in model.named_parameters())
    for call in (
        lambda: model.embed_text(["x"]),
        model.correlation_map,
        lambda: model.embed_patches(torch.ones(1, 3, 64, 64)),
    ):
        with pytest.raises(NotSupportedError):
            call()
    assert set(model.explain(batch(2, SIDE))) == {"reconstruction"}
    run = trainer(tmp_path / "run", max_steps=1, callbacks=[MaCoFigures(2)])
    run.fit(model, datamodule=datamodule(tmp_path / "data", image_size=SIDE))
    run.save_checkpoint(tmp_path / "mae.ckpt")
    loaded = medvlp.load(tmp_path / "mae.ckpt")
    assert loaded.has_text is False
    assert loaded.embed_image(torch.rand(2, 3, SIDE, SIDE)).shape == (2, 32)


def test_figures_from_arrays():
    model, data = build(), batch(2, SIDE)
    assert len(weight_figure(model).axes) == 4
    figure = reconstruction_figure(model, data["image"], ["one", "two"])
    assert len(figure.axes) == 6
    with pytest.raises(ConfigError, match="at least one image"):
        reconstruction_figure(model, data["image"][:0], [])
    with pytest.raises(NotSupportedError):
        weight_figure(build(contrast="plain"))
    with pytest.raises(ConfigError, match="at least 1"):
        MaCoFigures(studies=0)


# ---------------------------------------------------------------- bad input


def test_batch_of_one():
    for contrast in ("weighted", "plain"):
        model = build(contrast=contrast).train()
        with pytest.raises(ConfigError, match="at least two pairs"):
            model.training_step(batch(1, SIDE), 0)
    assert set(build().eval()(batch(1, SIDE))) == {"image", "text"}


def test_more_chunks_than_samples():
    model = build(contrastive_chunks=5).train()
    with pytest.raises(ConfigError, match="contrastive_chunks is 5"):
        model.encode(batch(3, SIDE))


def test_report_without_a_word():
    """Nothing but special tokens: [CLS] and [SEP] alone, for one study and for all of them."""
    model = build().train()
    data = items(model, 3)
    data["input_ids"] = torch.tensor([[2, 3, 0]] * 3)
    data["attention_mask"] = torch.tensor([[1, 1, 0]] * 3)
    loss, found = gradients(model, data)
    assert math.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in found.values())


def test_text_longer_than_the_position_table():
    model = build()
    ids = torch.full((1, 600), 7)
    with pytest.raises(ConfigError, match="600 tokens exceed the text encoder's position table of 512"):
        model.encode_tokens(ids, torch.ones_like(ids))
    model.attach_tokenizer(tokenizer())
    assert model.embed_text(["clear lungs " * 400]).isfinite().all()


def test_images_of_another_size():
    model = build()
    data = batch(3, 96)
    with pytest.raises(ConfigError, match="images of 96 × 96 px"):
        model.train()(data)
    with torch.no_grad():  # evaluation interpolates the position table
        assert model.eval().embed_image(data["image"]).shape == (3, 32)
        assert model.embed_patches(data["image"]).shape == (3, 32, 6, 6)
        assert set(model.explain(data)) == {"similarity to the report", "correlation weight"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": ImageEncoderConfig("resnet18")}, "set image.name: vit_base_patch16_224"),
        ({"image_size": 70}, "multiple of 16 px"),
        ({"image_size": 80, "super_resolution": True}, "multiple of 32 px"),
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"mask_ratio": 0.99}, "mask_ratio"),
        ({"balance": 1.5}, "balance"),
        ({"temperature": 0.0}, r"temperature must lie in \(0, inf\)"),
        ({"group": 0}, "group must be at least 1"),
        ({"contrast": "clip"}, "unknown contrast 'clip'; expected one of: weighted"),
        ({"variant": "code"}, "unknown variant 'code'"),
        ({"decoder_heads": 5}, "heads must divide"),
        ({"image": ImageEncoderConfig("vit_tiny_patch16_224", upsample_to=128)}, "upsample_to"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(MedVLPError, match=message):
        build(**changes)


# ---------------------------------------------------------------- sampling of sentences

REPORT = "Heart of 2.5 cm. Lungs are clear. No pleural effusion."


def test_sentences_are_shuffled_and_dropped():
    seen = [sample_text(REPORT, "sentences", seed) for seed in range(400)]
    assert seen == [sample_text(REPORT, "sentences", seed) for seed in range(400)]
    whole = {"Heart of 2.5 cm.", "Lungs are clear.", "No pleural effusion."}
    counts = [sum(text.count(sentence) for sentence in whole) for text in seen]
    assert np.bincount(counts)[1:] == pytest.approx([133, 133, 133], abs=35)
    assert len({text for text, n in zip(seen, counts, strict=True) if n == 3}) == 6, "all orders"


def test_pieces_are_cut_at_full_stops():
    text = "heart of 2. 5 cm. lungs are clear."  # as cleaning: maco leaves it
    made = {sample_text(text, "pieces", seed) for seed in range(200)}
    assert {"heart of 2.", "5 cm.", "lungs are clear."} <= made
    assert any(len(t) == len(text) for t in made)
    assert "" not in made
    assert sample_text("", "pieces", 0) == sample_text("", "sentences", 0) == ""
    assert sample_text(". .", "pieces", 1) == ". ."
    assert sample_text("no stop", "pieces", 5) == "no stop."
