"""One writer per corpus layout; each turns a phantom into the files that the corpus's users hold.

A writer is a module of this package, entered in :data:`LAYOUTS`, that offers

``write(spec, root, *, workers=1, progress=None, overwrite=False) -> Path``
    writes the tree of ``spec`` into ``root`` and returns ``root``. The same spec gives the same bytes, whatever the
    number of worker processes. A complete tree of the same spec is left alone; another one is a ``DataError`` unless
    ``overwrite``. ``progress`` is called with the number of studies finished so far.
``is_complete(root, spec) -> bool``
    whether ``root`` holds a finished tree of ``spec``.

:mod:`medvlp.phantom.layouts.common` runs the writers and saves their files; :mod:`medvlp.phantom.truth` has the masks,
claiming a folder and the manifest written last; :mod:`medvlp.phantom.layouts.labels` the 14 CheXpert labels.
"""

import importlib
from types import ModuleType

from medvlp.errors import ConfigError

LAYOUTS: dict[str, str] = {
    "mimic_cxr": "medvlp.phantom.layouts.mimic_cxr",
    "chexpert": "medvlp.phantom.layouts.chexpert",
    "rsna": "medvlp.phantom.layouts.rsna",
    "siim": "medvlp.phantom.layouts.siim",
    "covidx": "medvlp.phantom.layouts.covidx",
    "cxr14": "medvlp.phantom.layouts.cxr14",
    "object_cxr": "medvlp.phantom.layouts.object_cxr",
    "ms_cxr": "medvlp.phantom.layouts.ms_cxr",
    "open_i": "medvlp.phantom.layouts.open_i",
}
"""Layout name to the module that writes it."""


def layout_module(layout: str) -> ModuleType:
    """The writer module of a layout, imported on first use.

    Args:
        layout: a key of :data:`LAYOUTS`.

    Raises:
        ConfigError: there is no such layout.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f'There is no phantom layout "{layout}"; choose one of: {", ".join(sorted(LAYOUTS))}.')
    return importlib.import_module(LAYOUTS[layout])
