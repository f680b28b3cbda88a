"""Zero-shot prompt sets as versioned data files.

A set is a JSON object: ``{"name": …, "version": …, "source": …, "prompts": {finding: {"positive": [...],
"negative": [...]}}}``. Several prompts of one side are an ensemble: their embeddings are averaged.
"""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from medvlp.errors import ConfigError


@dataclass(frozen=True)
class PromptSet:
    """A named prompt set.

    Args:
        name: its name.
        version: raised whenever a prompt changes, since numbers change with it.
        prompts: finding to (positive prompts, negative prompts).
    """

    name: str
    version: int
    prompts: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


def available() -> list[str]:
    """Names of the sets that come with medvlp."""
    return sorted(p.name.removesuffix(".json") for p in resources.files(__name__).iterdir() if p.name.endswith(".json"))


def load_prompts(name: str) -> PromptSet:
    """Reads a set by name, or from a JSON file of the user's.

    Args:
        name: a member of :func:`available`, or the path of a JSON file.

    Returns:
        The set.

    Raises:
        ConfigError: no such set or file, or a finding without prompts on both sides.
    """
    where = name
    try:
        if name in available():
            text = resources.files(__name__).joinpath(f"{name}.json").read_text("utf-8")
        elif Path(name).is_file():
            where, text = Path(name).stem, Path(name).read_text("utf-8")
        else:
            raise ConfigError(f"prompts {name!r}: neither a file nor one of {', '.join(available())}")
        content = json.loads(text)
        prompts = {
            finding: (_side(sides["positive"]), _side(sides["negative"]))
            for finding, sides in content["prompts"].items()
        }
        version = int(content.get("version", 1))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"prompts {name}: not a prompt set ({type(error).__name__}: {error})") from error
    empty = [finding for finding, (positive, negative) in prompts.items() if not positive or not negative]
    if empty:
        raise ConfigError(f"prompts {name}: {empty[0]!r} needs at least one positive and one negative prompt")
    return PromptSet(str(content.get("name", where)), version, prompts)


def _side(texts: list[str]) -> tuple[str, ...]:
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise TypeError("the prompts of a side are a list of texts")  # a bare text would count as its letters
    return tuple(texts)
