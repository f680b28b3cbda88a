"""Input that could break a method, for every registered one: a defined result, or an error that names the remedy."""

import pytest
import torch
from ddp_workers import CHUNKED, SIZE, build, part
from helpers import WORDS, batch, image_config, tokenizer

from medvlp.errors import ConfigError

METHODS = dict(CHUNKED.values())
"""One small setting per method; ``test_every_method.py`` sees to it that none is missing."""

VIT = image_config(name="vit_tiny_patch16_224", depth=None, options={"embed_dim": 32, "depth": 3, "num_heads": 2})

every = pytest.mark.parametrize("name", METHODS)


def method(name, **changes):
    return build(name, {**METHODS[name], **changes})


def finite_step(model, data):
    """A forward and backward pass; the losses by name."""
    terms = model.losses(data, model.encode(data))
    torch.stack([term.double() for term in terms.values()]).sum().backward()
    assert all(torch.isfinite(term) for term in terms.values()), terms
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), key
    return terms


@every
def test_a_batch_of_one(name):
    one = {key: value[:1] for key, value in part(None).items()}
    with pytest.raises(ConfigError, match=r"two pairs.*data\.batch_size"):
        method(name).training_step(one, 0)
    with torch.no_grad():
        outputs = method(name).eval()(one)
    assert all(torch.isfinite(value).all() for value in outputs.values())


@every
@pytest.mark.parametrize("rows", [[1], slice(None)], ids=["one", "all"])
def test_reports_without_a_word(name, rows):
    """[CLS] and [SEP] are what is left."""
    data = part(None)
    for key, fill in (("attention_mask", 0), ("input_ids", 0), ("word_groups", -1)):
        data[key][rows, 2:] = fill
    data["word_groups"][rows] = -1
    finite_step(method(name), data)


@every
def test_texts_beyond_the_position_table(name):
    model = method(name).eval()
    ids = torch.full((2, model.text_encoder.max_positions + 88), 7)
    with pytest.raises(ConfigError, match=r"600 tokens exceed .* position table of 512; tokenise with text.max_length"):
        model.encode_tokens(ids, torch.ones_like(ids))
    model.attach_tokenizer(tokenizer())
    with torch.no_grad():
        long, cut = model.embed_text([" ".join(WORDS * 60), " ".join(WORDS * 61)])
    assert torch.isfinite(long).all()
    torch.testing.assert_close(long, cut)  # to text.max_length, both


@every
def test_pairs_that_are_all_the_same(name):
    """Equal embeddings everywhere: contrasts are logarithms, Sinkhorn gives equal shares, norms meet no spread."""
    data = part(None)
    same = {
        key: value[1:2].expand_as(value).clone() if isinstance(value, torch.Tensor) else [value[1]] * len(value)
        for key, value in data.items()
        if key != "skipped"
    }
    finite_step(method(name), same)


@every
def test_images_of_a_size_that_the_position_table_lacks(name):
    changes = {"image": VIT, **({"decoder_loss": "none"} if name == "g2d" else {})}
    model = method(name, **changes).eval()
    for size in (SIZE, SIZE + 32):
        images = batch(2, size)["image"].double()
        with torch.no_grad():
            embedded = model.embed_image(images)
        assert torch.isfinite(embedded).all()
        torch.testing.assert_close(embedded.norm(dim=1), torch.ones(2, dtype=embedded.dtype))


@every
def test_more_chunks_than_samples(name):
    data = part(None)
    count = len(data["image"])
    with pytest.raises(ConfigError, match=f"contrastive_chunks is {count + 1}, but the batch holds {count} samples"):
        method(name, contrastive_chunks=count + 1).encode(data)
