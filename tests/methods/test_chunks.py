"""A batch in chunks: the same loss and gradient, a fraction of the memory."""

import math

import pytest
import torch
from helpers import batch, datamodule, sizes, text_config, trainer
from medvlp_baselines.convirt.module import ConVIRT
from medvlp_baselines.template.module import TemplateMethod
from torch import nn

from medvlp.encoders.image import ImageEncoderConfig
from medvlp.errors import ConfigError
from medvlp.methods.g2d.module import G2D
from medvlp.training.chunks import encode_in_chunks, keep_buffers, split_batch

PAIRS = 7
NORM = nn.modules.batchnorm._BatchNorm

METHODS = {
    "g2d": lambda **k: G2D(**sizes(**k)),
    "g2d official": lambda **k: G2D(variant="official", pixel_loss_start=0, **sizes(**k)),
    "convirt": lambda **k: ConVIRT(**sizes(**k)),
    "convirt mgca": lambda **k: ConVIRT(variant="mgca", **sizes(**k)),
    "template": lambda **k: TemplateMethod(**sizes(**k)),
}


def doubles():
    data = batch(PAIRS)
    return {**data, "image": data["image"].double()}


def build(method, frozen_norms=False, **changes):
    torch.manual_seed(0)
    model = METHODS[method](**changes).double().train()
    for module in model.modules():
        if isinstance(module, NORM) and frozen_norms:
            module.eval()
    return model


def step(model, data, outputs):
    """Loss and gradients."""
    loss = torch.stack([term.double() for term in model.losses(data, outputs).values()]).sum()
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(first, second, tolerance=1e-8):
    assert first[0] == pytest.approx(second[0], rel=tolerance)
    assert first[1].keys() == second[1].keys()
    for name, gradient in second[1].items():
        scale = gradient.abs().max().clamp_min(1e-6)
        assert float((first[1][name] - gradient).abs().max() / scale) < tolerance, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunks", [2, 7])
def test_chunks_have_the_loss_and_the_gradient_of_the_whole_batch(method, chunks):
    made = []
    for count in (1, chunks):
        model, data = build(method, frozen_norms=True, contrastive_chunks=count), doubles()
        made.append(step(model, data, model.encode(data)))
    assert_same(*made)
    assert any(g.abs().max() > 1e-6 for n, g in made[0][1].items() if n.startswith("image_encoder"))
    assert any(g.abs().max() > 1e-6 for n, g in made[0][1].items() if n.startswith("text_encoder"))


@pytest.mark.parametrize("method", ["g2d", "convirt mgca"])
def test_recomputation_repeats_dropout_and_counts_no_chunk_twice(method):
    """Norms in train mode and dropout on: as if all activations had been kept."""
    made = []
    for recompute in (False, True):
        model = build(method, text=text_config(dropout=True, num_layers=2))
        before = {n: b.clone() for n, b in model.named_buffers()}
        data = doubles()
        torch.manual_seed(1)
        if recompute:
            outputs = encode_in_chunks(model.forward, data, 3, model)
        else:
            parts = [model(part) for part in split_batch(data, 3)]
            outputs = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        made.append((step(model, data, outputs), dict(model.named_buffers())))
    (kept, buffers), (recomputed, again) = made
    assert_same(recomputed, kept)
    assert any(not torch.equal(before[n], b) for n, b in again.items())
    for name, value in buffers.items():
        assert torch.equal(again[name], value), name
    counters = [int(b) for n, b in again.items() if n.endswith("num_batches_tracked")]
    assert set(counters) == {3}


def test_dropout_differs_from_chunk_to_chunk():
    model = build("template", frozen_norms=True, text=text_config(dropout=True, num_layers=2))
    data = doubles()
    same = {k: torch.cat([v[1:2], v[1:2]]) for k, v in data.items() if isinstance(v, torch.Tensor)}
    text = encode_in_chunks(model.forward, same, 2, model)["text"]
    assert not torch.equal(text[0], text[1])


class Bytes:
    """Bytes that autograd keeps for the backward pass."""

    def __enter__(self):
        self.total = 0
        seen = set()

        def pack(x):
            if x.data_ptr() not in seen and not isinstance(x, nn.Parameter):
                seen.add(x.data_ptr())
                self.total += x.numel() * x.element_size()
            return x

        self.hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


def test_memory_is_that_of_one_chunk():
    image = ImageEncoderConfig("resnet18", depth=3)
    model, data = TemplateMethod(**sizes(image=image)).train(), batch(16)
    with Bytes() as whole:
        everything = model(data)
    with Bytes() as chunk:
        model(split_batch(data, 8)[0])
    model.contrastive_chunks = 8
    with Bytes() as between:
        outputs = model.encode(data)
    with Bytes() as loss:
        model.losses(data, outputs)
    assert everything["image"].shape == outputs["image"].shape
    assert between.total + loss.total + chunk.total < 0.2 * whole.total


