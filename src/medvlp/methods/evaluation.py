"""Validation and test of a method on held-out pairs: losses, zero-shot AUROC and retrieval."""

from typing import TYPE_CHECKING, Any

from medvlp.losses.precision import total
from medvlp.metrics.retrieval import recall_columns, retrieval_measures, text_groups
from medvlp.metrics.samples import Samples

if TYPE_CHECKING:
    from medvlp.methods.base import PretrainModule


def evaluate_batch(model: "PretrainModule", batch: dict[str, Any], stage: str) -> None:
    """Log the losses as ``<stage>/<term>`` and collect the embeddings for :func:`evaluate_epoch`."""
    outputs, size = model(batch), len(batch["image"])
    if size > 1:  # a last batch of one pair has no contrast
        terms = model.losses(batch, outputs)
        for key, value in {"loss": total(terms), **terms}.items():
            model.log(f"{stage}/{key}", value, sync_dist=True, batch_size=size, prog_bar=key == "loss")
    if model.has_text:
        model.pairs.update(
            batch["index"],
            image=outputs["image"].float(),
            text=outputs["text"].float(),
            label=batch["label"].float(),
            same_text=text_groups(batch["text"]).to(model.device),
        )


def evaluate_epoch(model: "PretrainModule", stage: str) -> dict[str, Any]:
    """Log retrieval and zero-shot scores over all pairs of an epoch, each pair counted once across ranks.

    Returns:
        ``studies``, ``zero_shot`` (finding to AUROC) and the logged ``recall@k/i2t``, ``recall@k/t2i`` and
        ``auroc/<finding>``; empty for a method without text.
    """
    if not model.has_text:
        return {}
    samples = model.pairs.compute()
    model.pairs.reset()
    image = samples["image"]
    columns = recall_columns(image, samples["text"], samples["same_text"])
    recalls = retrieval_measures(Samples(samples.index, columns))
    scores = {name: float(value) for name, value in recalls.items() if not name.startswith("chance/")}
    zero_shot = model.zero_shot_auroc(image, samples["label"])
    scores.update({f"auroc/{finding}": value for finding, value in zero_shot.items()})
    if not model.trainer.sanity_checking:
        # The store has gathered, so all ranks agree; sync_dist only silences Lightning's warning.
        model.log_dict({f"{stage}/{name}": value for name, value in scores.items()}, sync_dist=True)
        if "auroc/mean" in scores:
            model.log(f"{stage}/auroc_mean", scores["auroc/mean"], prog_bar=True, sync_dist=True)
    return {"studies": len(image), "zero_shot": zero_shot, **scores}
