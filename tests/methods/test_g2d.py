import dataclasses

import pytest
import torch
import torch.nn.functional as F
from helpers import SIZE, batch, image_config, sizes, text_config

from medvlp.encoders.pooling import AttentionPool
from medvlp.errors import ConfigError
from medvlp.losses.contrastive import image_text_contrast
from medvlp.losses.segmentation import dice_bce_official, dice_bce_paper
from medvlp.methods.g2d.module import _VARIANTS, G2D
from medvlp.methods.g2d.pseudo_mask import OFFICIAL, PseudoMaskSettings


def g2d(seed=0, **changes):
    torch.manual_seed(seed)
    return G2D(**sizes(**changes))


def at_step(monkeypatch, step):
    monkeypatch.setattr(G2D, "global_step", property(lambda self: step))


def step(model, count=4):
    """One optimiser step in training mode; the terms."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    terms = model.losses(batch(count))
    sum(terms.values()).backward()
    optimizer.step()
    assert all(torch.isfinite(value) for value in terms.values())
    assert all(torch.isfinite(p).all() for p in model.parameters())
    return terms


def test_paper_variant():
    model = g2d()
    assert (model.pool.heads, model.pool.head_dim) == (3, 6)
    assert model.pool.cls_token is not None
    assert model.mask_settings == PseudoMaskSettings()
    assert (model.text_to_image, model.pixel_loss_start, model.text_projector.scope) == (0.0, 0, "report")
    assert model.global_contrast
    out = model(batch())
    assert out["image"].shape == out["text"].shape == (4, 16)
    assert out["attention"].shape == (4, 3, 8, 8)
    assert out["decoded"].shape == (4, 1, SIZE, SIZE)


def test_official_variant():
    deep = text_config(num_layers=12, freeze_layers=_VARIANTS["official"].text.freeze_layers)
    model = g2d(variant="official", text=deep)
    assert (model.pool.heads, model.pool.head_dim) == (4, 4)
    assert model.pool.cls_token is None
    assert model.mask_settings == OFFICIAL
    assert (model.text_to_image, model.pixel_loss_start, model.text_projector.scope) == (1.0, 200, "tokens")
    assert not model.global_contrast
    layers = model.text_encoder.model.encoder.layer
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    assert trained == [False] * 9 + [True] * 3
    assert all(p.requires_grad for p in model.text_encoder.model.embeddings.parameters())
    optim = _VARIANTS["official"].optim
    assert (optim.lr, optim.weight_decay, optim.schedule, optim.restart_period) == (2e-5, 1e-8, "warm_restarts", 200)
    assert _VARIANTS["official"].text.padding == "max_length"
    step(model)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_losses_are_the_variants(variant, monkeypatch):
    at_step(monkeypatch, 200)
    model, data = g2d(variant=variant).train(), batch()
    out = model(data)
    terms = model.losses(data, out)
    assert set(terms) == {"contrast", "pixel"}
    both = float(variant == "official")
    contrast = image_text_contrast(out["image"], out["text"], temperature=0.07, text_to_image=both)
    torch.testing.assert_close(terms["contrast"], contrast)
    target = model.pseudo_masks(data["image"], out["attention"]).mask
    loss = dice_bce_paper if variant == "paper" else dice_bce_official
    torch.testing.assert_close(terms["pixel"], loss(out["decoded"], target))


def test_the_pixel_loss_starts_when_it_should(monkeypatch):
    model, data = g2d(variant="official").train(), batch()
    immediate = g2d(variant="official", pixel_loss_start=0).train()
    for now, counts in ((0, False), (199, False), (200, True), (500, True)):
        at_step(monkeypatch, now)
        model.zero_grad()
        pixel = model.losses(data)["pixel"]
        assert (float(pixel.detach()) != 0) == counts
        pixel.backward()
        # In the graph from the first step, so that DistributedDataParallel finds every parameter used.
        grads = [p.grad for p in model.decoder.parameters()]
        assert all(grad is not None for grad in grads)
        assert any(float(grad.abs().max()) > 0 for grad in grads) == counts
    at_step(monkeypatch, 0)
    with torch.no_grad():
        assert float(immediate.losses(data)["pixel"]) != 0
        assert float(model.eval().losses(data)["pixel"]) != 0


def test_the_mask_sends_no_gradient_to_the_attention():
    model, data = g2d(), batch()
    model.losses(data)["pixel"].backward()
    assert all(p.grad is None or not p.grad.any() for p in model.pool.parameters())
    assert all(p.grad is None for p in model.text_encoder.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.image_encoder.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder_loss": "none"},
        {"decoder_loss": "reconstruction"},
        *({"threshold": t} for t in (0.75, 0.5, "mean", "median", "gmm")),
        {"embed_dim": 32},
        *({"heads": h} for h in (1, 2, 3, 4)),
        {"heads": 3, "head_dim": 5},
        {"aggregate_heads": False},
        {"body_mask": False},
        {"smooth_mask": False},
        {"body_mask": False, "smooth_mask": False},
        {"shuffle_masks": True},
        {"text_to_image": 1.0},
        {"decoder_widths": [12, 8]},
        {"image": image_config(name="test_convnext")},
        {"image": image_config(name="test_vit", depth=1), "decoder_loss": "none"},
    ],
    ids=str,
)
def test_every_ablation_runs_a_step(changes):
    model = g2d(**changes)
    terms = step(model)
    kind = changes.get("decoder_loss", "pseudo_segmentation")
    extra = {"none": set(), "reconstruction": {"reconstruction"}, "pseudo_segmentation": {"pixel"}}[kind]
    assert set(terms) == {"contrast", *extra}
    out = model.eval()(batch())
    channels = 3 if kind == "reconstruction" else 1 if model.mask_settings.aggregate else model.pool.heads
    assert ("decoded" in out) == (kind != "none")
    if "decoded" in out:
        assert out["decoded"].shape == (4, channels, SIZE, SIZE)
    for title, maps in model.explain(batch()).items():
        assert maps.shape == (4, 1, SIZE, SIZE), title
        assert maps.min() >= 0, title
        assert maps.max() <= 1, title


def test_ablations_change_what_they_name():
    base = PseudoMaskSettings()
    for changes, expected in (
        ({"threshold": 0.75}, {"threshold": 0.75}),
        ({"threshold": 0.0}, {"threshold": 0.0}),
        ({"body_mask": False}, {"body_mask": False}),
        ({"smooth_mask": False}, {"smooth": False}),
        ({"aggregate_heads": False}, {"aggregate": False}),
    ):
        assert g2d(**changes).mask_settings == dataclasses.replace(base, **expected)
    assert g2d(variant="official", body_mask=True).mask_settings == dataclasses.replace(OFFICIAL, body_mask=True)
    with pytest.raises(ConfigError, match="quantile"):
        g2d(threshold=85)


def test_shuffled_masks_are_other_images_masks():
    own, shuffled = g2d(), g2d(shuffle_masks=True)
    shuffled.load_state_dict(own.state_dict())
    data = batch(5)
    with torch.no_grad():
        out = own.eval()(data)
        out["attention"] = torch.rand(5, 3, 8, 8)  # drawn chests are alike, and so are their masks
        masks = own.pseudo_masks(data["image"], out["attention"]).mask
        assert len({mask.numpy().tobytes() for mask in masks}) == 5
        for seed in range(6):
            torch.manual_seed(seed)
            value = shuffled.eval().losses(data, out)["pixel"]
            candidates = [float(dice_bce_paper(out["decoded"], masks.roll(shift, 0))) for shift in range(1, 5)]
            assert min(abs(float(value) - c) for c in candidates) < 1e-6
        assert abs(float(own.losses(data, out)["pixel"]) - float(value)) > 1e-6


def test_embed_patches():
    model, data = g2d().eval(), batch()
    with torch.no_grad():
        patches = model.embed_patches(data["image"])
        assert patches.shape == (4, 16, 8, 8)
        torch.testing.assert_close(patches.norm(dim=1), torch.ones(4, 8, 8))
        dense = model.projector(model.image_encoder(data["image"])[-1])
        torch.testing.assert_close(patches, F.normalize(model.pool.project_cells(dense), dim=1))


def test_paper_defaults_are_3_heads_of_43_channels():
    """At the paper's width, without building a ResNet-50."""
    rows = _VARIANTS["paper"]
    assert (rows.heads, AttentionPool(128, 7, rows.heads).head_dim) == (3, 43)
    assert (rows.optim.lr, rows.optim.weight_decay, rows.optim.schedule) == (2e-4, 1e-8, "warmup_cosine")


def test_a_transformer_without_pyramid_needs_the_decoder_off():
    with pytest.raises(ConfigError, match="strides"):
        g2d(image=image_config(name="test_vit", depth=1))


def test_embeddings_do_not_depend_on_the_batch_in_evaluation():
    model, data = g2d().eval(), batch()
    with torch.no_grad():
        together = model.embed_image(data["image"])
        alone = torch.cat([model.embed_image(image[None]) for image in data["image"]])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
