"""The phantom's radiologists: each has an order of organs and habits of phrasing (``phrases.json``)."""

from collections.abc import Sequence
from dataclasses import dataclass

from medvlp.phantom.wording import TEXTS


@dataclass(frozen=True)
class Reader:
    """Habits that one radiologist keeps in all reports.

    Args:
        order: organ groups in the order of dictation.
        shapes: sentence forms for a positive finding; fields ``{np}``, ``{Np}``, ``{a_np}``, ``{be}``, ``{cap_be}``.
        heart: ways of saying that the heart is normal.
        lungs: ways of saying that the lungs are clear.
        mediastinum: ways of saying that the mediastinum is normal.
        bones: ways of saying that the bones are normal.
        none: forms of a negative sentence; field ``{list}`` holds "pleural effusion or pneumothorax".
        normal: impressions of a normal study.
        history: header of the indication.
        comparison: header of the comparison.
        numbered: whether the impression is numbered when it has more than one point.
        extras: mean number of sentences about normal or incidental things.
        negatives: share of the possible pertinent negatives that are stated.
        labelled: whether sentences start with the organ ("Lungs: ...").
        clipped: whether articles and verbs are dropped.
        title: whether a title line heads the report instead of an EXAMINATION section.
    """

    order: Sequence[str]
    shapes: Sequence[str]
    heart: Sequence[str]
    lungs: Sequence[str]
    mediastinum: Sequence[str]
    bones: Sequence[str]
    none: Sequence[str]
    normal: Sequence[str]
    history: str = "INDICATION"
    comparison: str = "COMPARISON"
    numbered: bool = False
    extras: float = 1.0
    negatives: float = 0.6
    labelled: bool = False
    clipped: bool = False
    title: bool = False


READERS = tuple(Reader(**reader) for reader in TEXTS["readers"])
"""The radiologists; a study's ``reader`` counts through them and wraps around."""
