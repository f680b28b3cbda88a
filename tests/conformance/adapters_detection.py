"""The adapters of the detection head, its loss, decoding and non-maximum suppression; see ``adapters.py``."""

from collections.abc import Callable

from adapters_baselines import Arrays

ADAPTERS_DETECTION: dict[str, Callable[[Arrays], Arrays]] = {}
"""File to adapter: mgca_yolo_one_scale, mgca_yolo_three_scales, mgca_nms."""

GRADIENTS_DETECTION: dict[str, Callable[[Arrays], Arrays]] = {}
"""File to gradients of its main loss, keys ``<file>__d_<input>``; called with the file's own inputs.

``mgca_yolo_one_scale`` gives ``mgca_yolo_one_scale__d_input``.
"""
