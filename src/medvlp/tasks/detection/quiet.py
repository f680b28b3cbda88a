"""Import ultralytics without its side effects: network, telemetry, settings in the home folder, global state.

At import, version 8.4 of the package resolves host names to see whether it is online, and writes a settings file whose
``sync`` enables usage events and crash reports. It also sets environment variables (``OMP_NUM_THREADS`` among them),
print options of torch and numpy and OpenCV's threads, adds warning filters, and replaces ``torch.save``.
"""

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medvlp.errors import ConfigError

_OFF = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
"""No network, no pip, no log lines; kept set for later calls into the package."""


@contextmanager
def _unchanged() -> Iterator[None]:
    """Restore what importing ultralytics changes in this process."""
    environment = dict(os.environ)
    save = torch.save
    print_options = getattr(torch._tensor_str, "PRINT_OPTS", None)
    printing = dict(vars(print_options)) if print_options is not None else {}
    cv2 = import_module("cv2") if find_spec("cv2") is not None else None
    threads = cv2.getNumThreads() if cv2 is not None else 0
    try:
        with warnings.catch_warnings(), np.printoptions():
            yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.save = save
        for name, value in printing.items():
            setattr(print_options, name, value)
        if cv2 is not None:
            cv2.setNumThreads(threads)


@cache
def _settings_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="medvlp-ultralytics-")


def import_ultralytics(*modules: str) -> list[Any]:
    """Import modules of ultralytics by their names under the package ("nn.tasks"; "" is the package itself).

    Its settings live in a temporary folder of this process, with ``sync: false``; a settings file of the user is
    neither read nor written. If the user has imported ultralytics before, it is left as it is.

    Raises:
        ConfigError: ultralytics, or one of the packages that it needs, is not installed.
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
