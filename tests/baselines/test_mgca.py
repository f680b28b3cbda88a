"""MGCA as a method: both variants and both kinds of backbone train; chunks, checkpoints, bad input, figures."""

import math

import numpy as np
import pytest
import torch
from helpers import batch, datamodule, image_config, sizes, text_config, tokenizer, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from medvlp_baselines.mgca.figures import MGCAFigures, embedding_figure, prototype_figure, study_words, words_figure
from medvlp_baselines.mgca.heads import repeat_words
from medvlp_baselines.mgca.module import MGCA
from torch import nn

import medvlp
from medvlp.datamodules.mimic_cxr import MIMICCXRDataModule
from medvlp.errors import ConfigError, MedVLPError
from medvlp.losses.contrastive import info_nce

SIZE = 64
VIT = image_config(name="test_vit", depth=None, final_norm=True)
RESNET = image_config(depth=3)
BACKBONES = pytest.mark.parametrize("image", [RESNET, VIT], ids=["resnet", "vit"])
VARIANTS = pytest.mark.parametrize("variant", ["paper", "official"])


def build(variant="paper", text=None, **changes):
    torch.manual_seed(0)
    text = {"padding": "max_length" if variant == "official" else "longest", **(text or {})}
    options = {"image": RESNET, "image_size": SIZE, "prompts": None, "num_prototypes": 20, "head_dim": 64, **changes}
    return MGCA(variant=variant, **sizes(text=text_config(**text), **options))


def pairs(count=6):
    return batch(count, SIZE)


def total(terms):
    return torch.stack([term.float() for term in terms.values()]).sum()


# ---------------------------------------------------------------- training


@BACKBONES
@VARIANTS
def test_the_loss_falls_and_everything_is_trained(variant, image):
    model, data = build(variant, image=image).train(), pairs()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    made = []
    for _ in range(20):
        terms = model.losses(data, model.encode(data))
        assert set(terms) == {"instance", "token", "prototype"}
        assert all(torch.isfinite(term) and term.dtype == torch.float32 for term in terms.values())
        optimizer.zero_grad()
        total(terms).backward()
        optimizer.step()
        made.append({name: float(term.detach()) for name, term in terms.items()})
    assert all(made[-1][name] < made[0][name] for name in ("instance", "prototype"))
    assert sum(made[-1].values()) < sum(made[0].values())
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    # of the encoders, tables that this batch's ids and texts do not reach
    assert all(name.startswith("text_encoder") and "embeddings" in name for name in still), still


@pytest.fixture(scope="module")
def data_of(tiny_phantom):
    def make(**changes):
        options = {"labels": "truth", "views": ("PA", "AP", ""), "transform": "phantom", "image_size": SIZE}
        return MIMICCXRDataModule(str(tiny_phantom), **{**options, "batch_size": 6, **changes})

    return make


@VARIANTS
def test_two_steps_a_checkpoint_and_figures(variant, data_of, tmp_path):
    text = {"vocab_size": 400, "max_length": 48, "dropout": True}
    model = build(variant, text=text, image=VIT if variant == "official" else RESNET, prompts="phantom")
    prototypes = model.prototypes.weight.detach().clone()
    keep = ModelCheckpoint(dirpath=tmp_path / "checkpoints", save_last=True)
    run = trainer(tmp_path, limit_train_batches=2, num_sanity_val_steps=0, callbacks=[keep, MGCAFigures(2, 3)])
    run.fit(model, datamodule=data_of())
    assert run.global_step == 2
    for term in ("loss", "instance", "token", "prototype"):
        assert math.isfinite(run.callback_metrics[f"train/{term}"])
        assert math.isfinite(run.callback_metrics[f"val/{term}"])
    torch.testing.assert_close(model.prototypes.weight.detach(), prototypes)  # not trained in the first epoch

    again = medvlp.load(tmp_path / "checkpoints" / "last.ckpt")
    assert isinstance(again, MGCA)
    assert again.variant == variant
    model = model.cpu().eval()
    images = pairs()["image"]
    with torch.no_grad():
        torch.testing.assert_close(again.embed_image(images), model.embed_image(images))
        torch.testing.assert_close(again.embed_patches(images), model.embed_patches(images))
        words = "the lungs are clear", "large left effusion"
        torch.testing.assert_close(again.embed_text(words), model.embed_text(words))

    held_out = data_of(classes=["Edema", "Mass", "Nodule", "Pneumothorax", "Fracture"])
    held_out.attach_tokenizer(again.tokenizer, max_length=48, padding=again.text_config.padding)
    run.predict(again, dataloaders=held_out.val_dataloader())
    written = {path.name for path in (tmp_path / "figures" / "mgca").iterdir()}
    assert written == {"words-0.png", "words-1.png", "tsne.png", "prototypes.png"}
    assert all(path.stat().st_size > 10_000 for path in (tmp_path / "figures" / "mgca").iterdir())


