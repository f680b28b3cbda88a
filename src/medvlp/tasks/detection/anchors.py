"""YOLOv3's nine anchors."""

import torch
from torch import Tensor

COCO_ANCHORS: tuple[tuple[tuple[float, float], ...], ...] = (
    ((116, 90), (156, 198), (373, 326)),
    ((30, 61), (62, 45), (59, 119)),
    ((10, 13), (16, 30), (33, 23)),
)
"""Width and height in pixels of a 416 px image (Redmon and Farhadi 2018, section 2.3), for the coarsest level first."""

COCO_SIZE = 416


def scaled_anchors(image_size: tuple[int, int]) -> Tensor:
    """The anchors in pixels of an image of another size, as LoVT, MGCA and G2D use them: scaled by size / 416.

    The largest three belong to the coarsest of three levels, whatever its stride. So a pyramid of strides 16, 8, 4 of a
    112 px image has the grids and, in cells, the anchors of the papers' strides 32, 16, 8 of a 224 px image.

    Args:
        image_size: height and width in pixels.

    Returns:
        (3, 3, 2) float32: level (coarsest first), anchor, (width, height).
    """
    height, width = image_size
    scale = torch.tensor([width / COCO_SIZE, height / COCO_SIZE], dtype=torch.float32)
    return torch.tensor(COCO_ANCHORS, dtype=torch.float32) * scale
