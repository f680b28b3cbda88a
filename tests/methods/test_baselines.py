import math

import pytest
import torch
from helpers import batch, sizes, text_config
from medvlp_baselines.convirt.module import ConVIRT
from medvlp_baselines.template.module import TemplateMethod

from medvlp.errors import NotSupportedError
from medvlp.losses.contrastive import info_nce


@pytest.mark.parametrize("build", [ConVIRT, lambda **k: ConVIRT(variant="mgca", **k), TemplateMethod])
def test_a_step(build):
    torch.manual_seed(0)
    model, data = build(**sizes()).train(), batch()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    terms = model.losses(data)
    assert set(terms) == {"contrast"}
    terms["contrast"].backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert all(torch.isfinite(p).all() for p in after.values())
    for part in ("image_encoder", "text_encoder", "image_head", "text_head"):
        assert any(not torch.equal(before[n], after[n]) for n in before if n.startswith(part)), part
    out = model(data)
    assert out["image"].shape == out["text"].shape == (4, 16)


def test_convirt_weights_the_directions():
    model, data = ConVIRT(**sizes()).eval(), batch()
    out = model(data)
    first, second = info_nce(out["image"], out["text"], 0.1), info_nce(out["text"], out["image"], 0.1)
    torch.testing.assert_close(model.losses(data, out)["contrast"], 0.75 * first + 0.25 * second)
    mgca = ConVIRT(variant="mgca", **sizes()).eval()
    first, second = info_nce(out["image"], out["text"], 0.07), info_nce(out["text"], out["image"], 0.07)
    torch.testing.assert_close(mgca.losses(data, out)["contrast"], first + second)


def test_equal_embeddings_give_the_logarithm_of_the_batch():
    same = {"image": torch.ones(5, 16), "text": torch.ones(5, 16)}
    data = batch(5)
    assert float(ConVIRT(**sizes()).losses(data, same)["contrast"]) == pytest.approx(math.log(5))
    assert float(ConVIRT(variant="mgca", **sizes()).losses(data, same)["contrast"]) == pytest.approx(2 * math.log(5))
    assert float(TemplateMethod(**sizes()).losses(data, same)["contrast"]) == pytest.approx(math.log(5))


def test_convirt_pools_by_the_maximum_and_freezes_what_it_is_told():
    model = ConVIRT(**sizes(text=text_config(pooling="max", num_layers=2, freeze_layers=1, freeze_embeddings=True)))
    assert model.text_encoder.pooling == "max"
    frozen = {name for name, p in model.text_encoder.model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.text_encoder.model.named_parameters() if "layer.1" not in n}


@pytest.mark.parametrize("variant", ["paper", "mgca"])
def test_convirt_patches(variant):
    model, data = ConVIRT(variant=variant, **sizes()).eval(), batch()
    with torch.no_grad():
        patches = model.embed_patches(data["image"])
    assert patches.shape == (4, 16, 8, 8)
    torch.testing.assert_close(patches.norm(dim=1), torch.ones(4, 8, 8))


def test_a_method_without_patches_says_so():
    with pytest.raises(NotSupportedError, match="template"):
        TemplateMethod(**sizes()).embed_patches(batch()["image"])
