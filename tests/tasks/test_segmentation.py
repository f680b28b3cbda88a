"""Segmentation: decoders, transfer of a pre-trained one, stored pyramids, losses by protocol."""

import pandas as pd
import pytest
import torch
from helpers import image_config

from medvlp.datamodules.rsna import RSNADataModule
from medvlp.datamodules.siim import SIIMDataModule
from medvlp.encoders.decoder import UNetDecoder
from medvlp.encoders.dense import FeatureToPyramid, MedKLIPDecoder, UPerNet
from medvlp.errors import ConfigError, NotSupportedError
from medvlp.metrics.samples import Samples
from medvlp.metrics.segmentation import segmentation_measures
from medvlp.tasks.encoder import EncoderSource
from medvlp.tasks.segmentation import Segmentation

SIDE = 32
CNN = image_config(name="resnet18", depth=None, options={})
VIT = image_config(
    name="vit_tiny_patch16_224", depth=None, options={"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8}
)


def siim(root, **changes):
    return SIIMDataModule(
        str(root), **{"transform": "phantom", "image_size": SIDE, "batch_size": 8, "split": "g2d", **changes}
    )


def task(**changes):
    options = {
        "encoder": EncoderSource(image=image_config(depth=4)),
        "image_size": SIDE,
        "resamples": 20,
        "decoder_widths": [16, 8, 8, 8],
        **changes,
    }
    return Segmentation(**options)


def test_stored_pyramids_are_the_live_ones(corpora, run_task, tmp_path):
    """Same features, masks and order in every step; what follows differs by rounding, which training amplifies."""
    steps: dict[str, list] = {}
    for features in ("cached", "live"):
        made, seen = task(features=features, features_dtype="float32", views=2), []
        loss = made.loss

        def watched(batch, made=made, seen=seen, loss=loss):
            terms = loss(batch)
            seen.append((batch["id"], [level.clone() for level in made.features(batch)], batch["mask"].clone(), terms))
            return terms

        made.loss = watched
        run_task(made, siim(corpora("siim")), epochs=2, folder=tmp_path / features)
        steps[features] = seen
    assert len(steps["cached"]) == len(steps["live"]) > 2
    for (ids, levels, mask, _), (own_ids, own_levels, own_mask, _) in zip(*steps.values(), strict=True):
        assert ids == own_ids
        torch.testing.assert_close(mask, own_mask, rtol=0, atol=0)
        for level, own in zip(levels, own_levels, strict=True):
            torch.testing.assert_close(level, own, rtol=1e-5, atol=1e-6)
    first, second = (float(seen[0][3]["segmentation"]) for seen in steps.values())
    assert first == pytest.approx(second, rel=1e-5)


def test_rows_and_predictions(corpora, run_task, tmp_path):
    rows = run_task(task(), siim(corpora("siim")))
    assert {"dice_positive", "dice_all", "dice_mgca", "floor/dice_all"} <= rows.keys()
    frame = pd.read_parquet(tmp_path / rows["dice_positive"].predictions)
    again = segmentation_measures(Samples.from_frame(frame), batch_size=8)
    for name, value in again.items():
        assert float(value) == pytest.approx(rows[name].value, nan_ok=True)
    assert rows["floor/dice_all"].value == pytest.approx(float((frame["truth"] == 0).mean()))


def test_a_decoder_of_a_method_is_taken_over_and_trained(corpora, run_task, checkpoints):
    source = EncoderSource(checkpoint=checkpoints("g2d"))
    made = task(encoder=source, transfer_decoder=True, decoder_widths=None)
    own = {name: value.clone() for name, value in made.decoder.state_dict().items()}
    scratch = task(encoder=source, decoder_widths=[8, 8])
    assert made.encoder.checkpoint_sha256 == scratch.encoder.checkpoint_sha256
    run_task(made, siim(corpora("siim"), transform="checkpoint"))
    assert any(not torch.equal(own[name], value) for name, value in made.decoder.state_dict().items())


def test_the_last_layer_can_start_anew(corpora, run_task, checkpoints):
    source = EncoderSource(checkpoint=checkpoints("g2d"))
    whole = task(encoder=source, transfer_decoder=True, decoder_widths=None)
    made = task(encoder=source, transfer_decoder=True, transfer_head=False, decoder_widths=None)
    for name, value in made.decoder.state_dict().items():
        same = torch.equal(value, whole.decoder.state_dict()[name])
        assert same == (name != "head.0.weight"), name  # both start from a bias of zero
    run_task(made, siim(corpora("siim"), transform="checkpoint"))


@pytest.mark.parametrize("changes", [{"decoder_loss": "reconstruction"}, {"aggregate_heads": False}], ids=str)
def test_a_decoder_of_something_else_gives_all_but_its_last_layer(changes, checkpoints):
    source = EncoderSource(checkpoint=checkpoints("g2d", **changes))
    with pytest.raises(NotSupportedError, match=r"3 channels, not one mask; set transfer_head: false"):
        task(encoder=source, transfer_decoder=True, decoder_widths=None)
    made = task(encoder=source, transfer_decoder=True, transfer_head=False, decoder_widths=None)
    assert made.decoder.out_channels == 1


def test_a_method_without_a_decoder_says_so(checkpoints):
    with pytest.raises(NotSupportedError, match="convirt has no pre-trained decoder"):
        task(encoder=EncoderSource(checkpoint=_convirt(checkpoints)), transfer_decoder=True)
    with pytest.raises(NotSupportedError, match="no pre-trained decoder"):
        task(transfer_decoder=True)


def _convirt(checkpoints):
    from helpers import text_config

    return checkpoints("convirt", text=text_config(pooling="max"))


@pytest.mark.parametrize("protocol", ["mgca", "medklip", "maco"])
@pytest.mark.parametrize("encoder", [CNN, VIT], ids=["cnn", "vit"])
def test_every_decoder_on_both_kinds_of_encoder(protocol, encoder, corpora, run_task):
    widths = [8, 8, 8, 8] if encoder is VIT or protocol != "mgca" else [8, 8, 8, 8, 8]
    made = task(protocol=protocol, encoder=EncoderSource(image=encoder), decoder_widths=widths)
    data = RSNADataModule(
        str(corpora("rsna")), task="segmentation", transform="plain", image_size=SIDE, batch_size=8, split="g2d"
    )
    before = next(made.encoder.parameters()).detach().clone()
    rows = run_task(made, data)
    assert 0 <= rows["dice_all"].value <= 1
    assert torch.equal(before, next(made.encoder.parameters())) == (protocol == "mgca")


def test_decoder_shapes():
    levels = [torch.rand(2, 8, SIDE // s, SIDE // s) for s in (2, 4, 8, 16, 32)]
    strides, eight = (2, 4, 8, 16, 32), [8] * 5
    for decoder in (UNetDecoder(eight, strides, 1, [8] * 5), UPerNet(eight, strides, 1, 8)):
        assert decoder(levels).shape == (2, 1, SIDE, SIDE)
    images = torch.rand(2, 3, SIDE, SIDE)
    assert MedKLIPDecoder(eight, strides, 1, [8] * 4)(levels, images).shape == (2, 1, SIDE, SIDE)
    neck = FeatureToPyramid([8, 8, 8], 16)
    made = neck([torch.rand(2, 8, 4, 4)] * 3)
    assert [m.shape[-1] for m in made] == [16, 8, 4, 2]
    assert neck.reductions == [4, 8, 16, 32]
    with pytest.raises(ConfigError, match="strides 4, 8, 16"):
        UPerNet([8, 8], [2, 4])


def test_no_masks_no_segmentation(corpora, run_task):
    data = siim(corpora("siim"), task="classification")
    with pytest.raises(ConfigError, match="task: segmentation"):
        run_task(task(), data)


def test_too_large_a_cache_is_refused_with_its_size(corpora, run_task):
    with pytest.raises(ConfigError, match=r"GB.*features_limit_gb.*features: live"):
        run_task(task(features_limit_gb=1e-6), siim(corpora("siim")))


def test_float16_overflow_is_told(corpora, run_task, monkeypatch):
    extract = Segmentation.extract
    monkeypatch.setattr(Segmentation, "extract", lambda self, x: [1e6 * level for level in extract(self, x)])
    with pytest.raises(ConfigError, match="float32"):
        run_task(task(), siim(corpora("siim")))