def test_prototypes_are_trained_after_their_epochs(data_of, tmp_path):
    model = build(text={"vocab_size": 400}, freeze_prototypes=0)
    before = model.prototypes.weight.detach().clone()
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0, enable_checkpointing=False)
    run.fit(model, datamodule=data_of())
    assert not torch.equal(model.prototypes.weight, before)


@VARIANTS
@pytest.mark.parametrize("chunks", [2, 6])
def test_chunks_equal_the_whole_batch(variant, chunks):
    made = []
    for count in (1, chunks):
        model = build(variant, image=VIT, contrastive_chunks=count).double().train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        data = pairs()
        data["image"] = data["image"].double()
        terms = model.losses(data, model.encode(data))
        torch.stack(list(terms.values())).sum().backward()
        made.append((terms, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    # The encoders give attention weights in float32.
    torch.testing.assert_close(made[0][0], made[1][0], rtol=1e-7, atol=1e-7)
    for name, gradient in made[0][1].items():
        assert float((made[1][1][name] - gradient).abs().max() / gradient.abs().max().clamp_min(1e-6)) < 1e-6, name


@VARIANTS
@pytest.mark.parametrize("precision", ["mixed", "true"])
def test_bfloat16(variant, precision):
    model, data = build(variant).train(), pairs()
    if precision == "true":
        model, data["image"] = model.bfloat16(), data["image"].bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed"):
        terms = model.losses(data, model.encode(data))
    assert all(torch.isfinite(term) for term in terms.values())
    total(terms).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# ---------------------------------------------------------------- the terms


@VARIANTS
def test_the_instance_term_is_the_papers_mean_or_the_codes_sum(variant):
    model, data = build(variant, instance_weight=2.0).eval(), pairs()
    out = model(data)
    tau, factor = (0.1, 0.5) if variant == "paper" else (0.07, 1.0)
    both = info_nce(out["image"], out["text"], tau) + info_nce(out["text"], out["image"], tau)
    torch.testing.assert_close(model.losses(data, out)["instance"], 2 * factor * both)


@VARIANTS
def test_equal_embeddings(variant):
    """No NaN where everything is alike: each term is the logarithm of what there is to choose from."""
    model, data = build(variant).eval(), pairs()
    out = {name: torch.ones_like(value) for name, value in model(data).items()}
    out["padding"] = torch.zeros_like(out["padding"], dtype=torch.bool)
    terms = model.losses(data, out)
    assert terms["instance"].item() == pytest.approx((1 if variant == "paper" else 2) * math.log(6), rel=1e-5)
    # Equal embeddings score the prototypes alike for all: so the assignment is even, whatever the prediction.
    assert terms["prototype"].item() >= math.log(20) - 1e-4
    cells, words = out["patches"].shape[1], out["words"].shape[1]
    wanted = math.log(cells) + math.log(words)
    if variant == "paper":  # weights as they are (1 for the words, 1/S for cells), over 2 N S, and half of both sides
        wanted = (math.log(cells) / cells + math.log(words)) / 2
    assert terms["token"].item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("weights", "terms", "absent"),
    [
        ({"token_weight": 0, "prototype_weight": 0}, {"instance"}, ("patch_head", "word_head", "prototypes")),
        ({"prototype_weight": 0}, {"instance", "token"}, ("prototypes",)),
        ({"token_weight": 0}, {"instance", "prototype"}, ("patch_head", "word_to_patch")),
        ({"instance_weight": 0}, {"token", "prototype"}, ()),
    ],
)
def test_table_4_leaves_out_terms_and_what_only_they_need(weights, terms, absent):
    model, data = build(**weights).train(), pairs()
    found = model.losses(data)
    assert set(found) == terms
    total(found).backward()
    assert all(getattr(model, name) is None for name in absent)
    # no parameter without gradient, for which DistributedDataParallel would wait
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert model.explain(data)


def test_official_has_what_the_code_has_and_no_more():
    model = build("official")
    assert model.patch_to_word is None
    assert model.word_to_patch is None
    assert not model.global_contrast
    assert build("paper").global_contrast


def test_padding_does_not_reach_the_papers_words():
    """Statistics in training, and so the words, are those of the words alone."""
    model, data = build().train(), pairs()
    longer = {**data}
    for key, fill in (("input_ids", 0), ("attention_mask", 0), ("word_groups", -1)):
        longer[key] = nn.functional.pad(data[key], (0, 4), value=fill)
    first, second = model(data)["words"], model(longer)["words"]
    # rows repeat whole words, so that the mix changes a little with the length, and far less than zeros would do
    kept = ~model(data)["padding"]
    assert (first - second[:, : first.shape[1]])[kept].abs().mean().item() < 0.15
    model.eval()
    with torch.no_grad():
        first, second = model(data), model(longer)
        torch.testing.assert_close(first["words"][kept], second["words"][:, : first["words"].shape[1]][kept])
        torch.testing.assert_close(model.losses(data, first), model.losses(longer, second), rtol=1e-4, atol=1e-5)


def test_words_are_repeated():
    words = torch.arange(1.0, 11).view(2, 5, 1)
    padding = torch.tensor([[False, False, True, True, True], [True] * 5])
    assert repeat_words(words, padding)[..., 0].tolist() == [[1, 2, 1, 2, 1], [6] * 5]


# ---------------------------------------------------------------- maps


@BACKBONES
@VARIANTS
def test_maps(variant, image):
    model, data = build(variant, image=image).eval(), pairs()
    side = 8 if image is RESNET else 4
    with torch.no_grad():
        patches = model.embed_patches(data["image"])
        assert patches.shape == (6, 16, side, side)
        torch.testing.assert_close(patches.norm(dim=1), torch.ones(6, side, side))
        out = model(data)
        regions = model.word_regions(out)
    grid = round(out["patches"].shape[1] ** 0.5)
    assert regions.shape == (6, 6, grid, grid)
    torch.testing.assert_close(regions.sum((2, 3)), torch.ones(6, 6))
    maps = model.explain(data)
    assert set(maps) == {"regions of the words"} | ({"class token's attention"} if image is VIT else set())
    for value in maps.values():
        assert value.shape == (6, 1, SIZE, SIZE)
        assert float(value.min()) >= 0
        assert float(value.max()) <= 1


def test_cells_of_a_pyramid_are_those_of_the_level_before_the_last():
    assert build()(pairs())["patches"].shape == (6, 16 * 16, 16)
    assert build(image=image_config(depth=1))(pairs())["patches"].shape == (6, 32 * 32, 16)


# ---------------------------------------------------------------- bad input


def no_words(data, rows):
    data = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in data.items()}
    data["attention_mask"][rows, 2:] = 0
    data["word_groups"][rows] = -1
    data["input_ids"][rows, 2:] = 0
    return data


