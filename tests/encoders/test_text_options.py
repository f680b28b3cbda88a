"""What text encoders give beside the last layer, and how they are cut down, against transformers itself."""

import dataclasses
import json

import pytest
import torch
from helpers import text_config
from transformers import AutoModel, BertConfig

from medvlp.encoders.text import TextEncoder, TextEncoderConfig
from medvlp.errors import CheckpointError, ConfigError

LAYERS = 4


def tokens(batch=3, length=9, vocabulary=100):
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, 5:] = 0
    return torch.randint(5, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0)) * mask, mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT with a pooler, as a local folder."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
    path = tmp_path_factory.mktemp("bert")
    model = AutoModel.from_config(BertConfig(vocab_size=120, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def reference(folder):
    return AutoModel.from_pretrained(folder, attn_implementation="eager").eval()


def encoder(folder, **changes):
    return TextEncoder(TextEncoderConfig(pretrained=folder, **changes)).eval()


def test_hidden_states_and_attention(folder, reference):
    ids, mask = tokens()
    ours = encoder(folder)
    with torch.no_grad():
        wanted = reference(input_ids=ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
        features = ours(ids, mask, hidden_states=3, attention=True)
        plain = ours(ids, mask)
    torch.testing.assert_close(features.tokens, wanted.last_hidden_state, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.hidden_states, torch.stack(wanted.hidden_states[-3:], 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.attention, wanted.attentions[-1], rtol=1e-4, atol=1e-5)
    assert features.attention[0, :, :, 5:].max() == 0
    assert all(torch.equal(a, b) for a, b in zip(plain, features[:2], strict=True))
    assert ours(ids, mask, hidden_states=1).attention is None
    assert ours(ids, mask, attention=True).hidden_states is None
    row = ours(ids, mask, attention=True, attention_rows=1).attention
    torch.testing.assert_close(row, wanted.attentions[-1][:, :, :1], rtol=1e-4, atol=1e-5)


def test_hidden_states_carry_gradient_and_attention_does_not(folder):
    features = encoder(folder)(*tokens(), hidden_states=LAYERS, attention=True)
    assert features.hidden_states.requires_grad
    assert not features.attention.requires_grad
    with pytest.raises(ConfigError, match=r"5 hidden states.*4 layers"):
        encoder(folder)(*tokens(), hidden_states=5)


def test_attention_is_the_fused_one(folder):
    assert encoder(folder).model.config._attn_implementation == "sdpa"


def test_attention_of_encoders_unlike_bert():
    architecture = {"model_type": "distilbert", "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    ours = TextEncoder(TextEncoderConfig(architecture={"vocab_size": 120, **architecture}))
    with pytest.raises(ConfigError, match="DistilBert"):
        ours(*tokens(), attention=True)


def test_the_first_layers_alone(folder, reference):
    ids, mask = tokens()
    ours = encoder(folder, keep_layers=2)
    with torch.no_grad():
        wanted = reference(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        torch.testing.assert_close(ours(ids, mask)[0], wanted.hidden_states[2], rtol=1e-4, atol=1e-5)
    assert ours.architecture["num_hidden_layers"] == 2
    for count in (0, 5):
        with pytest.raises(ConfigError, match=f"keep_layers {count}: the encoder has 4"):
            encoder(folder, keep_layers=count)


def test_no_word_order_and_no_token_types(folder, reference):
    """The released MGCA: position 0 everywhere, no token-type embedding."""
    ids, mask = tokens()
    ours = encoder(folder, positions="zero", token_types=False, pooling="mean")
    types = reference.embeddings.token_type_embeddings.weight
    with torch.no_grad():
        kept = types.clone()
        types.zero_()
        wanted = reference(input_ids=ids, attention_mask=mask, position_ids=torch.zeros_like(ids)).last_hidden_state
        types.copy_(kept)
        torch.testing.assert_close(ours(ids, mask)[0], wanted, rtol=1e-4, atol=1e-5)
        order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(ours(ids[1:], mask[1:])[1], ours(ids[1:, order], mask[1:])[1], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(encoder(folder)(ids, mask)[0], wanted, atol=1e-3)
    table = ours.model.embeddings.token_type_embeddings.weight
    assert not table.any()
    assert not table.requires_grad


def test_what_an_encoder_lacks_is_said():
    architecture = {"model_type": "modernbert", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = TextEncoderConfig(architecture={**architecture, **special, "intermediate_size": 64, "vocab_size": 120})
    for changes, message in (
        ({"pooling": "pooler"}, "pooler"),
        ({"positions": "zero"}, "position table"),
        ({"token_types": False}, "token types"),
    ):
        with pytest.raises(ConfigError, match=message):
            TextEncoder(dataclasses.replace(config, **changes))
    assert len(TextEncoder(dataclasses.replace(config, keep_layers=1))(*tokens())) == 2


def test_the_encoders_own_pooler(folder, reference, tmp_path):
    ids, mask = tokens()
    ours = encoder(folder, pooling="pooler")
    with torch.no_grad():
        wanted = reference(input_ids=ids, attention_mask=mask).pooler_output
        torch.testing.assert_close(ours(ids, mask)[1], wanted, rtol=1e-4, atol=1e-5)
    headless = AutoModel.from_pretrained(folder)
    headless.pooler = None
    headless.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"pooler\.dense"):
        encoder(str(tmp_path), pooling="pooler")


@pytest.mark.parametrize(
    "changes",
    [
        {"keep_layers": 2, "positions": "zero", "token_types": False},
        {"pooling": "pooler", "freeze_layers": 2, "freeze_embeddings": True},
    ],
)
def test_a_cut_encoder_is_built_again_from_its_architecture(folder, changes):
    first = encoder(folder, **changes)
    config = TextEncoderConfig(architecture=json.loads(json.dumps(first.architecture)), **changes)
    again = TextEncoder(config).eval()
    again.load_state_dict(first.state_dict())
    ids, mask = tokens()
    assert all(torch.equal(a, b) for a, b in zip(again(ids, mask), first(ids, mask), strict=True))


# ---------------------------------------------------------------- modes and frozen layers


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_is_as_configured_whatever_mode_is_set(folder, dropout):
    ids, mask = tokens()
    ours = TextEncoder(TextEncoderConfig(pretrained=folder, dropout=dropout, freeze_layers=1))

    def repeats():
        return torch.equal(ours(ids, mask)[0], ours(ids, mask)[0])

    assert repeats() != dropout  # as built
    assert ours.eval() is ours
    assert repeats()
    assert ours.train().training
    assert repeats() != dropout


def kept_bytes(ours):
    total = 0

    def pack(x):
        nonlocal total
        total += 0 if isinstance(x, torch.nn.Parameter) else x.numel() * x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        ours(*tokens())[1].sum().backward()
    return total


def test_a_frozen_prefix_keeps_no_activations():
    """Without its embeddings frozen, the gradient would have to go through the frozen layers all the same."""
    made = {
        frozen: kept_bytes(TextEncoder(text_config(num_layers=4, freeze_layers=3, freeze_embeddings=frozen)))
        for frozen in (False, True)
    }
    assert made[True] < 0.4 * made[False]
    whole = TextEncoder(text_config(num_layers=2, freeze_layers=2, freeze_embeddings=True))
    assert not whole(*tokens())[0].requires_grad
