"""How a method is validated, tested and used for prediction."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import lightning as L
from torch import Tensor

from medvlp.losses.precision import total
from medvlp.methods.guards import unit_length
from medvlp.metrics.retrieval import recall_columns, retrieval_measures, text_groups
from medvlp.metrics.samples import Samples, SampleStore
from medvlp.prompts import PromptSet
from medvlp.scoring.prompts import zero_shot_auroc


class Evaluation(L.LightningModule):
    """Losses, zero-shot AUROC and retrieval on held-out pairs: the evaluation part of a method."""

    has_text: ClassVar[bool]
    prompts: PromptSet | None
    tokenizer: Any
    label_names: list[str]
    evaluation: dict[str, Any]
    _store: SampleStore

    @abstractmethod
    def losses(self, batch: dict[str, Any], outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Named loss terms, already weighted."""

    @abstractmethod
    def embed_text(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """L2-normalised embeddings of texts."""

    def _evaluation_step(self, batch: dict[str, Any], stage: str) -> None:
        outputs = self(batch)
        size = len(batch["image"])
        if size > 1:  # a last batch of one has no contrast
            terms = self.losses(batch, outputs)
            for key, value in {"loss": total(terms), **terms}.items():
                self.log(f"{stage}/{key}", value, sync_dist=True, batch_size=size, prog_bar=key == "loss")
        if not self.has_text:
            return
        self._store.update(
            batch["index"],
            image=outputs["image"].float(),
            text=outputs["text"].float(),
            label=batch["label"].float(),
            same_text=text_groups(batch["text"]).to(self.device),
        )

    def _evaluation_end(self, stage: str) -> None:
        if not self.has_text:  # nothing to choose by text
            self.evaluation = {}
            return
        samples = self._store.compute()
        self._store.reset()
        image = samples["image"]
        recalls = retrieval_measures(
            Samples(samples.index, recall_columns(image, samples["text"], samples["same_text"]))
        )
        results = {name: float(value) for name, value in recalls.items() if not name.startswith("chance/")}
        zero_shot = self.zero_shot_auroc(image, samples["label"])
        results.update({f"auroc/{finding}": value for finding, value in zero_shot.items()})
        self.evaluation = {"studies": len(image), "zero_shot": zero_shot, **results}
        if not self.trainer.sanity_checking:
            # Equal on all ranks already, since the store gathers; the flag only tells Lightning so.
            self.log_dict({f"{stage}/{k}": v for k, v in results.items()}, sync_dist=True)
            if "auroc/mean" in results:
                self.log(f"{stage}/auroc_mean", results["auroc/mean"], prog_bar=True, sync_dist=True)

    def zero_shot_auroc(self, image: Tensor, label: Tensor) -> dict[str, float]:
        """AUROC of the positive against the negative prompts of each finding.

        Args:
            image: (N, d) image embeddings.
            label: (N, K), columns :attr:`label_names`.

        Returns:
            Finding to AUROC for each finding that has prompts and both a positive and a negative sample, and "mean"
            over them; empty without prompts or labels, or for a method without a text side.
        """
        if self.prompts is None or self.tokenizer is None:
            return {}
        return zero_shot_auroc(image, label, self.label_names, self.prompts.among(self.label_names), self.embed_text)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Losses, and embeddings for the epoch's end."""
        self._evaluation_step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Zero-shot AUROC per finding and retrieval R@1/5/10 on the held-out pairs."""
        self._evaluation_end("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As :meth:`validation_step`, on the test split."""
        self._evaluation_step(batch, "test")

    def on_test_epoch_end(self) -> None:
        """As :meth:`on_validation_epoch_end`."""
        self._evaluation_end("test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Ids, dataset rows and L2-normalised embeddings of a batch; ``text`` only with a text side."""
        outputs = self(batch)
        sides = ("image", "text") if self.has_text else ("image",)
        return {
            "id": batch["id"],
            "index": batch["index"],
            **{side: unit_length(outputs[side], self) for side in sides},
        }
