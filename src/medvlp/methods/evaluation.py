"""Validation and test of a method on held-out pairs: losses, zero-shot AUROC and retrieval."""

from typing import TYPE_CHECKING, Any

from medvlp.losses.precision import total
from medvlp.metrics.retrieval import recall_columns, retrieval_measures, text_groups
from medvlp.metrics.samples import Samples

if TYPE_CHECKING:
    from medvlp.methods.base import PretrainModule


def evaluate_batch(model: "PretrainModule", batch: dict[str, Any], stage: str) -> None:
    """Log the losses as ``<stage>/<term>`` and keep the embeddings for :func:`evaluate_epoch`."""
    outputs = model(batch)
    size = len(batch["image"])
    if size > 1:  # a last batch of one has no contrast
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
    """Log the scores of all pairs of an epoch, each once across ranks.

    Returns:
        ``studies``, ``zero_shot`` (finding to AUROC) and the logged numbers, ``recall@k/i2t``, ``recall@k/t2i`` and
        ``auroc/<finding>``; empty for a method without a text side.
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
        # Equal on all ranks already, since the store gathers; the flag only tells Lightning so.
        model.log_dict({f"{stage}/{name}": value for name, value in scores.items()}, sync_dist=True)
        if "auroc/mean" in scores:
            model.log(f"{stage}/auroc_mean", scores["auroc/mean"], prog_bar=True, sync_dist=True)
    return {"studies": len(image), "zero_shot": zero_shot, **scores}
