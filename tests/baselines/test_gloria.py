"""GLoRIA as a whole: what it learns, what it refuses, what it draws, and that cutting or storing it changes nothing."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import batch, datamodule, image_config, text_config, tokenizer, trainer
from medvlp_baselines.gloria.figures import WordFigures, entry_texts, overlay, word_figures
from medvlp_baselines.gloria.losses import global_loss, local_loss, word_features
from medvlp_baselines.gloria.module import GLoRIA

import medvlp
from medvlp.errors import ConfigError, NotSupportedError
from medvlp.text import Collate, train_wordpiece

TEXTS = [
    "small left effusion",
    "normal heart size",
    "edema is seen in rib",
    "no pneumothorax",
    "clear lungs",
    "fracture",
]
WIDTH = 32


def build(variant="official", **changes):
    torch.manual_seed(0)
    options = {"image": image_config(depth=4), "text": text_config(num_layers=2), "image_size": 32, "prompts": None}
    model = GLoRIA(variant=variant, **{**options, "text_layers": 2, **changes})
    model.attach_tokenizer(tokenizer())
    return model


def pairs(texts=TEXTS, size=32):
    data = {**batch(len(texts), size), **Collate(tokenizer(), 24).tokenize(texts), "text": texts}
    return data


def total(terms):
    return torch.stack([term.double() for term in terms.values()]).sum()


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_loss_falls_and_everything_is_trained(variant):
    model, data = build(variant).train(), pairs()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen = []
    for _ in range(20):
        terms = model.losses(data, model.encode(data))
        assert list(terms) == ["global", "local"]
        loss = total(terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert all(math.isfinite(value) for value in seen)
    assert seen[-1] < 0.5 * seen[0]
    for part in ("image_encoder", "text_encoder", "global_head", "local_head"):
        assert any(not torch.equal(before[n], p) for n, p in model.named_parameters() if n.startswith(part)), part


def test_variants_are_the_equations_that_they_are_said_to_be():
    data = pairs()
    for variant, options in (("official", {}), ("paper", {"word_softmax": False, "rescale": True})):
        model = build(variant).eval()
        out = model(data)
        mask = torch.arange(out["words"].shape[1]) < out["word_count"][:, None]
        terms = model.losses(data, out)
        torch.testing.assert_close(terms["global"], global_loss(out["image"], out["text"]))
        torch.testing.assert_close(terms["local"], local_loss(out["regions"], out["words"], mask, **options))
        assert model.global_contrast == (variant == "paper")
    assert model.optim_config.schedule == "plateau"
    assert build().optim_config.schedule == "constant"
    assert build().optim_config.betas == (0.5, 0.999)


def test_equal_embeddings_give_four_logarithms():
    same = {
        "image": torch.ones(5, 4),
        "text": torch.ones(5, 4),
        "regions": torch.ones(5, 4, 2, 2),
        "words": torch.ones(5, 3, 4),
        "word_count": torch.full((5,), 3),
    }
    for variant in ("paper", "official"):
        assert float(total(build(variant).losses({}, same))) == pytest.approx(4 * math.log(5), rel=1e-6)


def test_weights_and_losses_apart():
    data = pairs()
    model = build().eval()
    both = model.losses(data)
    doubled = build(global_weight=2.0, local_weight=0.5).eval().losses(data)
    torch.testing.assert_close(doubled["global"], 2 * both["global"])
    torch.testing.assert_close(doubled["local"], 0.5 * both["local"])
    for changes in ({"local_weight": 0.0}, {"global_weight": 0.0}):
        model = build(**changes).train()
        terms = model.losses(data)
        dead = next(iter(changes)).removesuffix("_weight")
        assert float(terms.pop(dead).detach()) == 0
        assert float(next(iter(terms.values())).detach()) > 0
        total(model.losses(data)).backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None]
        assert model(data)["image"].shape == (6, WIDTH)
    torch.testing.assert_close(model.encode_images(data["image"]), model(data)["regions"].mean((2, 3)))


def test_counts_made_before_the_transfer_change_nothing():
    model, data = build().eval(), pairs([*TEXTS[:3], "", *TEXTS[3:]])
    counted = model.on_before_batch_transfer(data, 0)
    assert counted["word_counts"] == (model(data)["word_count"]).tolist() == [4, 4, 6, 1, 3, 3, 2]
    assert "word_counts" not in data
    for key, value in model.losses(counted).items():
        torch.testing.assert_close(value, model.losses(data)[key])


# ---------------------------------------------------------------- embeddings


def test_report_vectors_need_no_words():
    """The sentence is the mean over words of summed pieces, hence a sum over pieces."""
    model, data = build(embed_dim=12).eval(), pairs()
    out = model(data)
    vector = model.encode_tokens(data["input_ids"], data["attention_mask"])
    torch.testing.assert_close(vector, out["text"])
    states = model.text_encoder(data["input_ids"], data["attention_mask"], hidden_states=2).hidden_states
    found = word_features(states.transpose(0, 1), data["word_groups"], data["attention_mask"])
    torch.testing.assert_close(out["text"], model.text_head(found.sentence))
    assert out["image"].shape == out["text"].shape == (6, 12)
    torch.testing.assert_close(model.embed_text(TEXTS), torch.nn.functional.normalize(out["text"], dim=1))


def test_padding_does_not_turn_a_report():
    model = build().eval()
    longest = model.embed_text(TEXTS)
    alone = torch.cat([model.embed_text([text]) for text in TEXTS])
    torch.testing.assert_close(alone, longest, rtol=1e-4, atol=1e-5)


def test_patches_and_maps():
    model, data = build().eval(), pairs([*TEXTS, ""])
    patches = model.embed_patches(data["image"])
    assert patches.shape == (7, WIDTH, 4, 4)
    torch.testing.assert_close(patches.norm(dim=1), torch.ones(7, 4, 4))
    maps = model.explain(data)
    assert list(maps) == ["attention of the words", "similarity to the report"]
    for made in maps.values():
        assert made.shape == (7, 1, 32, 32)
        assert float(made.min()) >= 0
        assert float(made.max()) <= 1
    assert float(maps["attention of the words"][6].abs().max()) == 0  # a report without words
    attention, cosine, inside = model.attend(data)
    assert inside.sum(1).tolist() == [3, 3, 5, 2, 2, 1, 0]
    torch.testing.assert_close(attention.sum((2, 3))[inside], torch.ones(16))
    assert float(cosine.detach().abs().max()) <= 1 + 1e-6


def test_similarity_scores_each_image_and_prompt_alone():
    model, data = build().eval(), pairs()
    mean, whole, local = model.similarity(data["image"], TEXTS[:4])
    assert mean.shape == (6, 4)
    torch.testing.assert_close(mean, (whole + local) / 2)
    torch.testing.assert_close(whole, model.embed_image(data["image"]) @ model.embed_text(TEXTS[:4]).T)
    one = model.similarity(data["image"][2:3], TEXTS[1:2])[0]
    torch.testing.assert_close(one, mean[2:3, 1:2], rtol=1e-4, atol=1e-5)
    paper = build("paper").eval()
    assert float(paper.similarity(data["image"], TEXTS)[2].abs().max()) <= 1 + 1e-6  # the best word's cosine
    paper.tokenizer = None
    with pytest.raises(ConfigError, match="tokenizer"):
        paper.similarity(data["image"], TEXTS)


# ---------------------------------------------------------------- bad input


def test_one_pair_is_refused_in_training():
    model, data = build().train(), pairs(TEXTS[:1])
    with pytest.raises(ConfigError, match="at least two pairs"):
        model.training_step(data, 0)
    for weights in ({"global_weight": 0.0}, {"local_weight": 0.0}, {}):
        model = build(**weights).train()
        model.image_encoder.eval()
        with pytest.raises(ConfigError, match="at least two pairs"):
            model.losses(data)
    assert float(total(build().eval().losses(data)).detach()) == 0


def test_reports_without_words_and_without_anything():
    model, data = build().train(), pairs(["", "clear lungs", "", "edema"])
    data["attention_mask"][2] = 0  # not even [CLS]
    data["word_groups"][2] = -1
    terms = model.losses(data)
    total(terms).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert model(data)["word_count"].tolist() == [1, 3, 1, 2]


def test_captions_beyond_the_position_table():
    model, data = build().eval(), pairs()
    wide = {key: data[key].repeat(1, 90) for key in ("input_ids", "attention_mask", "word_groups")}
    assert wide["input_ids"].shape[1] > model.text_encoder.max_positions
    with pytest.raises(ConfigError, match=r"position table of 512.*max_length"):
        model({**data, **wide})
    with pytest.raises(ConfigError, match="max_length"):
        build(text=text_config(architecture={"model_type": "bert", "max_position_embeddings": 16}, max_length=24))
    assert model.embed_text([" ".join(TEXTS * 30)]).isfinite().all()  # cut


def test_a_vision_transformer_takes_other_sizes():
    model = build(image=image_config(name="test_vit", depth=None), image_size=32).eval()
    for size in (32, 48):
        out = model(pairs(size=size))
        assert out["regions"].shape == (6, WIDTH, size // 16, size // 16)
        assert all(torch.isfinite(value).all() for value in out.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "published"}, "variant"),
        ({"text_layers": 3}, "text encoder has 2 layers"),
        ({"local_level": -5}, "image encoder has 4 levels"),
        ({"image": image_config(depth=1)}, "image encoder has 1 levels"),
        ({"global_weight": 0.0, "local_weight": 0.0}, "both"),
        ({"local_weight": -1.0}, "local_weight must be at least 0"),
        ({"temp2": 0.0}, "temp2 must lie in"),
        ({"contrastive_chunks": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(**changes)


def test_more_chunks_than_samples_and_no_word_groups():
    data = pairs()
    with pytest.raises(ConfigError, match="batch holds 6 samples"):
        build(contrastive_chunks=7).encode(data)
    del data["word_groups"]
    with pytest.raises(ConfigError, match="word_groups"):
        build()(data)


# ---------------------------------------------------------------- chunks, training, checkpoints, figures


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_chunks_equal_the_whole(variant):
    made = []
    for chunks in (1, 4):
        model = build(variant, contrastive_chunks=chunks).double().train()
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
        data = pairs()
        data["image"] = data["image"].double()
        data = model.on_before_batch_transfer(data, 0)
        loss = total(model.losses(data, model.encode(data)))
        loss.backward()
        made.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(made[0][0], made[1][0])
    for name, gradient in made[0][1].items():
        torch.testing.assert_close(made[1][1][name], gradient, rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_two_steps_checkpoint_and_figures(variant, tmp_path):
    data = datamodule(tmp_path / "data", batch_size=4)
    torch.manual_seed(0)
    model = GLoRIA(
        variant=variant,
        image=image_config(depth=4),
        text=text_config(num_layers=2, dropout=True),
        image_size=32,
        prompts=None,
        text_layers=2,
    )
    fit = trainer(tmp_path / "run", max_steps=2)
    fit.fit(model, datamodule=data)
    assert fit.global_step == 2
    for key in ("train/global", "train/local", "train/loss", "val/loss", "val/global", "val/local"):
        assert math.isfinite(float(fit.logged_metrics.get(key, fit.callback_metrics[key])))
    fit.save_checkpoint(tmp_path / "model.ckpt")
    loaded = medvlp.load(tmp_path / "model.ckpt")
    model.eval()
    one = pairs()
    torch.testing.assert_close(loaded.embed_image(one["image"]), model.embed_image(one["image"]))
    torch.testing.assert_close(loaded.embed_text(TEXTS), model.embed_text(TEXTS))
    torch.testing.assert_close(loaded.embed_patches(one["image"]), model.embed_patches(one["image"]))
    assert loaded.score_options == model.score_options
    predict = trainer(tmp_path / "run", callbacks=[WordFigures(studies=3, words=2)])
    data.test_set = data.val_set  # the table has no test rows
    predict.predict(loaded, datamodule=data)
    made = sorted((tmp_path / "run" / "figures").glob("*.png"))
    assert [path.name[:9] for path in made] == ["words_000", "words_001", "words_002"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in made)


def test_figures_show_the_words():
    model = build().eval()
    model.attach_tokenizer(train_wordpiece([f"{text}." for text in TEXTS] * 3, vocab_size=200))
    texts = ["small left effusion.", ".", "pneumothorax."]
    data = {**batch(3), **Collate(model.tokenizer, 24).tokenize(texts)}
    figures = word_figures(model, data, words=2)
    shown = [[text.get_text().split("\n")[0] for axis in f.axes for text in axis.texts] for f in figures]
    assert [len(captions) for captions in shown] == [3, 1, 2]
    assert shown[1] == ["radiograph"]
    assert shown[2] == ["radiograph", "pneumothorax"]
    assert set(shown[0][1:]) < {"small", "left", "effusion"}
    assert len(word_figures(model, data, studies=1)) == 1
    model.tokenizer = None
    with pytest.raises(ConfigError, match="tokenizer"):
        word_figures(model, data)


def test_entries_are_words_in_one_piece():
    pieces = Collate(tokenizer(60), 40)
    tokens = pieces.tokenize(["no rib fracture", "pneumothorax"])
    rows = [tokens[key][0].tolist() for key in ("input_ids", "word_groups", "attention_mask")]
    assert len(rows[0]) > 5  # words of several pieces
    assert entry_texts(pieces.tokenizer, *rows) == ["[CLS]", "no", "rib", "fracture", "[SEP]"]


def test_overlay_of_anything():
    flat = overlay(torch.full((3, 4, 5), 7.0).numpy())
    assert flat.shape == (4, 5, 3)
    assert flat.max() == 0
    ramp = torch.linspace(-2, 3, 20).view(1, 4, 5).numpy()
    plain, heated = overlay(ramp), overlay(ramp, torch.ones(4, 5).numpy())
    assert (int(plain.min()), int(plain.max())) == (0, 255)
    assert (plain[..., 0] == plain[..., 2]).all()
    assert not (heated[..., 0] == heated[..., 2]).all()


def test_figures_are_for_gloria():
    with pytest.raises(ConfigError, match="at least 1"):
        WordFigures(studies=0)
    with pytest.raises(NotSupportedError, match="SimpleNamespace"):
        WordFigures().on_predict_start(SimpleNamespace(), SimpleNamespace())
