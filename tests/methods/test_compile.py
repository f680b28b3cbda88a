"""Compiled encoders."""

import torch
from helpers import batch, datamodule, image_config, sizes, text_config, trainer
from medvlp_baselines.mgca.module import MGCA
from medvlp_baselines.template.module import TemplateMethod

import medvlp
from medvlp.training.optim import OptimConfig


def build(**changes):
    torch.manual_seed(0)
    return TemplateMethod(
        **sizes(image=image_config(depth=1), optim=OptimConfig(lr=1e-3, schedule="constant"), **changes)
    )


def fitted(folder, model, **changes):
    run = trainer(folder, **{"limit_train_batches": 2, "limit_val_batches": 0, **changes})
    run.fit(model, datamodule=datamodule(folder / "data", batch_size=4))
    return run


def test_a_compiled_run_in_chunks_ends_where_the_other_ends(tmp_path):
    text = text_config(padding="max_length")  # one shape, one compilation
    plain, compiled = (build(contrastive_chunks=2, text=text, compile=c) for c in (False, "aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fitted(tmp_path / "plain", plain)
    assert not torch._dynamo.utils.counters["stats"]
    run = fitted(tmp_path / "compiled", compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)
    path = run.checkpoint_callback.best_model_path
    assert not [name for name in torch.load(path, weights_only=True)["state_dict"] if "_orig_mod" in name]
    loaded = medvlp.load(path)
    images = batch()["image"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.embed_image(images), plain.eval().embed_image(images), rtol=1e-4, atol=1e-5)


def test_compiled_chunks_with_an_average_in_double_precision(tmp_path):
    """A recomputed chunk needs the default dtype of its first pass, or it is compiled again to other types."""
    text = text_config(padding="max_length")
    options = {"contrastive_chunks": 2, "ema_decay": 0.9, "text": text}
    plain, compiled = (build(compile=c, **options) for c in (False, "aot_eager"))
    torch._dynamo.reset()
    for model, folder in ((plain, "plain"), (compiled, "compiled")):
        fitted(tmp_path / folder, model, precision="64-true", limit_val_batches=1)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict(), rtol=1e-6, atol=1e-9)


def test_names_of_wrapped_modules_are_tolerated_both_ways():
    plain, wrapped = build(), build()
    wrapped.image_encoder = torch.compile(wrapped.image_encoder, backend="eager")
    assert any("_orig_mod" in name for name in wrapped.state_dict())
    wrapped.load_state_dict(plain.state_dict())
    for parameter in wrapped.parameters():
        torch.nn.init.ones_(parameter)
    plain.load_state_dict(wrapped.state_dict())
    assert all((p == 1).all() for p in plain.parameters())


def test_a_vision_transformer_is_compiled_with_its_class_token():
    """MGCA takes class token and attention, which are not what the encoder gives by default."""
    image = image_config(
        name="vit_tiny_patch16_224", depth=None, final_norm=True, options={"embed_dim": 32, "depth": 3, "num_heads": 2}
    )

    def mgca():
        torch.manual_seed(0)
        return MGCA(**sizes(image=image), num_prototypes=8, head_dim=24).train()

    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    plain, compiled = mgca(), mgca()
    torch._dynamo.reset()
    compiled.image_encoder.compile(backend=backend)
    whole = batch(4)
    wanted, found = plain(whole), compiled(whole)
    assert len(graphs) == 1  # nothing breaks it
    kinds = {str(node.target) for node in graphs[0].graph.nodes}
    assert any("scaled_dot_product_attention" in kind for kind in kinds)
    assert set(found) == set(wanted)
    assert {"image", "patches", "patch_attention"} <= set(found)
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=key)
    for model, outputs in ((plain, wanted), (compiled, found)):
        torch.stack(list(model.losses(whole, outputs).values())).sum().backward()
    for (name, first), second in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert (first.grad is None) == (second.grad is None), name
        if first.grad is not None:
            torch.testing.assert_close(second.grad, first.grad, rtol=1e-3, atol=1e-5, msg=name)
