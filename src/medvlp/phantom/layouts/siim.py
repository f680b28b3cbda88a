"""Writes a phantom in the layout of the SIIM-ACR Pneumothorax Segmentation challenge (see docs/datasets/siim.md).

PatientID is another random name for each image, as in the release; in ``truth/`` the ``image_id`` is the
SOPInstanceUID. Odd cases: an image of several rows with overlapping masks, a file without any row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medvlp.phantom.layouts.common import ALL_CASES, Job, Layout, Output, frontal, mask_of, random
from medvlp.phantom.layouts.dicom import random_uuid, released_file, released_uids
from medvlp.phantom.model import PhantomSpec, Study

_PURPOSE = 7_401  # of the random streams
_SEVERAL_ROWS = 0.14  # 334 of the release's 2,379 positive training images
_NO_ROW = 0.0035  # 37 of its 10,712 training files
_STAGE_1, _STAGE_2 = "train-rle.csv", "stage_2_train.csv"


@dataclass(frozen=True)
class _Job(Job):
    several_rows: bool
    no_row: bool


class _SIIMLayout(Layout[_Job]):
    name = "siim"

    def jobs(self, spec: PhantomSpec, studies: Sequence[tuple[Study, str]]) -> list[_Job]:
        train = [study for study, split in studies if split != "test"] if len(studies) >= ALL_CASES else []
        ill = [study.index for study in train if any(finding.name == "Pneumothorax" for finding in study.findings)]
        several, lone = ill[:1], [study.index for study in train if study.index not in ill][:1]
        jobs = []
        for study, split in studies:
            draws = random(2, study.seed, _PURPOSE)
            # Each of the images that stage 2 added has one row.
            several_rows = split != "test" and (draws[0] < _SEVERAL_ROWS or study.index in several)
            no_row = split != "test" and study.index not in several and (draws[1] < _NO_ROW or study.index in lone)
            jobs.append(_Job(study, split, several_rows, no_row))
        return jobs

    def write_job(self, spec: PhantomSpec, job: _Job, out: Output) -> None:
        study = job.study
        rng = np.random.default_rng([study.seed, _PURPOSE, 1])
        uids, patient_id = released_uids(study.index, rng), random_uuid(rng)
        # The release is not sorted by anything.
        out.key, out.patient = (rng.random(), study.index), study.patient.index
        view = frontal(spec, study)
        data = released_file(view.image, study, uids, patient_id, study.patient.age)
        out.save(f"{self.folders[job.split == 'test']}/{'/'.join(uids)}.dcm", data)
        sop_uid = uids[2]
        out.save_truth(sop_uid, job, view)
        if job.no_row:
            out.add("without_row", sop_uid)
            return
        mask = mask_of(study, view, {"Pneumothorax"})
        masks = _overlapping(mask) if job.several_rows else [mask]
        for value in [encode_runs(part) for part in masks] if mask.any() else ["-1"]:
            if job.split != "test":  # with a blank in front, so that an image without pneumothorax has " -1"
                out.add(_STAGE_1, f"{sop_uid}, {value}")
            out.add(_STAGE_2, f"{sop_uid},{value}")


LAYOUT = _SIIMLayout()


def _overlapping(mask: np.ndarray) -> list[np.ndarray]:
    """Return an upper and a lower part that overlap as two readers' outlines do; the mask alone if it is too low."""
    lines = np.flatnonzero(mask.any(axis=1))
    if lines.size < 3:
        return [mask]
    first, last = int(lines[0]), int(lines[-1]) + 1
    third = max(1, (last - first) // 3)
    rows = np.arange(len(mask))[:, None]
    return [mask & (rows < last - third), mask & (rows >= first + third)]


def encode_runs(mask: np.ndarray) -> str:
    """Encode a mask (H, W) in the run lengths of SIIM-ACR: pairs "gap length", joined by blanks.

    The pixels run down the columns, from left to right; a gap counts those from the end of the run before.
    """
    edges = np.flatnonzero(np.diff(mask.ravel(order="F").astype(np.int8), prepend=0, append=0))  # start, end, start, …
    return " ".join(map(str, np.diff(edges, prepend=0).tolist()))