# ---------------------------------------------------------------- what can be cut and joined


def test_a_batch_is_cut_along_its_samples():
    data = {**batch(5), "skipped": [("a", "torn")], "scale": torch.tensor(2.0), "view": "PA"}
    parts = split_batch(data, 3)
    assert [len(p["image"]) for p in parts] == [2, 2, 1]
    for key in ("image", "input_ids", "index", "label"):
        assert torch.equal(torch.cat([p[key] for p in parts]), data[key])
    assert [text for p in parts for text in p["text"]] == data["text"]
    assert all(p["skipped"] == data["skipped"] and p["view"] == "PA" and p["scale"] == 2 for p in parts)


def test_batches_that_cannot_be_cut():
    with pytest.raises(ConfigError, match="contrastive_chunks is 5, but the batch holds 4"):
        split_batch(batch(4), 5)
    with pytest.raises(ConfigError, match=r"'sentences'.* 9 rows for 4"):
        split_batch({**batch(4), "sentences": torch.zeros(9, 2)}, 2)
    with pytest.raises(ConfigError, match="at least 1"):
        TemplateMethod(**sizes(contrastive_chunks=0))


def test_a_batch_norm_needs_chunks_of_two():
    model = G2D(**sizes(contrastive_chunks=3)).train()
    with pytest.raises(ConfigError, match="at most 2"):
        model.encode(batch(4))
    model.eval().encode(batch(4))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda data: torch.zeros(()), "'extra'.*no rows"),
        (lambda data: torch.zeros(1 + len(data["image"])), r"'extra'.*rows for a chunk"),
        (lambda data: 3.0, "'extra'.*float"),
        (lambda data: torch.zeros(len(data["image"]), int(data["index"][0]) + 1), "'extra'.*another shape"),
    ],
)
def test_outputs_that_cannot_be_joined(output, message):
    model, data = TemplateMethod(**sizes()), batch(4)
    with pytest.raises(ConfigError, match=message):
        encode_in_chunks(lambda part: {**model(part), "extra": output(part)}, data, 2, model)


def test_validation_takes_the_batch_as_a_whole(monkeypatch):
    model = TemplateMethod(**sizes(contrastive_chunks=4)).eval()
    seen = []
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    monkeypatch.setattr(
        model, "forward", lambda data: seen.append(len(data["image"])) or type(model).forward(model, data)
    )
    model.validation_step(batch(3), 0)
    assert seen == [3]


def test_buffers_are_kept_of_modules_in_train_mode():
    module = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval())
    x = torch.randn(5, 2)
    with keep_buffers(module):
        module(x)
    assert int(module[0].num_batches_tracked) == 0
    assert torch.equal(module[0].running_mean, torch.zeros(2))


# ---------------------------------------------------------------- in a run


def test_a_run_in_chunks_ends_where_the_run_without_ends(tmp_path):
    made = []
    for chunks in (1, 2):
        torch.manual_seed(0)
        image = ImageEncoderConfig("test_convnext", depth=2)  # layer norms
        model = TemplateMethod(**sizes(image=image, contrastive_chunks=chunks))
        run = trainer(tmp_path / str(chunks), limit_val_batches=0, enable_checkpointing=False)
        run.fit(model, datamodule=datamodule(tmp_path / f"d{chunks}", batch_size=4))
        made.append((run.callback_metrics["train/loss"], model.state_dict()))
    torch.testing.assert_close(made[1][0], made[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made[1][1], made[0][1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["g2d", "template"])
def test_bfloat16(method):
    made = []
    for chunks in (1, 3):
        torch.manual_seed(0)
        model = METHODS[method](contrastive_chunks=chunks).train()
        for module in model.modules():
            if isinstance(module, NORM):
                module.eval()
        data = batch(PAIRS)
        with torch.autocast("cpu", torch.bfloat16):
            terms = model.losses(data, model.encode(data))
        assert {term.dtype for term in terms.values()} == {torch.float32}
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        made.append(
            (float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
    assert made[0][0] == pytest.approx(made[1][0], rel=1e-4)
    for name, gradient in made[0][1].items():
        assert math.isfinite(float(gradient.abs().max())), name
    largest = max(made[0][1], key=lambda n: made[0][1][n].norm())
    similarity = torch.cosine_similarity(made[0][1][largest].flatten(), made[1][1][largest].flatten(), 0)
    assert float(similarity) > 0.999
