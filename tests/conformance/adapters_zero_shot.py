"""The adapters of zero-shot scores and similarity maps; see ``adapters.py``."""

from collections.abc import Callable

from adapters_baselines import Arrays

ADAPTERS_ZERO_SHOT: dict[str, Callable[[Arrays], Arrays]] = {}
"""File to adapter: biovil_projection_similarity, the maps of maco_grounding.

An adapter may give a part of a file's keys when another room gives the rest: those of one file are put together.
"""

GRADIENTS_ZERO_SHOT: dict[str, Callable[[Arrays], Arrays]] = {}
"""File to gradients of its main loss, keys ``<file>__d_<input>``; called with the file's own inputs."""
