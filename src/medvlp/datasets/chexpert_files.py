"""Where the images of CheXpert lie: in one tree, or in the batches of the download."""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from medvlp.errors import DataError

_THREADS = 16
_CHUNK = 64  # patients per task of a thread


def patient_folders(root: Path, batches: Sequence[Path], pool: str, source: str = "") -> dict[str, str]:
    """Return patient to absolute path of its folder, for one released part.

    The download holds the training patients directly in its batches, those of the validation set in their folder
    ``valid``. Without a ``source``, where to get the corpus, finding none is no error.

    Raises:
        DataError: there is no such folder, or a patient is in two of them.
    """
    places = [root / pool, *(b / pool for b in batches), *(batches if pool == "train" else ())]
    found: dict[str, str] = {}
    for place in places:
        try:
            with os.scandir(os.path.abspath(place)) as entries:
                # links to folders are fine; whether they lead out of the corpus is for the doctor
                folders = [e.path for e in entries if e.name.startswith("patient") and e.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            continue
        for path in folders:
            patient = os.path.basename(path)
            if patient in found:
                raise DataError(
                    f"{patient} lies in {os.path.dirname(found[patient])} and in {place}; set root to one release"
                )
            found[patient] = path
    if not found and source:
        raise DataError(f"no folder of a patient lies in {' or '.join(map(str, places))}; get the images from {source}")
    return found


def views_of(folders: Mapping[str, str], patients: Iterable[str]) -> dict[str, str]:
    """List the images of patients: "patient00001/study1/view1_frontal.jpg" and so on, to their paths.

    Threads, because on a network disk the listing of 250,000 folders waits for the disk.
    """
    there = [(p, folders[p]) for p in patients if p in folders]
    chunks = [there[i : i + _CHUNK] for i in range(0, len(there), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        names = [name for names in pool.map(_views, chunks) for name in names]
    return {name: f"{folders[name.partition('/')[0]]}/{name.partition('/')[2]}" for name in names}


def _views(patients: Sequence[tuple[str, str]]) -> list[str]:
    names = []
    for patient, folder in patients:
        with os.scandir(folder) as studies:
            for study in studies:
                try:
                    names += [f"{patient}/{study.name}/{name}" for name in os.listdir(study.path)]
                except NotADirectoryError:
                    continue  # a stray file beside the studies
    return names
