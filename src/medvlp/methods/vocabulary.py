"""The vocabulary of a run: trained by one process, shared with the others, stored in the run's folder."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from medvlp._version import __version__
from medvlp.encoders.text import TextEncoderConfig
from medvlp.text import load_tokenizer, tokenizer_from_state, tokenizer_state, train_wordpiece


def corpus_tokenizer(texts: Callable[[], Sequence[str]], config: TextEncoderConfig, trainer: L.Trainer) -> Any:
    """Return a WordPiece tokenizer of the training reports, the same on all ranks.

    Rank 0 alone calls ``texts``. The trainer's folder keeps the vocabulary, by a hash of texts and settings, for later
    runs.
    """
    state: dict[str, Any] = {}
    if trainer.is_global_zero:
        reports = texts()
        size, fold, least = config.vocab_size, config.lowercase, config.min_reports
        digest = hashlib.blake2b(f"{size} {fold} {least} {__version__}".encode(), digest_size=8)
        for report in reports:
            digest.update(report.encode())
        folder = Path(trainer.default_root_dir) / f"tokenizer-{digest.hexdigest()}"
        if (folder / "tokenizer.json").is_file():
            tokenizer = load_tokenizer(str(folder))
        else:
            tokenizer = train_wordpiece(reports, vocab_size=size, lowercase=fold, min_texts=least)
            tokenizer.save_pretrained(folder)
        state = tokenizer_state(tokenizer)
        rank_zero_info(f"vocabulary of {len(tokenizer)} word pieces from {len(reports)} reports: {folder}")
    return tokenizer_from_state(trainer.strategy.broadcast(state))
