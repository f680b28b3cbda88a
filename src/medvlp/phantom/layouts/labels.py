"""The 14 CheXpert labels of a phantom study: as a report labeller would read them, and as they are."""

import re
from collections.abc import Mapping

from medvlp.phantom.model import CATALOGUE, Finding, PhantomReport

CHEXPERT_LABELS: list[str] = CATALOGUE["chexpert_labels"]
"""The 14 labels in the column order of CheXpert."""

LABELS = sorted(CHEXPERT_LABELS)
"""The 14 labels in the column order of MIMIC-CXR-JPG."""

_OPACITIES = ("Consolidation", "Pneumonia", "Infiltration", "Atelectasis", "Edema", "COVID-19", "Fibrosis")
_AIRSPACE = ("Consolidation", "Pneumonia", "Infiltration")
_NORMAL_MEDIASTINUM = re.compile(
    r"mediastin[^.]*\b(?:normal|unremarkable|preserved|WNL)|\bnormal\b[^.]*mediastinal", re.IGNORECASE
)


def report_labels(report: PhantomReport) -> dict[str, float | None]:
    """Label a report as a report labeller would.

    Returns:
        Each of the 14 labels to 1.0 (present), 0.0 (negated), -1.0 (uncertain) or None (not mentioned).
    """
    said = report.mentions
    labels: dict[str, float | None] = {name: said.get(name) for name in LABELS}
    labels["Lung Lesion"] = _strongest(said, ("Nodule", "Mass"))
    labels["Pleural Other"] = said.get("Pleural Thickening")
    opacity = _strongest(said, _OPACITIES)
    # "No edema" says nothing about opacities in general; "no consolidation" does.
    labels["Lung Opacity"] = opacity if opacity else _strongest(said, _AIRSPACE)
    text = " ".join(report.sections.values())
    if "enlargement of the cardiomediastinal silhouette" in text:
        labels["Enlarged Cardiomediastinum"] = said.get("Cardiomegaly")
    elif _NORMAL_MEDIASTINUM.search(text):
        labels["Enlarged Cardiomediastinum"] = 0.0
    positive = any(value != 0.0 for name, value in said.items() if name != "Support Devices")
    labels["No Finding"] = None if positive else 1.0
    return labels


def _strongest(said: Mapping[str, float], names: tuple[str, ...]) -> float | None:
    values = {said[name] for name in names if name in said}
    return next((value for value in (1.0, -1.0, 0.0) if value in values), None)


def exact_labels(findings: tuple[Finding, ...]) -> dict[str, float]:
    """Return each of the 14 labels as 1.0 or 0.0, whatever the report says."""
    present = {finding.name for finding in findings}
    labels = {name: float(name in present) for name in LABELS}
    labels["Enlarged Cardiomediastinum"] = float("Cardiomegaly" in present)
    labels["Lung Lesion"] = float(bool(present & {"Nodule", "Mass"}))
    labels["Lung Opacity"] = float(bool(present & set(_OPACITIES)))
    labels["Pleural Other"] = float("Pleural Thickening" in present)
    labels["No Finding"] = float(not present - {"Support Devices"})
    return labels
