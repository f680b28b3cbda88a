"""The 14 CheXpert labels of a phantom study: as a report labeller would read them, and as they are."""

import re

from medvlp.phantom.model import CATALOGUE, Finding, PhantomReport

CHEXPERT_LABELS: list[str] = CATALOGUE["chexpert_labels"]  # the 14 labels in the column order of CheXpert

LABELS = sorted(CHEXPERT_LABELS)  # the 14 labels in the column order of MIMIC-CXR-JPG

_AIRSPACE = ("Consolidation", "Pneumonia", "Infiltration")
_FINDINGS = {name: (name,) for name in LABELS} | {
    "Enlarged Cardiomediastinum": ("Cardiomegaly",),
    "Lung Lesion": ("Nodule", "Mass"),
    "Lung Opacity": (*_AIRSPACE, "Atelectasis", "Edema", "COVID-19", "Fibrosis"),
    "Pleural Other": ("Pleural Thickening",),
}
_NORMAL_MEDIASTINUM = re.compile(
    r"mediastin[^.]*\b(?:normal|unremarkable|preserved|WNL)|\bnormal\b[^.]*mediastinal", re.IGNORECASE
)


def report_labels(report: PhantomReport) -> dict[str, float | None]:
    """Label a report as a report labeller would.

    Returns:
        Each of the 14 labels to 1.0 (present), 0.0 (negated), -1.0 (uncertain) or None (not mentioned).
    """
    said = report.mentions

    def strongest(names: tuple[str, ...]) -> float | None:
        values = {said.get(name) for name in names}
        return next((value for value in (1.0, -1.0, 0.0) if value in values), None)

    labels = {name: strongest(findings) for name, findings in _FINDINGS.items()}
    # "No edema" says nothing about opacities in general; "no consolidation" does.
    labels["Lung Opacity"] = labels["Lung Opacity"] or strongest(_AIRSPACE)
    text = " ".join(report.sections.values())
    if "enlargement of the cardiomediastinal silhouette" not in text:
        labels["Enlarged Cardiomediastinum"] = 0.0 if _NORMAL_MEDIASTINUM.search(text) else None
    positive = any(value != 0.0 for name, value in said.items() if name != "Support Devices")
    labels["No Finding"] = None if positive else 1.0
    return labels


def exact_labels(findings: tuple[Finding, ...]) -> dict[str, float]:
    """Return each of the 14 labels as 1.0 or 0.0, whatever the report says."""
    present = {finding.name for finding in findings}
    labels = {name: float(not present.isdisjoint(names)) for name, names in _FINDINGS.items()}
    return labels | {"No Finding": float(not present - {"Support Devices"})}