@VARIANTS
@pytest.mark.parametrize("rows", [[1], list(range(6))])
def test_reports_without_words(variant, rows):
    model, data = build(variant, image=VIT).train(), no_words(pairs(), rows)
    terms = model.losses(data, model.encode(data))
    assert all(torch.isfinite(term) for term in terms.values())
    if variant == "paper" and len(rows) == 6:
        assert float(terms["token"].detach()) == 0
    total(terms).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.eval()
    assert all(torch.isfinite(value).all() for value in model.explain(data).values())


@VARIANTS
def test_a_batch_of_one(variant, tmp_path):
    model = build(variant)
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0, enable_checkpointing=False)
    with pytest.raises(ConfigError, match="batch_size"):
        run.fit(model, datamodule=datamodule(tmp_path / "pairs", batch_size=1, image_size=SIZE))
    with pytest.raises(ConfigError, match="two pairs per device"):
        build(variant).train()(pairs(1))
    out = build(variant).eval()(pairs(1))
    assert all(torch.isfinite(value).all() for value in out.values())


def test_chunks():
    with pytest.raises(ConfigError, match="contrastive_chunks is 7, but the batch holds 6"):
        build(contrastive_chunks=7).train().encode(pairs())
    with pytest.raises(ConfigError, match="at most 3"):
        build(contrastive_chunks=5).train().encode(pairs())


