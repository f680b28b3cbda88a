"""The papers' detector on a pyramid: levels, neck, loss and decoding in one module."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medvlp.errors import ConfigError
from medvlp.tasks.detection.anchors import scaled_anchors
from medvlp.tasks.detection.decode import Predictions, decode
from medvlp.tasks.detection.head import YOLOv3Neck
from medvlp.tasks.detection.loss import LossWeights, weighted, yolo_loss
from medvlp.tasks.detection.pyramid import LevelPlan, ThreeLevels
from medvlp.tasks.detection.targets import VARIANTS, Truth, Variant, assign


class YOLOv3(nn.Module):
    """YOLOv3 on the pyramid of a frozen encoder, as LoVT, MGCA and G2D train it.

    Args:
        plan: where its three levels come from.
        channels: of the encoder's levels ``plan.used``.
        image_size: height and width of the images in pixels.
        num_classes: classes of the boxes.
        variant: "official" assigns a box on all three levels, "yolov3" to the best of the nine anchors; see
            :func:`medvlp.tasks.detection.targets.assign`.
        width: factor on the papers' channels.
        weights: of the loss's terms.

    Raises:
        ConfigError: there is no such variant.
    """

    exact_parts = ("anchors",)
    anchors: Tensor

    def __init__(
        self,
        plan: LevelPlan,
        channels: Sequence[int],
        image_size: tuple[int, int],
        num_classes: int = 1,
        variant: Variant = "official",
        width: float = 1.0,
        weights: LossWeights | None = None,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ConfigError(f'there is no detection variant "{variant}"; there are {", ".join(VARIANTS)}')
        self.levels = ThreeLevels(plan, channels)
        neck = YOLOv3Neck(self.levels.channels, num_classes, width=width)
        # a fifth faster on CPUs, and the layout that tensor cores want
        self.neck = neck.to(memory_format=torch.channels_last)
        self.image_size = image_size
        self.num_classes = num_classes
        self.variant: Variant = variant
        self.weights = weights or LossWeights()
        self.register_buffer("anchors", scaled_anchors(image_size), persistent=False)

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """The used levels, finest first, to raw outputs, coarsest first: (B, 3 · (5 + C), H, W) each."""
        return self.neck(self.levels(pyramid))

    def loss(self, outputs: Sequence[Tensor], truth: Truth) -> dict[str, Tensor]:
        """The weighted terms of the loss, whose sum is to be minimised.

        Args:
            outputs: of :meth:`forward`.
            truth: the boxes.

        Returns:
            Scalars xy, wh, confidence and classes, each summed over the levels; see :func:`.loss.scale_terms`.
        """
        grids = [(raw.shape[2], raw.shape[3]) for raw in outputs]
        targets = assign(truth, grids, self.anchors, self.image_size, self.num_classes, self.variant)
        _, terms = yolo_loss(outputs, targets, self.weights)
        return weighted(terms, self.weights)

    def decode(self, outputs: Sequence[Tensor]) -> Predictions:
        """All boxes of the outputs of :meth:`forward`."""
        return decode(outputs, self.anchors, self.image_size, self.num_classes)
