"""The adapters of metrics and segmentation losses; see ``adapters.py``."""

from collections.abc import Callable

from adapters_baselines import Arrays

ADAPTERS_TASKS: dict[str, Callable[[Arrays], Arrays]] = {}
"""File to adapter. An adapter may give a part of a file's keys when another room gives the rest."""

GRADIENTS_TASKS: dict[str, Callable[[Arrays], Arrays]] = {}
"""File to gradients of its main loss, keys ``<file>__d_<input>``; called with the file's own inputs."""