def test_another_image_size():
    model, data = build(image=VIT).eval(), batch(2, 96)
    assert model(data)["patches"].shape == (2, 36, 16)
    with pytest.raises(ConfigError, match="70 px do not divide into patches of 16"):
        model(batch(2, 70))
    with pytest.raises(ConfigError, match=r"image_size .* to 64"):
        build(image=VIT, image_size=70)


def test_texts_that_are_too_long(tmp_path):
    with pytest.raises(ConfigError, match="position table"):
        build(
            text={
                "architecture": {
                    "model_type": "bert",
                    "max_position_embeddings": 16,
                    "num_attention_heads": 2,
                    "hidden_size": 32,
                    "num_hidden_layers": 1,
                    "vocab_size": 200,
                }
            }
        )
    model = build().eval()
    model.attach_tokenizer(tokenizer())
    assert torch.isfinite(model.embed_text(["clear lungs " * 500])).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "code"}, "expected one of: paper, official"),
        ({"instance_weight": 0, "prototype_weight": 0}, "must be positive"),
        ({"token_weight": -1}, "token_weight must be at least 0"),
        ({"num_prototypes": 1}, "at least 2"),
        ({"variant": "official", "text": {"padding": "longest"}}, "max_length"),
    ],
)
def test_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_what_is_missing_is_named():
    model, data = build(), pairs()
    with pytest.raises(ConfigError, match="word_groups"):
        model({key: value for key, value in data.items() if key != "word_groups"})
    plain = build(token_weight=0).eval()
    with pytest.raises(ConfigError, match="token_weight 0"):
        plain.word_regions(plain(data))
    with pytest.raises(ConfigError, match="prototype_weight 0"):
        build(prototype_weight=0).cluster_scores(torch.zeros(1, 16))
    with pytest.raises(ConfigError, match="attach_tokenizer"):
        study_words(model.eval(), data)


# ---------------------------------------------------------------- figures


def read_texts(model, texts):
    made = tokenizer()
    model.attach_tokenizer(made)
    tokens = made(texts, padding=True, return_tensors="pt")
    groups = [[-1 if word is None else word for word in tokens.word_ids(i)] for i in range(len(texts))]
    data = batch(len(texts), SIZE)
    ids = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    return {**data, **ids, "word_groups": torch.tensor(groups), "text": texts}


