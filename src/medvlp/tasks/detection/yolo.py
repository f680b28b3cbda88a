"""The papers' detector on a pyramid: levels, neck, loss and decoding in one module."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medvlp.errors import check_choice
from medvlp.tasks.detection.decode import Predictions, decode
from medvlp.tasks.detection.head import YOLOv3Neck
from medvlp.tasks.detection.loss import LossWeights, weighted, yolo_loss
from medvlp.tasks.detection.pyramid import LevelPlan, ThreeLevels
from medvlp.tasks.detection.targets import VARIANTS, Truth, Variant, assign

COCO_ANCHORS: tuple[tuple[tuple[float, float], ...], ...] = (
    ((116, 90), (156, 198), (373, 326)),
    ((30, 61), (62, 45), (59, 119)),
    ((10, 13), (16, 30), (33, 23)),
)
"""Width and height in pixels of a 416 px image (Redmon and Farhadi 2018, section 2.3), for the coarsest level first."""
_COCO_SIZE = 416


def scaled_anchors(image_size: tuple[int, int]) -> Tensor:
    """Scale the anchors by image size / 416, as LoVT, MGCA and G2D do.

    The largest three belong to the coarsest of three levels, whatever its stride. So a pyramid of strides 16, 8, 4 of a
    112 px image has the grids and, in cells, the anchors of the papers' strides 32, 16, 8 of a 224 px image.

    Args:
        image_size: height and width in pixels.

    Returns:
        (3, 3, 2) float32: level (coarsest first), anchor, (width, height) in pixels.
    """
    height, width = image_size
    scale = torch.tensor([width / _COCO_SIZE, height / _COCO_SIZE], dtype=torch.float32)
    return torch.tensor(COCO_ANCHORS, dtype=torch.float32) * scale


class YOLOv3(nn.Module):
    """YOLOv3 on the pyramid of a frozen encoder, as LoVT, MGCA and G2D train it.

    Args:
        plan: source of its three levels.
        channels: of the encoder's levels ``plan.used``.
        image_size: height and width of the images in pixels.
        num_classes: classes of the boxes.
        variant: "official" assigns a box on all three levels, "yolov3" to the best of the nine anchors; see
            :func:`medvlp.tasks.detection.targets.assign`.
        width: factor on the papers' channels.
        weights: of the loss's terms.

    Raises:
        ConfigError: unknown variant.
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
        check_choice("detection variant", variant, VARIANTS)
        self.levels = ThreeLevels(plan, channels)
        neck = YOLOv3Neck(self.levels.channels, num_classes, width=width)
        # 20 % faster on CPUs, and the layout that tensor cores expect
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
        """Return the weighted terms, xy, wh, confidence and classes, each summed over the levels of :meth:`forward`."""
        grids = [(raw.shape[2], raw.shape[3]) for raw in outputs]
        targets = assign(truth, grids, self.anchors, self.image_size, self.num_classes, self.variant)
        _, terms = yolo_loss(outputs, targets, self.weights)
        return weighted(terms, self.weights)

    def decode(self, outputs: Sequence[Tensor]) -> Predictions:
        """Return all boxes of the outputs of :meth:`forward`."""
        return decode(outputs, self.anchors, self.image_size, self.num_classes)
