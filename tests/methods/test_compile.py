"""Compiled encoders."""

import torch
from helpers import batch, datamodule, image_config, sizes, text_config, trainer
from medvlp_baselines.template.module import TemplateMethod

import medvlp
from medvlp.methods.optim import OptimConfig


def build(**changes):
    torch.manual_seed(0)
    return TemplateMethod(
        **sizes(image=image_config(depth=1), optim=OptimConfig(lr=1e-3, schedule="constant"), **changes)
    )


def fitted(folder, model):
    run = trainer(folder, limit_train_batches=2, limit_val_batches=0)
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


def test_names_of_wrapped_modules_are_tolerated_both_ways():
    plain, wrapped = build(), build()
    wrapped.image_encoder = torch.compile(wrapped.image_encoder, backend="eager")
    assert any("_orig_mod" in name for name in wrapped.state_dict())
    wrapped.load_state_dict(plain.state_dict())
    for parameter in wrapped.parameters():
        torch.nn.init.ones_(parameter)
    plain.load_state_dict(wrapped.state_dict())
    assert all((p == 1).all() for p in plain.parameters())
