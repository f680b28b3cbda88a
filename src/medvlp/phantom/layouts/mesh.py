"""A phantom's findings as terms of the Open-I collection: heading, organ, place, side and degree, joined by "/".

The headings and their order were read off the collection's own reports; COVID-19, which it predates, is coded as an
opacity.
"""

from medvlp.phantom.model import Finding

_HEADINGS: dict[str, str] = {
    "Atelectasis": "Pulmonary Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation/lung",
    "Edema": "Pulmonary Edema",
    "Pleural Effusion": "Pleural Effusion",
    "Emphysema": "Pulmonary Emphysema",
    "Fibrosis": "Pulmonary Fibrosis",
    "Hernia": "Hernia, Hiatal",
    "Infiltration": "Infiltrate/lung",
    "Mass": "Mass/lung",
    "Nodule": "Nodule/lung",
    "Pleural Thickening": "Thickening/pleura",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
    "Fracture": "Fractures, Bone",
    "Support Devices": "Implanted Medical Device",
    "Foreign Object": "Foreign Bodies/thorax",
    "COVID-19": "Opacity/lung",
}
_SUBTYPES: dict[str, str] = {
    "rib": "Fractures, Bone/ribs",
    "clavicle": "Fractures, Bone/clavicle",
    "endotracheal tube": "Tube, Inserted/trachea",
    "nasogastric tube": "Tube, Inserted/abdomen",
    "chest tube": "Tube, Inserted/thorax",
    "central venous catheter": "Catheters, Indwelling",
    "sternal wires": "Sutures/sternum",
}
_AUTOMATIC: dict[str, str] = {
    "Atelectasis": "Atelectasis",
    "Consolidation": "lung consolidation",
    "Edema": "Pulmonary Edema",
    "Emphysema": "Pulmonary Emphysema",
    "Fibrosis": "Pulmonary Fibrosis",
    "Hernia": "hiatal hernia",
    "Infiltration": "infiltrates",
    "Mass": "mass lesion",
    "Nodule": "nodule",
    "Pleural Thickening": "pleural thickening",
    "Fracture": "fracture",
    "Support Devices": "Medical Device",
    "Foreign Object": "foreign body",
    "COVID-19": "opacity",
}
_PLACES = {
    "apical": "apex",
    "upper": "upper lobe",
    "lower": "lower lobe",
    "basal": "base",
    "perihilar": "hilum",
    "retrocardiac": "retrocardiac",
    "diffuse": "diffuse",
}
_SIZED = frozenset({"Pleural Effusion", "Pneumothorax", "Hernia", "Nodule", "Mass", "Consolidation"})
_DEGREES = {"small": "mild", "moderate": "moderate", "large": "severe"}
_UNGRADED = frozenset({"Fracture", "Support Devices", "Foreign Object"})


def major_term(finding: Finding) -> str:
    """A finding as an indexer codes it: "Pleural Effusion/right/small", "Pulmonary Atelectasis/base/left/mild".

    Args:
        finding: what the report states.
    """
    parts = [_SUBTYPES.get(finding.subtype, _HEADINGS[finding.name])]
    if finding.name not in _UNGRADED | {"Cardiomegaly", "Hernia", "Edema", "Pleural Effusion"}:
        middle = "lingula" if finding.side == "left" else "middle lobe"
        place = middle if finding.zone == "mid" and finding.side != "bilateral" else _PLACES.get(finding.zone)
        parts += [place] if place else []
    if finding.side in ("left", "right", "bilateral") and finding.name != "Edema":
        parts.append(finding.side)
    if finding.name not in _UNGRADED:
        parts.append(finding.severity if finding.name in _SIZED else _DEGREES[finding.severity])
    return "/".join(parts)


def automatic_term(finding: Finding) -> str:
    """A finding as the collection's program codes it, without place and degree.

    Args:
        finding: what the report states.
    """
    return _AUTOMATIC.get(finding.name, finding.name)
