"""The exact truth beside a phantom tree: masks, and the manifest that distinguishes a complete tree from a partial one.

``truth/masks/<image>.npz`` is a plain NumPy archive. ``shape`` holds (height, width); every other key is a mask as
``numpy.packbits`` made it from the flattened (height * width) booleans: ``lungs``, ``heart`` and one per finding name
of the study, all zero where the projection does not show the finding. Without medvlp it reads as
``np.unpackbits(z[key], count=h * w).reshape(h, w).astype(bool)``.
"""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.errors import DataError
from medvlp.phantom.model import PhantomSpec, RenderedView

MANIFEST = "phantom.json"
_PARTIAL = "phantom.json.partial"
_FORMAT = 1  # version of the phantom trees; another version is another tree
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed time in the archives: the same masks are the same bytes


def pack_masks(names: Sequence[str], view: RenderedView) -> bytes:
    """Return a view's masks as the bytes of an ``.npz`` archive; masks of the same name are united."""
    masks = {"lungs": view.lungs, "heart": view.heart}
    for name, mask in zip(names, view.masks, strict=True):
        masks[name] = masks[name] | mask if name in masks else mask
    arrays: dict[str, np.ndarray] = {"shape": np.array(view.lungs.shape, dtype=np.int32)}
    arrays |= {name: np.packbits(np.asarray(mask, dtype=bool)) for name, mask in masks.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            one = io.BytesIO()
            np.lib.format.write_array(one, array, allow_pickle=False)
            info = zipfile.ZipInfo(name + ".npy", _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, one.getvalue(), compresslevel=1)
    return buffer.getvalue()


def read_truth_masks(path: str | Path) -> dict[str, np.ndarray]:
    """Read ``truth/masks/<image>.npz``: lungs, heart and each finding of the study to a (height, width) bool mask.

    Raises:
        DataError: the file is missing or is no archive of masks.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            height, width = archive["shape"].tolist()
            return {
                name: np.unpackbits(archive[name], count=height * width).reshape(height, width).astype(bool)
                for name in archive.files
                if name != "shape"
            }
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no readable truth masks ({error}); write the phantom tree again") from error


def _identity(layout: str, spec: PhantomSpec) -> dict[str, Any]:
    return json.loads(json.dumps({"format": _FORMAT, "layout": layout, "spec": asdict(spec)}))


def is_complete_tree(root: Path, layout: str, spec: PhantomSpec) -> bool:
    """Return whether ``root``, which need not exist, holds a finished phantom tree of this layout and spec."""
    return _is_of(root / MANIFEST, layout, spec)


def is_interrupted_tree(root: Path, layout: str, spec: PhantomSpec) -> bool:
    """Return whether ``root``, which need not exist, holds an unfinished phantom tree of this layout and spec."""
    return not (root / MANIFEST).exists() and _is_of(root / _PARTIAL, layout, spec)


def _is_of(manifest: Path, layout: str, spec: PhantomSpec) -> bool:
    try:
        written = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    expected = _identity(layout, spec)
    return isinstance(written, dict) and all(written.get(key) == value for key, value in expected.items())


def in_phantom(paths: Iterable[str | Path]) -> bool:
    """Return whether any of these paths is, or lies in, a tree that a phantom writer made or began; follows links."""

    def owns(manifest: Path, path: Path) -> bool:
        # Below a manifest may lie what its writer has not made, unless its list of entries is unreadable.
        below = path.relative_to(manifest.parent).parts
        return manifest.is_file() and (not below or below[0] in (_claimed(manifest) or below))

    folders = ((path, up) for path in {Path(path).resolve() for path in paths} for up in (path, *path.parents))
    return any(owns(up / MANIFEST, path) or owns(up / _PARTIAL, path) for path, up in folders)


def begin_tree(root: Path, layout: str, spec: PhantomSpec, entries: Iterable[str], *, overwrite: bool) -> None:
    """Claim a folder for a new tree and, with ``overwrite``, remove an old one from it, complete or not.

    ``entries`` names all files and folders that the writer makes directly in ``root``. Only what an earlier writer
    listed here is ever removed: a folder that no phantom writer has claimed is left alone.

    Raises:
        DataError: the folder is in use.
    """
    if root.exists() and not root.is_dir():
        raise DataError(f"{root}: is a file; name a folder for the phantom.")
    if root.is_dir() and any(root.iterdir()):
        state = "another phantom" if (root / MANIFEST).exists() else "a half-written phantom"
        if not (root / MANIFEST).exists() and not (root / _PARTIAL).exists():
            raise DataError(f"{root}: holds files that are not a phantom; name an empty folder.")
        if not overwrite:
            raise DataError(f"{root}: holds {state}; pass overwrite=True to replace it, or name an empty folder.")
        # The claim is written before the manifest is removed: an interrupted removal leaves a recognisable folder.
        old = _claimed(root / MANIFEST) | _claimed(root / _PARTIAL)
        _claim(root, layout, spec, old | set(entries))
        (root / MANIFEST).unlink(missing_ok=True)
        for name in sorted(old):
            entry = root / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
    root.mkdir(parents=True, exist_ok=True)
    _claim(root, layout, spec, set(entries))


def _claim(root: Path, layout: str, spec: PhantomSpec, entries: set[str]) -> None:
    text = json.dumps(_identity(layout, spec) | {"entries": sorted(entries)})
    (root / _PARTIAL).write_text(text, encoding="utf-8")


def _claimed(manifest: Path) -> set[str]:
    # The entries that a manifest lists; plain names only, so that nothing outside the tree can be meant.
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))["entries"]
        return {name for name in entries if name == Path(name).name and name not in {"", "..", MANIFEST, _PARTIAL}}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def finish_tree(root: Path, layout: str, spec: PhantomSpec, facts: dict[str, Any]) -> None:
    """Write the manifest, the last file of a tree, with some facts (counts, a digest)."""
    entries = {"entries": sorted(_claimed(root / _PARTIAL))}
    text = json.dumps(_identity(layout, spec) | facts | entries, indent=2) + "\n"
    (root / _PARTIAL).write_text(text, encoding="utf-8")
    os.replace(root / _PARTIAL, root / MANIFEST)
