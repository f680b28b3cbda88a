"""Detection on a frozen encoder."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from medvlp.errors import ConfigError, check_choice, check_range
from medvlp.losses.precision import total
from medvlp.metrics.bootstrap import Measures
from medvlp.metrics.detection import COLUMNS, detection_measures
from medvlp.metrics.samples import SampleStore
from medvlp.tasks.base import Features, Task, TrainedProtocol, protocol_settings, seeded
from medvlp.tasks.detection.decode import Convention, Detections, detect
from medvlp.tasks.detection.loss import Truth, Variant, truth_of
from medvlp.tasks.detection.pyramid import plan_levels
from medvlp.tasks.detection.ultralytics_head import UltralyticsYOLOv3
from medvlp.tasks.detection.yolo import YOLOv3
from medvlp.tasks.encoder import EncoderSource, optim_from
from medvlp.training.optim import OptimConfig

Head = Literal["yolov3", "ultralytics"]

_OPTIM = OptimConfig(lr=5e-4, weight_decay=1e-6, decay_all=True, schedule="constant")
PROTOCOLS: dict[str, TrainedProtocol] = {
    "honest": TrainedProtocol(optim=_OPTIM),
    "mgca": TrainedProtocol(encoder_mode="train", optim=_OPTIM),
}
"""Protocols by name; see :class:`Detection`."""


class Detection(Task):
    """YOLOv3 on the frozen encoder's pyramid.

    ========= ================================================================================================
    protocol  settings
    ========= ================================================================================================
    honest    ours: as mgca, but the frozen encoder is in eval mode, so that its pyramids can be stored
    mgca      MGCA's code and G2D's paper: gradients off, batch norms in train mode; AdamW 5e-4, weight decay
              1e-6, no schedule. RSNA's 1 % takes 2e-4, Object-CXR's 2.5e-4 (G2D: 2e-4): in the configs
    ========= ================================================================================================

    In every protocol the metrics are those of :func:`medvlp.metrics.detection.detection_measures`: average precision
    over all images and all detections down to ``min_score``, and beside it the papers' number, which drops detections
    below 0.5 and then images without a detection together with their truth. Both come from the same detections, since a
    score cut commutes with non-maximum suppression. Choose checkpoints by ``val/map_coco`` or, as the papers do, by
    ``val/map_mgca``.

    Images without a box are background. For training, boxes are clipped to the image, and those without area are
    skipped. Any encoder with feature maps works: of a ResNet the three deepest levels are used, of a vision transformer
    three levels made of its single grid (:func:`medvlp.tasks.detection.pyramid.plan_levels`).

    Args:
        encoder: source of the encoder.
        protocol: see the table.
        head: "yolov3" as in the papers, or "ultralytics" (needs the extra ``medvlp[detection]``).
        variant: of the papers' head: "official" assigns a box on all three levels, "yolov3" to the best of nine
            anchors.
        width: factor on the head's channels, for narrow encoders.
        num_classes: classes of boxes; 1 merges all classes, as the papers do.
        min_score: lowest score of a kept detection.
        nms_iou: overlap from which the lower of two detections of a class is dropped.
        nms: convention of that overlap: "official" (+1 pixel) or "plain".
        max_candidates: detections of an image before the suppression, highest scores first.
        max_detections: detections of an image after it.
        frozen: see :class:`~medvlp.tasks.base.Task`.
        encoder_mode: as above.
        optim: as above.
        features: as above. The size of the stored pyramids is printed before they are written; those of a ResNet-50 at
            224 px take 1.4 MB an image in float16, so 22 GB for RSNA's training part.
        features_dtype: as above.
        **options: of :class:`~medvlp.tasks.base.Task`: views, features_dir, features_limit_gb, resamples, …
    """

    task = "detection"

    def __init__(
        self,
        encoder: EncoderSource | None = None,
        protocol: str = "honest",
        head: Head = "yolov3",
        variant: Variant = "official",
        width: float = 1.0,
        num_classes: int = 1,
        min_score: float = 0.001,
        nms_iou: float = 0.5,
        nms: Convention = "official",
        max_candidates: int = 1000,
        max_detections: int = 100,
        frozen: bool = True,
        encoder_mode: Literal["eval", "train"] | None = None,
        optim: OptimConfig | None = None,
        image_size: int = 224,
        features: Features = "cached",
        features_dtype: Literal["float32", "float16"] = "float16",
        **options: Any,
    ) -> None:
        settings = protocol_settings(
            "detection", PROTOCOLS, protocol, frozen=frozen, encoder_mode=encoder_mode, optim=optim_from(optim)
        )
        check_choice("head", head, get_args(Head))
        check_choice("nms", nms, get_args(Convention))
        check_range("[0, 1)", min_score=min_score)
        check_range("(0, 1]", nms_iou=nms_iou)
        super().__init__(
            encoder,
            protocol=protocol,
            image_size=image_size,
            frozen=settings.frozen,
            encoder_mode=settings.encoder_mode,
            optim=settings.optim,
            features=features,
            features_dtype=features_dtype,
            dense=True,
            **options,
        )
        self.num_classes = num_classes
        self.choice: dict[str, Any] = {
            "min_score": min_score,
            "iou_threshold": nms_iou,
            "convention": nms,
            "max_candidates": max_candidates,
            "max_detections": max_detections,
        }
        self.plan = plan_levels(self.encoder.reductions)
        self.extracts = f"pyramid levels {', '.join(map(str, self.plan.used))}"
        channels = [self.encoder.channels[level] for level in self.plan.used]
        size = (image_size, image_size)
        with seeded(3):
            self.head: YOLOv3 | UltralyticsYOLOv3 = (
                YOLOv3(self.plan, channels, size, num_classes, variant, width)
                if head == "yolov3"
                else UltralyticsYOLOv3(self.plan, channels, size, num_classes, width)
            )

    def _check_training(self, train: Any) -> None:
        if not train.annotated:
            raise ConfigError(f"no box in the training part: all of its {len(train)} images are without")

    def _check_data(self) -> None:
        datamodule = self._datamodule()
        if "boxes" not in datamodule.targets:
            raise ConfigError("detection needs boxes: set data.init_args.task: detection")
        if datamodule.image_size != self.image_size:
            raise ConfigError(
                f"the boxes are in pixels of images of {datamodule.image_size} px, but model.init_args.image_size is "
                f"{self.image_size}: make them equal"
            )
        names = next((s.box_names for s in (datamodule.train_set, datamodule.val_set, datamodule.test_set) if s), ())
        if self.num_classes not in (1, max(1, len(names))):
            raise ConfigError(
                f"the boxes have {len(names)} classes ({', '.join(names)}), but num_classes is {self.num_classes}; "
                "set it to that, or to 1 to merge all classes"
            )

    def extract(self, images: Tensor) -> Sequence[Tensor]:
        """Return the levels of the pyramid that the head uses, finest first."""
        pyramid = self.encoder(images)
        return [pyramid[level] for level in self.plan.used]

    def _truth(self, batch: dict[str, Any]) -> Truth:
        labels = batch["box_labels"] if self.num_classes > 1 else None
        return truth_of(batch["boxes"], labels, (self.image_size, self.image_size))

    def loss(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the weighted terms of the head's loss."""
        return self.head.loss(self.head(self.features(batch)), self._truth(batch))

    def store(self) -> SampleStore:
        """Detections and truth of each image, in pixels of the image as the model sees it."""
        return SampleStore([], COLUMNS)

    def detections(self, outputs: Any) -> Detections:
        """Apply score cut and non-maximum suppression to the head's outputs."""
        return detect(self.head.decode(outputs), **self.choice)

    def _columns(self, outputs: Any, batch: dict[str, Any]) -> dict[str, Any]:
        detections = self.detections(outputs)
        labels = batch["box_labels"]
        return {
            "boxes": detections.per_image(detections.boxes),
            "scores": detections.per_image(detections.scores),
            "labels": detections.per_image(detections.labels),
            "truth": batch["boxes"],
            "truth_labels": labels if self.num_classes > 1 else [torch.zeros_like(label) for label in labels],
        }

    def columns(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`store`."""
        return self._columns(self.head(self.features(batch)), batch)

    def pictures(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return the detected boxes with their scores."""
        columns = self.columns(batch)
        names = ("boxes", "scores")
        return {name: pad_sequence(columns[name], True, float("nan")).float().cpu().numpy() for name in names}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Override: loss and detections from one forward pass."""
        outputs = self.head(self.features(batch))
        self._log_val_loss(total(self.head.loss(outputs, self._truth(batch))), batch)
        self._collect("validate", batch, self._columns(outputs, batch))

    @classmethod
    def measures_from(cls, facts: Mapping[str, Any]) -> Measures:
        """See :func:`medvlp.metrics.detection.detection_measures`."""
        return detection_measures

    def facts(self) -> dict[str, Any]:
        """Strides of the three levels."""
        return {"strides": [float(stride) for stride in self.plan.strides]}
