"""``head: ultralytics``: the YOLOv3 neck and ``Detect`` head of the ultralytics package on the encoder's pyramid.

The package is AGPL-3.0 and an extra; it is imported only when such a head is built. At import, version 8.4 resolves
host names to see whether it is online, and writes a settings file in the home folder whose ``sync`` enables usage
events and crash reports. It also sets environment variables (``OMP_NUM_THREADS`` among them), print options of torch
and numpy and OpenCV's threads, adds warning filters, and replaces ``torch.save``: see :func:`import_ultralytics`.
"""

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from medvlp.compat import keep_print_options
from medvlp.errors import ConfigError
from medvlp.losses.precision import exact
from medvlp.tasks.detection.decode import Predictions, corners_of
from medvlp.tasks.detection.loss import Truth
from medvlp.tasks.detection.pyramid import LevelPlan, ThreeLevels

_OFF = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
"""No network, no pip, no log lines; kept set for later calls into the package."""


@contextmanager
def _unchanged() -> Iterator[None]:
    """Restore what importing ultralytics changes in this process."""
    environment = dict(os.environ)
    save = torch.save
    cv2 = import_module("cv2") if find_spec("cv2") is not None else None
    threads = cv2.getNumThreads() if cv2 is not None else 0
    try:
        with warnings.catch_warnings(), np.printoptions(), keep_print_options():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.save = save
        if cv2 is not None:
            cv2.setNumThreads(threads)


@cache
def _settings_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="medvlp-ultralytics-")


def import_ultralytics(*modules: str) -> list[Any]:
    """Import modules of ultralytics ("nn.tasks"; "" is the package itself) without network, telemetry and side effects.

    Its settings live in a temporary folder of this process, with ``sync: false``; a settings file of the user is
    neither read nor written. If the user has imported ultralytics before, it is left as it is.
    """
    missing = "head: ultralytics needs the package ultralytics (AGPL-3.0); install it with: pip install"
    if find_spec("ultralytics") is None:
        raise ConfigError(f"{missing} 'medvlp[detection]'")
    names = [f"ultralytics.{name}".removesuffix(".") for name in modules]
    try:
        if "ultralytics" in sys.modules:
            with _unchanged():
                return [import_module(name) for name in names]
        os.environ.update(_OFF)
        with _unchanged():
            folder = Path(_settings_folder().name)
            os.environ["YOLO_CONFIG_DIR"] = str(folder)
            (folder / "Ultralytics").mkdir(exist_ok=True)
            (folder / "Ultralytics" / "settings.json").write_text(json.dumps({"sync": False}))
            package = import_module("ultralytics")
            package.settings.update({"sync": False})  # a version with another schema resets the file
            return [import_module(name) for name in names]
    except ImportError as error:
        raise ConfigError(f"{missing} 'medvlp[detection]' (importing it failed: {error})") from error


_MODEL = Path("cfg") / "models" / "v3" / "yolov3.yaml"


def _model_description(package: Any) -> dict[str, Any]:
    path = Path(package.__file__).parent / _MODEL
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"ultralytics {package.__version__} has no model {_MODEL}; install another version with: pip install "
            "'medvlp[detection]'"
        ) from error


def _on_a_pyramid(model: dict[str, Any], channels: Sequence[int]) -> dict[str, Any]:
    """Replace the backbone of a model description by the given levels, coarsest first.

    The head of the description refers to backbone layers by number: the last one (coarsest), and those that its
    concatenations take. Each of them becomes an ``Index`` into the list of levels, so that the numbers stay valid.
    """
    length = len(model["backbone"])
    inputs = {layer for source, *_ in model["head"] for layer in (source if isinstance(source, list) else [source])}
    layers = [length - 1, *sorted((layer for layer in inputs if 0 <= layer < length), reverse=True)]
    if len(layers) != len(channels):
        raise ConfigError(f"ultralytics' YOLOv3 takes {len(layers)} levels of its backbone, not {len(channels)}")
    backbone: list[list[Any]] = [[-1, 1, "nn.Identity", []]]
    backbone += [[0, 1, "Index", [channels[0], 0]] for _ in range(length - 1)]
    for level, layer in enumerate(layers):
        backbone[layer] = [0, 1, "Index", [channels[level], level]]
    return {**model, "backbone": backbone}


