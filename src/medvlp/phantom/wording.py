"""The phantom radiologists' phrases for each finding: noun phrases with place, size, severity and kind.

A phrase never names a finding other than its own, so that what a report mentions is exactly what was put into it.
Template fields: ``{sev}`` severity, ``{sub}`` kind, ``{adj}`` place before the noun ("left basilar"), ``{loc}`` place
after it ("at the left lung base"), ``{side}``, ``{size}`` ("2.1 cm"), ``{rib}`` and ``{arc}`` for fractures.
A template starts with its number: ``a`` countable singular, ``s`` uncountable, ``p`` plural.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from medvlp.phantom.model import Finding


class Phrase(NamedTuple):
    """A noun phrase.

    Args:
        text: the words, without an article and not capitalised.
        kind: "a" (countable singular), "s" (uncountable) or "p" (plural).
    """

    text: str
    kind: str

    @property
    def verb(self) -> str:
        """The form of "to be" that agrees with the phrase."""
        return "are" if self.kind == "p" else "is"

    @property
    def article(self) -> str:
        """The phrase with its indefinite article where it takes one."""
        if self.kind != "a":
            return self.text
        return ("an " if self.text[:1].lower() in "aeiou" or self.text.startswith("NG ") else "a ") + self.text


Pick = Callable[[Sequence], str]
"""Draws one item of a sequence."""

_ADJ: dict[str, tuple[str, ...]] = {
    "apical": ("{s} apical",),
    "upper": ("{s} upper lobe", "{s} upper lung", "{s} upper zone"),
    "mid": ("{s} mid lung", "{s} midlung", "{s} midzone"),
    "lower": ("{s} lower lobe", "{s} lower lung", "{s} lower zone"),
    "basal": ("{s} basilar", "{s} basal", "{s} lung base"),
    "perihilar": ("{s} perihilar", "{s} parahilar"),
    "peripheral": ("{s} peripheral", "peripheral {s}", "{s} subpleural"),
    "diffuse": ("diffuse {s}", "widespread {s}"),
    "retrocardiac": ("{s} retrocardiac",),
    "none": ("{s}",),
}
_ADJ_BOTH: dict[str, tuple[str, ...]] = {
    "apical": ("biapical", "bilateral apical"),
    "basal": ("bibasilar", "bibasal", "bilateral basilar"),
    "lower": ("bilateral lower lobe", "bilateral lower lung", "bibasilar"),
    "diffuse": ("diffuse bilateral", "bilateral diffuse", "widespread bilateral"),
}
_LOC: dict[str, tuple[str, ...]] = {
    "apical": ("at the {s} apex", "at the {s} lung apex"),
    "upper": ("in the {s} upper lobe", "in the {s} upper lung", "projecting over the {s} upper lung zone"),
    "mid": ("in the {s} mid lung", "in the {s} midlung zone", "in the mid portion of the {s} lung"),
    "lower": ("in the {s} lower lobe", "in the {s} lower lung", "within the {s} lower lung zone"),
    "basal": ("at the {s} lung base", "at the {s} base", "in the {s} costophrenic region"),
    "perihilar": ("in the {s} perihilar region", "adjacent to the {s} hilum"),
    "peripheral": ("in the periphery of the {s} lung", "along the periphery of the {s} lung"),
    "diffuse": ("throughout the {s} lung", "involving most of the {s} lung"),
    "retrocardiac": ("in the {s} retrocardiac region", "behind the heart on the {s}"),
    "none": ("in the {s} lung", "on the {s}"),
}
_LOC_BOTH: dict[str, tuple[str, ...]] = {
    "apical": ("at both apices", "at both lung apices"),
    "upper": ("in both upper lobes", "in both upper lungs"),
    "mid": ("in both mid lungs", "in the mid lung zones bilaterally"),
    "lower": ("in both lower lobes", "in the lower lungs bilaterally"),
    "basal": ("at both lung bases", "at the lung bases bilaterally", "at the bases"),
    "perihilar": ("in both perihilar regions", "about the hila bilaterally"),
    "peripheral": ("in the periphery of both lungs", "peripherally in both lungs"),
    "diffuse": ("throughout both lungs", "in both lungs diffusely"),
    "retrocardiac": ("in the retrocardiac region bilaterally",),
    "none": ("in both lungs", "bilaterally"),
}
_LOC_ALONE = {
    "apical": "at the apex",
    "upper": "in the upper lung",
    "mid": "in the mid lung",
    "lower": "in the lower lung",
    "basal": "at the lung base",
    "perihilar": "in the perihilar region",
    "peripheral": "in the lung periphery",
    "diffuse": "throughout the lungs",
    "retrocardiac": "in the retrocardiac region",
    "none": "",
}
_MILD = ("mild", "minimal", "subtle", "slight")
_SEVERITY: dict[str, dict[str, tuple[str, ...]]] = {
    "size": {
        "small": ("small", "small", "tiny", "trace"),
        "moderate": ("moderate", "moderate-sized", "moderate"),
        "large": ("large", "large", "massive", "sizable"),
    },
    "degree": {
        "small": _MILD,
        "moderate": ("moderate", "moderate", ""),
        "large": ("severe", "marked", "extensive", "pronounced"),
    },
    "extent": {
        "small": ("small", "subtle", "faint", "focal"),
        "moderate": ("moderate", "patchy", ""),
        "large": ("large", "extensive", "dense", "confluent"),
    },
    "bulk": {"small": ("small", "small", "tiny"), "moderate": ("moderate", "moderate-sized"), "large": ("large",)},
    "mass": {"small": ("",), "moderate": ("", "", "sizable"), "large": ("large", "bulky")},
    "lesion": {"small": ("small", "small", "tiny"), "moderate": ("", "", "moderate-sized"), "large": ("large",)},
}
_SCALE = {
    "Pleural Effusion": "size",
    "Pneumothorax": "bulk",
    "Hernia": "bulk",
    "Consolidation": "extent",
    "Pneumonia": "extent",
    "Infiltration": "extent",
    "Nodule": "lesion",
    "Mass": "mass",
}

# Where a phrase gives no place of its own, the place is left out on purpose (a heart is a heart).
PHRASES: dict[str, tuple[str, ...]] = {
    "Atelectasis": (
        "s {sev} {sub} {adj} atelectasis",
        "s {sev} {sub} atelectasis {loc}",
        "p {adj} linear opacities consistent with {sev} {sub} atelectasis",
        "s {sev} {adj} volume loss in keeping with {sub} atelectasis",
        "p streaky densities {loc} reflecting {sev} {sub} atelectasis",
        "p {sev} {sub} {adj} atelectatic changes",
    ),
    "Cardiomegaly": (
        "s {sev} cardiomegaly",
        "s {sev} enlargement of the cardiac silhouette",
        "s {sev} enlargement of the heart",
        "s {sev} enlargement of the cardiomediastinal silhouette",
        "a {sev} increase in heart size",
        "s {sev} cardiac enlargement",
    ),
    "Consolidation": (
        "s {sev} {adj} consolidation",
        "s {sev} consolidation {loc}",
        "s {sev} {adj} consolidation with air bronchograms",
        "s {sev} airspace consolidation {loc}",
        "a {sev} {adj} consolidative opacity",
        "a {sev} area of consolidation {loc}",
        "s homogeneous consolidation {loc} with visible bronchograms",
    ),
    "Edema": (
        "s {sev} pulmonary edema",
        "s {sev} interstitial edema",
        "s {sev} pulmonary vascular congestion with edema",
        "s {sev} {adj} edema",
        "p {sev} hazy perihilar opacities with septal lines, consistent with edema",
        "s {sev} pulmonary edema with Kerley B lines and vascular indistinctness",
    ),
    "Pleural Effusion": (
        "a {sev} {side} pleural effusion",
        "a {sev} {side} pleural effusion with blunting of the costophrenic angle",
        "a {sev} {side}-sided pleural effusion",
        "a {sev} layering {side} pleural effusion",
        "a {sev} effusion in the {side} pleural space",
        "a {sev} {side} effusion obscuring the hemidiaphragm",
        "s {sev} {side} pleural fluid consistent with effusion",
    ),
    "Emphysema": (
        "p hyperinflated lungs with flattened diaphragms consistent with {sev} emphysema",
        "s {sev} emphysema",
        "p {sev} emphysematous changes",
        "s hyperinflation with {sev} emphysema",
        "s hyperexpansion of the lungs with increased retrosternal lucency compatible with {sev} emphysema",
        "p {sev} {adj} emphysematous changes with attenuated vascular markings",
    ),
    "Fibrosis": (
        "s {sev} {adj} fibrosis",
        "s {sev} pulmonary fibrosis {loc}",
        "p {sev} {adj} fibrotic changes",
        "p {sev} reticular markings {loc} consistent with fibrosis",
        "p coarse {adj} interstitial markings compatible with {sev} fibrosis",
        "s {sev} fibrosis {loc} with architectural distortion",
    ),
    "Hernia": (
        "a {sev} hiatal hernia",
        "a {sev} hiatus hernia",
        "a {sev} retrocardiac hiatal hernia with an air-fluid level",
        "a {sev} hiatal hernia projecting behind the heart",
        "a rounded retrocardiac lucency consistent with a {sev} hiatal hernia",
    ),
    "Infiltration": (
        "a {sev} {adj} infiltrate",
        "a {sev} infiltrate {loc}",
        "a {sev} ill-defined infiltrate {loc}",
        "s {sev} {adj} infiltration",
        "p {sev} hazy infiltrates {loc}",
        "a {sev} {adj} opacity in keeping with an infiltrate",
    ),
    "Mass": (
        "a {sev} {adj} mass measuring {size}",
        "a {size} mass {loc}",
        "a {sev} {size} {adj} mass",
        "a {sev} lobulated mass {loc} measuring {size}",
        "a {sev} rounded mass {loc}, approximately {size} in diameter",
        "a {sev} mass with spiculated margins {loc} measuring {size}",
    ),
    "Nodule": (
        "a {sev} nodule measuring {size} {loc}",
        "a {size} {adj} nodule",
        "a {size} nodule {loc}",
        "a {sev} {adj} pulmonary nodule measuring up to {size}",
        "a {sev} rounded nodule {loc}, approximately {size}",
        "a well-circumscribed {size} nodular density {loc}",
    ),
    "Pleural Thickening": (
        "s {sev} {adj} pleural thickening",
        "s {sev} pleural thickening {loc}",
        "s {sev} {side} pleural thickening along the chest wall",
        "s {sev} {adj} pleural thickening with a smooth margin",
        "s {sev} chronic {adj} pleural thickening",
    ),
    "Pneumonia": (
        "s {sev} {adj} pneumonia",
        "a {sev} {adj} opacity consistent with pneumonia",
        "a {sev} opacity {loc} compatible with pneumonia",
        "s {sev} airspace disease {loc} consistent with pneumonia",
        "s {sev} pneumonia {loc}",
        "a {sev} {adj} airspace opacity in keeping with pneumonia",
        "s {sev} {adj} bronchopneumonia",
    ),
    "Pneumothorax": (
        "a {sev} {adj} pneumothorax",
        "a {sev} {side} pneumothorax",
        "a {sev} {side}-sided pneumothorax with a visible visceral pleural line",
        "a {sev} pneumothorax {loc}",
        "a {sev} {adj} pneumothorax measuring {size} from the chest wall",
        "a {sev} {adj} pneumothorax, up to {size} in depth",
    ),
    "Fracture:rib": (
        "a displaced fracture of the {side} {arc} {rib} rib",
        "a fracture of the {side} {arc} {rib} rib",
        "a {side} {rib} rib fracture",
        "a minimally displaced fracture of the {side} {rib} rib",
        "s cortical discontinuity of the {side} {arc} {rib} rib consistent with a fracture",
    ),
    "Fracture:clavicle": (
        "a displaced {side} clavicle fracture",
        "a fracture of the {side} clavicle",
        "a fracture of the mid shaft of the {side} clavicle",
        "a {side} clavicular fracture with mild angulation",
    ),
    "Fracture": ("a {side} {sub} fracture", "a fracture of the {side} {sub}", "a displaced {side} {sub} fracture"),
    "COVID-19": (
        "p bilateral peripheral ground-glass opacities, typical of COVID-19",
        "p {sev} {adj} ground-glass opacities typical for COVID-19",
        "p {sev} hazy opacities {loc} consistent with COVID-19 infection",
        "p multifocal {adj} opacities compatible with {sev} COVID-19",
        "p {sev} patchy ground-glass opacities {loc} in a distribution characteristic of COVID-19",
    ),
    "Support Devices:endotracheal tube": (
        "a endotracheal tube with its tip above the carina",
        "a endotracheal tube in standard position above the carina",
        "a ET tube terminating above the carina",
        "a endotracheal tube tip in the mid trachea, above the carina",
    ),
    "Support Devices:tracheostomy tube": (
        "a tracheostomy tube in standard position",
        "a midline tracheostomy tube in the upper trachea",
    ),
    "Support Devices:central venous catheter": (
        "a {side} central venous catheter terminating in the lower SVC",
        "a {side} internal jugular central venous catheter with its tip in the SVC",
        "a {side}-sided central venous line with its tip at the cavoatrial junction",
        "a {side} central line ending in the mid superior vena cava",
    ),
    "Support Devices:nasogastric tube": (
        "a nasogastric tube coursing below the diaphragm",
        "a NG tube with its tip in the stomach",
        "a enteric tube passing below the diaphragm and out of view",
        "a nasogastric tube ending in the gastric body",
    ),
    "Support Devices:pacemaker": (
        "a {side} chest wall pacemaker with leads in the right atrium and right ventricle",
        "a {side}-sided dual-chamber pacemaker",
        "a {side} pectoral pacemaker with intact leads",
        "a pacemaker generator over the {side} chest with leads in expected position",
    ),
    "Support Devices:chest tube": (
        "a {side} chest tube",
        "a {side}-sided chest tube in place",
        "a {side} pleural drainage tube directed towards the apex",
        "a {side} thoracostomy tube",
    ),
    "Support Devices:sternal wires": (
        "p intact median sternotomy wires",
        "p midline sternal wires",
        "p aligned sternotomy wires from prior cardiac surgery",
        "p median sternotomy wires in normal alignment",
    ),
    "Support Devices": ("a {side} {sub} in place", "a {sub} projecting over the {side} chest", "a {side} {sub}"),
    "Foreign Object": (
        "a {sub} projecting over the {side} chest, consistent with a foreign body",
        "a radiopaque foreign object ({sub}) superimposed on the {side} chest",
        "a metallic foreign body over the {side} chest, in keeping with a {sub}",
        "a dense foreign object resembling a {sub} overlying the {side} hemithorax",
        "a {sub} (foreign object) overlying the {side} thorax",
    ),
}
PHRASES_BOTH: dict[str, tuple[str, ...]] = {
    "Pleural Effusion": (
        "p {sev} bilateral pleural effusions",
        "p {sev} layering bilateral pleural effusions",
        "p {sev} bilateral effusions with blunting of both costophrenic angles",
        "p {sev} pleural effusions on both sides",
    ),
    "Pneumothorax": ("p {sev} bilateral pneumothoraces", "p {sev} biapical pneumothoraces"),
    "Consolidation": (
        "p {sev} {adj} consolidations",
        "s {sev} {adj} consolidation with air bronchograms",
        "s {sev} multifocal consolidation {loc}",
        "p {sev} consolidative opacities {loc}",
    ),
    "Pneumonia": (
        "s {sev} multifocal {adj} pneumonia",
        "p {sev} {adj} opacities consistent with pneumonia",
        "p {sev} opacities {loc} compatible with multifocal pneumonia",
    ),
    "Infiltration": ("p {sev} {adj} infiltrates", "p {sev} infiltrates {loc}", "p {sev} ill-defined infiltrates {loc}"),
    "Nodule": ("p {sev} {adj} nodules measuring up to {size}", "p multiple {sev} nodules {loc}, up to {size}"),
    "Mass": ("p {sev} {adj} masses measuring up to {size}", "p {sev} masses {loc}, up to {size}"),
    "Fracture:rib": ("p bilateral rib fractures", "p {sev} displaced rib fractures on both sides"),
    "Support Devices:chest tube": ("p bilateral chest tubes", "p chest tubes on both sides"),
}
# Said of one side only; a hemidiaphragm that is pulled up goes with collapse.
_ELEVATED = (
    "a elevated {side} hemidiaphragm with {sub} {adj} atelectasis",
    "s elevation of the {side} hemidiaphragm with {sev} {sub} {adj} atelectasis",
)
_SUBTYPES: dict[str, tuple[str, ...]] = {
    "plate-like": ("plate-like", "platelike", "linear", "discoid", "subsegmental"),
    "linear": ("linear", "plate-like", "subsegmental"),
    "lobar": ("lobar",),
    "segmental": ("segmental",),
    "coin": ("coin", "rounded coin"),
    "button": ("button", "clothing button"),
    "safety pin": ("safety pin",),
    "necklace": ("necklace", "metallic necklace"),
    "bullet fragment": ("bullet fragment", "ballistic fragment", "retained bullet fragment"),
}
_GENERIC = {
    "Fracture": "rib",
    "Support Devices": "monitoring device",
    "Foreign Object": "dense object",
}
_RIBS = {
    "apical": ("second", "third"),
    "upper": ("third", "fourth"),
    "mid": ("fifth", "sixth"),
    "lower": ("seventh", "eighth"),
    "basal": ("eighth", "ninth"),
}
_ARCS = ("lateral", "posterior", "anterior", "posterolateral")


def place(side: str | None, zone: str, pick: Pick) -> tuple[str, str]:
    """A finding's place as words before and after the noun, either possibly empty."""
    if side == "bilateral":
        default = tuple(form.format(s="bilateral") for form in _ADJ[zone])
        return pick(_ADJ_BOTH.get(zone, default)), pick(_LOC_BOTH[zone])
    if side in ("left", "right"):
        return pick(_ADJ[zone]).format(s=side), pick(_LOC[zone]).format(s=side)
    return pick(_ADJ[zone]).format(s="").replace("lobe", "lung").strip(), _LOC_ALONE[zone]