@VARIANTS
def test_words_of_a_study(variant):
    model = build(variant).eval()
    data = read_texts(model, ["small left effusion, no edema", "an", "clear clear clear lungs"])
    if variant == "official":
        for key, fill in (("input_ids", 0), ("attention_mask", 0), ("word_groups", -1)):
            data[key] = nn.functional.pad(data[key], (0, 2), value=fill)
    first, nothing, again = study_words(model, data, count=3, wanted=["Edema"])
    assert next(iter(first.regions)) == "edema"
    assert len(first.regions) == 3
    assert set(first.regions) < {"small", "left", "effusion", "edema"}
    assert not nothing.regions
    assert set(again.regions) == {"clear", "lungs"}
    for region in first.regions.values():
        assert region.shape == (SIZE, SIZE)
        assert region.min() >= 0
        assert region.max() <= 1
    assert len(words_figure(first).axes) == 5  # radiograph, three words, report
    assert len(words_figure(nothing).axes) == 2


def test_a_words_region_is_its_own():
    """The map under a word is the attention of that word's merged token."""
    model = build().eval()
    data = read_texts(model, ["small left effusion", "rib fracture"])
    found = study_words(model, data, count=9)[0]
    regions = model.word_regions(model(data))[0]
    for place, word in enumerate(["small", "left", "effusion"]):
        peak = np.unravel_index(found.regions[word].argmax(), (SIZE, SIZE))
        grid = regions.shape[-1]
        largest = divmod(int(regions[place].argmax()), grid)
        assert [axis * grid // SIZE for axis in peak] == pytest.approx(largest, abs=1), word


def test_embedding_figure():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(30, 8)).astype(np.float32)
    truth = ["Edema"] * 12 + ["Fracture"] * 10 + [None] * 8
    figure = embedding_figure(points, truth, list(range(30)))
    left, right = figure.axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["others", "Edema (12)", "Fracture (10)"]
    assert len(right.get_legend().get_texts()) == 21  # the 20 largest and the others
    assert len(embedding_figure(points, truth).axes) == 1
    equal = embedding_figure(np.ones((6, 8)), [None] * 6, [0] * 6)
    drawn = np.concatenate([item.get_offsets() for item in equal.axes[0].collections])
    assert np.isfinite(drawn).all()
    with pytest.raises(ConfigError, match="at least 5"):
        embedding_figure(points[:3], truth[:3])


def test_prototype_figure():
    thumbnails = [np.zeros((8, 8, 3), np.uint8)] * 5
    truth = ["Edema", "Edema", None, "Fracture", None]
    figure = prototype_figure(thumbnails, np.array([7, 7, 7, 2, 2]), np.linspace(0.1, 0.5, 5), truth, nearest=2)
    captions = [axis.texts[0].get_text() for axis in figure.axes]
    assert captions[0].replace("\n", " ").startswith("prototype 7: 3 of 5 images, 2 of them Edema")
    assert "cosine 0.30" in captions[0]
    assert captions[2].startswith("prototype 2: 2 of 5 images")
    with pytest.raises(ConfigError, match="no images"):
        prototype_figure([], np.zeros(0), np.zeros(0), [])


def test_the_callback_draws_mgca_alone(data_of, tmp_path):
    from medvlp_baselines.template.module import TemplateMethod

    model = TemplateMethod(**sizes(image_size=SIZE, text=text_config(vocab_size=400)))
    model.attach_tokenizer(tokenizer())
    model.has_weights = True
    with pytest.raises(MedVLPError, match="TemplateMethod"):
        trainer(tmp_path, callbacks=[MGCAFigures()]).predict(model, datamodule=data_of())


def test_figures_are_the_same_every_time(data_of, tmp_path):
    """What is drawn depends on model and data alone; and with few single findings there is a warning and no t-SNE."""
    made = []
    for turn in ("a", "b"):
        model = build(text={"vocab_size": 400})
        model.attach_tokenizer(tokenizer())
        model.has_weights = True
        run = trainer(tmp_path / turn, callbacks=[MGCAFigures(studies=1, images=8)])
        run.predict(model, datamodule=data_of())
        made.append({path.name: path.read_bytes() for path in (tmp_path / turn / "figures" / "mgca").iterdir()})
    assert made[0] == made[1]
    assert "words-0.png" in made[0]