class UltralyticsYOLOv3(nn.Module):
    """Ultralytics' YOLOv3 neck, anchor-free ``Detect`` head and loss (task-aligned assignment, CIoU, DFL).

    Its layers are those of the package's ``yolov3.yaml`` without the backbone. It doubles grids from coarse to fine, so
    levels whose sides are not g, 2g, 4g (an image size that is no multiple of the largest stride) are resized to that,
    bilinearly, and their strides are image size / side. Detect stays in float32 in a half-precision run.

    Same interface as :class:`~medvlp.tasks.detection.yolo.YOLOv3`, but :meth:`decode` needs outputs of evaluation mode,
    and images must be square. ``width`` is a factor on the package's channels.
    """

    exact_parts = ("detect",)

    def __init__(
        self,
        plan: LevelPlan,
        channels: Sequence[int],
        image_size: tuple[int, int],
        num_classes: int = 1,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if image_size[0] != image_size[1]:
            raise ConfigError(f"head: ultralytics takes square images, not {image_size[0]} × {image_size[1]}")
        package, tasks, losses, utils, torch_utils = import_ultralytics(
            "", "nn.tasks", "utils.loss", "utils", "utils.torch_utils"
        )
        self.levels = ThreeLevels(plan, channels)
        self.image_size = image_size
        self.num_classes = num_classes
        described = _on_a_pyramid(_model_description(package), self.levels.channels)
        described.update(nc=num_classes, width_multiple=width)
        # each layer knows its number (i) and where its input comes from (f)
        self.model, self.saved = tasks.parse_model(described, ch=self.levels.channels[0], verbose=False)
        torch_utils.initialize_weights(self.model)
        self.detect: Any = self.model[-1]
        self.detect.stride = torch.tensor(plan.strides[::-1], dtype=torch.float32)
        self.detect.bias_init()
        gains = utils.DEFAULT_CFG_DICT
        self.args = SimpleNamespace(box=gains["box"], cls=gains["cls"], dfl=gains["dfl"])
        self._criterion_class = losses.v8DetectionLoss
        self._criterion: Any = None

    def _aligned(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Resize the levels to sides g, 2g, 4g, and set the strides accordingly."""
        rows, columns = levels[0].shape[-2:]
        sides = [(rows << i, columns << i) for i in range(len(levels))]
        # the head lists its levels from fine to coarse
        strides = torch.tensor([self.image_size[0] / side for side, _ in reversed(sides)], dtype=torch.float32)
        if not torch.equal(strides, self.detect.stride.cpu()):
            self.detect.stride, self._criterion = strides, None
        return [
            level if level.shape[-2:] == side else F.interpolate(level, size=side, mode="bilinear", align_corners=False)
            for level, side in zip(levels, sides, strict=True)
        ]

    def forward(self, pyramid: Sequence[Tensor]) -> Any:
        """The used levels, finest first, to the output of ``Detect`` in the mode of this module."""
        features: Any = self._aligned(self.levels(pyramid))
        kept: list[Any] = []
        for layer in self.model:
            if isinstance(layer.f, list):
                features = [features if source == -1 else kept[source] for source in layer.f]
            elif layer.f != -1:
                features = kept[layer.f]
            if layer is self.detect:
                # it decodes to pixels, for which bfloat16 has too few digits
                with torch.autocast(features[0].device.type, enabled=False):
                    return layer(list(exact(*features)))
            features = layer(features)
            kept.append(features if layer.i in self.saved else None)
        raise AssertionError("the last layer is Detect")

    def loss(self, outputs: Any, truth: Truth) -> dict[str, Tensor]:
        """Return the package's loss per image: box (CIoU), classes and dfl, weighted by its own gains."""
        rows = truth.valid.nonzero().squeeze(1)
        dtype, default = next(self.detect.parameters()).dtype, torch.get_default_dtype()
        batch = {
            "batch_idx": truth.owner[rows],
            "cls": truth.labels[rows].to(dtype),
            "bboxes": truth.boxes[rows].to(dtype),
        }
        device = truth.boxes.device
        if self._criterion is None or self._criterion.device != device:
            self._criterion = self._criterion_class(self)
        with torch.autocast(device.type, enabled=False):
            torch.set_default_dtype(dtype)  # the package creates targets of the default dtype
            try:
                summed, _ = self._criterion(outputs, batch)
            finally:
                torch.set_default_dtype(default)
        return dict(zip(("box", "classes", "dfl"), (summed / truth.batch).unbind(), strict=True))

    def decode(self, outputs: Any) -> Predictions:
        """Return all boxes of evaluation-mode outputs; the score is the probability of the best class."""
        if not isinstance(outputs, tuple):
            raise ConfigError("head: ultralytics decodes boxes only in evaluation mode; call eval() before forward")
        boxes = exact(outputs[0])[0].transpose(1, 2)
        classes = boxes[..., 4:]
        return Predictions(corners_of(boxes[..., :4]), classes.amax(2), classes)