def measure(size_mm: float, pick: Pick) -> str:
    """A length in words: millimetres below 10 mm, else mostly centimetres with one decimal."""
    if size_mm < 10:
        return f"{max(round(size_mm), 1)} mm"
    return pick((f"{size_mm / 10:.1f} cm", f"{size_mm / 10:.1f} cm", f"{size_mm:.0f} mm"))


def describe(finding: Finding, pick: Pick) -> Phrase:
    """Words one finding: severity, kind, side, place and size, as far as they are known.

    Args:
        finding: what is present.
        pick: draws one item of a sequence; it decides between the synonyms.

    Returns:
        The noun phrase.
    """
    name, side = finding.name, finding.side
    exact = f"{name}:{finding.subtype}"
    sidedness = {"left": "left", "right": "right", "bilateral": "bilateral"}.get(side or "", "")
    if side == "bilateral" and (exact in PHRASES_BOTH or name in PHRASES_BOTH):
        choices = PHRASES_BOTH.get(exact) or PHRASES_BOTH[name]
    else:
        choices = PHRASES.get(exact) or PHRASES.get(name) or (f"s {{sev}} {{adj}} {name.lower()}",)
    if name == "Atelectasis" and sidedness in ("left", "right"):
        choices = choices + _ELEVATED
    if name == "COVID-19" and side != "bilateral":
        choices = choices[1:]
    if finding.size_mm <= 0:
        choices = tuple(c for c in choices if "{size}" not in c) or choices
    template = pick(choices)
    adj, loc = place(side, finding.zone, pick)
    ribs = _RIBS.get(finding.zone, ("fifth", "sixth", "seventh", "eighth"))
    # Numbers and arcs come from the lesion's own seed: the same rib in FINDINGS, in IMPRESSION and in later studies.
    text = template[2:].format(
        sev=pick(_SEVERITY[_SCALE.get(name, "degree")][finding.severity]),
        sub=pick(_SUBTYPES.get(finding.subtype, (finding.subtype or _GENERIC.get(name, ""),))),
        adj=adj,
        loc=loc,
        side=sidedness,
        size=measure(finding.size_mm, pick) if finding.size_mm > 0 else "",
        rib=ribs[finding.seed % len(ribs)],
        arc=_ARCS[finding.seed // 7 % len(_ARCS)],
    )
    return Phrase(tidy(text), template[0])


def tidy(text: str) -> str:
    """Removes what empty fields leave behind: double blanks, blanks before commas, words without their partner."""
    text = " ".join(text.split())
    for wrong, right in _REPAIRS:
        if wrong in text:
            text = text.replace(wrong, right)
    return text.strip().removeprefix("-sided ")


_REPAIRS = (
    (" ,", ","),
    (" -sided", ""),
    ("the chest of the", "the chest"),
    ("subpleural pleural", "peripheral pleural"),
    ("subtle hazy", "hazy"),
    ("patchy patchy", "patchy"),
    ("faint hazy", "hazy"),
    ("multifocal peripheral bilateral", "multifocal bilateral peripheral"),
    ("diffuse bilateral emphysematous", "diffuse emphysematous"),
)
