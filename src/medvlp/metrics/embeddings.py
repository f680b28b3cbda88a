"""Collects the embeddings of an evaluation over batches and ranks."""

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from medvlp.metrics.samples import Samples, first_of_each


class EmbeddingStore(Metric):
    """All image and report embeddings of an evaluation, each dataset row once.

    A distributed sampler repeats rows to fill the last batch; the row index tells them apart, so they never count.
    """

    full_state_update = False

    image: list[Tensor]
    text: list[Tensor]
    label: list[Tensor]
    group: list[Tensor]
    index: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("image", "text", "label", "group", "index"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, image: Tensor, text: Tensor, label: Tensor, group: Tensor, index: Tensor) -> None:
        """Adds a batch.

        Args:
            image: (B, d).
            text: (B, d).
            label: (B, K), NaN = unknown.
            group: (B,) whole numbers, equal for reports of equal text.
            index: (B,) rows of the dataset.
        """
        self.image.append(image.detach().float())
        self.text.append(text.detach().float())
        self.label.append(label.float())
        self.group.append(group)
        self.index.append(index)

    def compute(self) -> Samples:
        """All rows, sorted by index, duplicates dropped.

        Returns:
            Columns image (N, d), text (N, d), label (N, K), group (N,), and the index (N,).
        """
        names = ("image", "text", "label", "group")
        index = dim_zero_cat(self.index)
        everything = Samples(index, {name: dim_zero_cat(getattr(self, name)) for name in names})
        return everything.select(first_of_each(index))
