"""Zero-shot prompt sets as versioned data files.

A set is a JSON object::

    {"name": …, "version": …, "source": …,
     "prompts": {class: {"positive": side, "negative": side}},
     "classes": {class: wording}, "templates": {"positive": side, "negative": side},
     "synonyms": {label: class}, "negation": true, "draw": {"count": …, "seed": …}}

* ``prompts`` or ``classes`` with ``templates``, or both: a template holds ``{}`` for the wording of a class;
* a side is a list of texts, or ``{"parts": [[…], […], …]}``: every choice of one entry per list, in the order of nested
  loops with the first list outermost, the entries that are not empty joined by blanks (GLoRIA composes severity,
  subtype and location so). A choice of empty entries alone is skipped;
* several prompts of one side are an ensemble: their embeddings are averaged, or the score of the best one is taken;
* ``synonyms`` are the names under which corpora label a class of the set (``Effusion`` of ChestX-ray14 is the set's
  ``Pleural Effusion``);
* ``negation: false`` says that the set has no negative prompts: a class is scored by its positive side alone;
* ``draw`` keeps ``count`` prompts per side, drawn as GLoRIA does: one stream of Python's ``random`` through the classes
  in the order of the file.
"""

import json
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

from medvlp.errors import ConfigError

Sides = tuple[tuple[str, ...], tuple[str, ...]]
"""Positive and negative prompts of a class; the latter empty in a set without negation."""

_KEYS = ("name", "version", "source", "prompts", "classes", "templates", "synonyms", "negation", "draw")
_SIDES = ("positive", "negative")
_MOST = 100_000


@dataclass(frozen=True)
class PromptSet:
    """A named prompt set.

    Attributes:
        version: raised whenever a prompt changes, since numbers change with it.
        prompts: class to (positive prompts, negative prompts); the latter empty where ``negation`` is False.
        synonyms: label to class of ``prompts``.
        source: who used it, and what was changed.
    """

    name: str
    version: int
    prompts: dict[str, Sides]
    synonyms: dict[str, str] = field(default_factory=dict)
    negation: bool = True
    source: str = ""

    def among(self, labels: Iterable[str]) -> dict[str, Sides]:
        """Return the prompts of labels, by the labels' own names and in their order; labels without any are skipped."""
        names = {label: self._class_of(label) for label in labels}
        return {label: self.prompts[name] for label, name in names.items() if name in self.prompts}

    def unknown(self, labels: Iterable[str]) -> list[str]:
        """Return the classes of the set that none of the labels names, directly or by a synonym."""
        named = {self._class_of(label) for label in labels}
        return [name for name in self.prompts if name not in named]

    def _class_of(self, label: str) -> str:
        return label if label in self.prompts else self.synonyms.get(label, label)


def available() -> list[str]:
    """Return the names of the sets that come with medvlp."""
    return sorted(p.name.removesuffix(".json") for p in resources.files(__name__).iterdir() if p.name.endswith(".json"))


def load_prompts(name: str) -> PromptSet:
    """Read a set by name (:func:`available`), or from a JSON file of the user's.

    Raises:
        ConfigError: no such set or file, or the file is no prompt set.
    """
    where = name
    try:
        if name in available():
            text = resources.files(__name__).joinpath(f"{name}.json").read_text("utf-8")
        elif Path(name).is_file():
            where, text = Path(name).stem, Path(name).read_text("utf-8")
        else:
            raise ConfigError(f"unknown prompts {name!r}; expected a file, or one of: {', '.join(available())}")
        content = json.loads(text)
        if unknown := [key for key in content if key not in _KEYS]:
            raise ValueError(f"unknown entry {unknown[0]!r}; expected some of: {', '.join(_KEYS)}")
        negation = content.get("negation", True)
        if not isinstance(negation, bool):
            raise TypeError("negation must be true or false")
        prompts = _drawn(_prompts(content, negation), content.get("draw"))
        version = content.get("version", 1)
        if not isinstance(version, int) or isinstance(version, bool):
            raise TypeError("version must be a whole number")
        synonyms = {str(label): str(of) for label, of in content.get("synonyms", {}).items()}
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ConfigError(f"prompts {name}: not a prompt set ({type(error).__name__}: {error})") from error
    for finding, (positive, negative) in prompts.items():
        if not positive or (negation and not negative):
            what = "at least one positive and one negative prompt" if negation else "at least one positive prompt"
            hint = "" if negation or not positive else '; say "negation": false for a set without negative prompts'
            raise ConfigError(f"prompts {name}: {finding!r} needs {what}{hint}")
    if lost := [f"{label} → {of}" for label, of in synonyms.items() if of not in prompts]:
        raise ConfigError(f"prompts {name}: the synonym {lost[0]} names no class of the set ({', '.join(prompts)})")
    return PromptSet(
        str(content.get("name", where)), version, prompts, synonyms, negation, str(content.get("source", ""))
    )


def _prompts(content: Mapping[str, Any], negation: bool) -> dict[str, Sides]:
    sides = _SIDES if negation else _SIDES[:1]
    if not negation:
        given = [name for name, entry in content.get("prompts", {}).items() if "negative" in entry]
        if given or "negative" in content.get("templates", {}):
            raise ValueError(f'negative prompts{f" of {given[0]!r}" if given else ""} in a set with "negation": false')
    prompts: dict[str, Sides] = {}
    if "prompts" not in content and "classes" not in content:
        raise KeyError("prompts")
    if "classes" in content:
        templates = {side: _side(content["templates"][side]) for side in sides}
        # a negative prompt may be the same for all classes ("the lung is clear."), a positive one may not
        if same := [text for text in templates["positive"] if "{}" not in text]:
            raise ValueError(f"the positive template {same[0]!r} has no {{}} for the class")
        for name, wording in content["classes"].items():
            if not isinstance(wording, str) or not wording.strip():
                raise TypeError(f"the wording of {name!r} must be a text")
            worded = {side: tuple(text.replace("{}", wording) for text in templates[side]) for side in sides}
            prompts[str(name)] = (worded["positive"], worded.get("negative", ()))
    for name, entry in content.get("prompts", {}).items():
        prompts[str(name)] = (_side(entry["positive"]), _side(entry["negative"]) if negation else ())
    return prompts


def _side(texts: Any) -> tuple[str, ...]:
    if isinstance(texts, dict):
        if set(texts) != {"parts"} or not isinstance(texts["parts"], list):
            raise TypeError('a composed side is {"parts": [[…], …]}')
        parts = texts["parts"]
        if not all(isinstance(part, list) and all(isinstance(word, str) for word in part) for part in parts):
            raise TypeError("the parts of a side must be lists of texts")
        if (count := math.prod(len(part) for part in parts)) > _MOST:
            raise ValueError(f"the parts of a side make {count} texts, more than {_MOST}")
        joined = (" ".join(word for word in choice if word.strip()) for choice in product(*parts))
        return tuple(text for text in joined if text)
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise TypeError("the prompts of a side must be a list of texts")  # a bare text would count as its letters
    return tuple(texts)


def _drawn(prompts: dict[str, Sides], draw: Any) -> dict[str, Sides]:
    if draw is None:
        return prompts
    stream, count = random.Random(int(draw["seed"])), int(draw["count"])

    def some(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(stream.sample(texts, count)) if count < len(texts) else texts

    return {name: (some(positive), some(negative)) for name, (positive, negative) in prompts.items()}
