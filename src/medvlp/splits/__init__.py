"""Train, validation and test parts: the published splits rebuilt, our own clean one, and the 1 % and 10 % draws.

A recipe sees ids, patients, views, released parts and raw labels (:class:`SplitInput`), never an image. The data file
``expected.json`` records what each split gives for a known release (sizes, positives, hashes of the ids);
:func:`make_split` compares with it, and warns of images and patients that two parts share.
"""

from medvlp.splits.catalog import Expected, SplitInfo, describe, split_names
from medvlp.splits.fractions import FRACTION_RULES, draw_fraction, hash_split, nested_fraction
from medvlp.splits.make import make_split
from medvlp.splits.types import Part, Split, SplitInput, SplitLeakWarning

__all__ = [
    "FRACTION_RULES",
    "Expected",
    "Part",
    "Split",
    "SplitInfo",
    "SplitInput",
    "SplitLeakWarning",
    "describe",
    "draw_fraction",
    "hash_split",
    "make_split",
    "nested_fraction",
    "split_names",
]
