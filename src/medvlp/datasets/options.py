"""A corpus from words of the command line: ``key=value``, typed as in a YAML config."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from medvlp.compat import option_names
from medvlp.datasets import corpus_class
from medvlp.datasets.corpus import Corpus
from medvlp.errors import ConfigError

OPTION_HELP = "an option of the corpus as in a YAML config, such as version=COVIDx9A or views=[PA,AP]; may be repeated"
"""Help text of ``--option``."""


def corpus_from_words(name: str, root: str | Path, words: Sequence[str], **fixed: Any) -> Corpus:
    """Build the reader of a corpus (a key of :data:`medvlp.datasets.CORPORA`).

    Args:
        name: of the corpus.
        root: its folder.
        words: ``key=value`` each; values are read by the type of the option, lists as ``[a,b]``, None as ``null``. A
            key that comes again replaces the earlier one.
        **fixed: options that the words cannot change.
    """
    kind = corpus_class(name)
    for word in words:
        key, sign, _ = word.partition("=")
        if not sign or not key.isidentifier():
            raise ConfigError(f'an option is written key=value, not "{word}"')
        if key == "root" or key in fixed:
            raise ConfigError(f"{key} is no option here")
    parser = ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_class_arguments(kind, skip={"root", *fixed}, as_group=False)
    known = option_names(parser)
    for word in words:
        if (key := word.partition("=")[0]) not in known:
            raise ConfigError(f"{kind.title} has no option {key}; it has {', '.join(known)}")
    try:
        options = parser.parse_args([f"--{word}" for word in words]).as_dict()
    except (ArgumentError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"options of {kind.title} ({', '.join(known)}): {reason}") from error
    return kind(root, **options, **fixed)
