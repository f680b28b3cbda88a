"""One writer per corpus layout; each turns a phantom into the files that the corpus's users hold.

A writer is a module of this package with the name of the layout; its ``LAYOUT`` is an instance of
:class:`medvlp.phantom.layouts.common.Layout`. :mod:`medvlp.phantom.truth` has the masks, claiming a folder and the
manifest written last; :mod:`medvlp.phantom.layouts.labels` the 14 CheXpert labels.
"""

import importlib
from typing import TYPE_CHECKING, Any

from medvlp.errors import check_choice

if TYPE_CHECKING:
    from medvlp.phantom.layouts.common import Layout

LAYOUTS = ("mimic_cxr", "chexpert", "rsna", "siim", "covidx", "cxr14", "object_cxr", "ms_cxr", "open_i")
"""The names of the layouts."""


def layout_writer(layout: str) -> "Layout[Any]":
    """Return the writer of a layout, a member of :data:`LAYOUTS`; its module is imported on first use.

    Raises:
        ConfigError: ``layout`` is unknown.
    """
    check_choice("phantom layout", layout, LAYOUTS)
    return importlib.import_module(f"medvlp.phantom.layouts.{layout}").LAYOUT
