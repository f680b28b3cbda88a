"""Tokenizers (trained, loaded, stored, restored) and the collate that turns samples into batches."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import default_collate

from medvlp.errors import ConfigError, TokenizerError, check_choice
from medvlp.io.headers import first_line

if TYPE_CHECKING:  # importing transformers takes seconds, and `medvlp --help` should not
    from transformers import PreTrainedTokenizerFast


SPECIAL_TOKENS: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""BERT's special tokens; their ids are 0 to 4 in every vocabulary trained here."""

_ROLES = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True))
_VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")


# tokenizers warns and falls back to one thread when its threads meet forked loader workers
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _bert_tokenizer(model: Any, lowercase: bool) -> Any:
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def train_wordpiece(
    texts: Iterable[str],
    vocab_size: int = 4096,
    lowercase: bool = True,
    min_frequency: int = 2,
    min_texts: int = 1,
) -> "PreTrainedTokenizerFast":
    """Train a WordPiece vocabulary, as BERT's tokenizer uses one.

    The same texts give the same vocabulary with the same ids, in any order of the texts. For this the alphabet is
    passed sorted: the trainer of the ``tokenizers`` library numbers the characters that continue a word in the order
    of a randomly seeded hash table, and these numbers break ties between merges.

    Args:
        texts: the training texts.
        vocab_size: largest size of the vocabulary, special tokens and alphabet included.
        lowercase: lower-case and strip accents, as BERT's uncased tokenizers do.
        min_frequency: a pair of pieces is merged only if it occurs at least this often.
        min_texts: words of fewer different texts contribute characters only, so that no entry spells out a name from a
            few reports.

    Returns:
        A fast tokenizer with [CLS] … [SEP] around each text, ids 0 to 4 for :data:`SPECIAL_TOKENS` and a
        model_max_length of 512.

    Raises:
        TokenizerError: the texts are empty, or the alphabet alone exceeds ``vocab_size``.
    """
    from tokenizers import models, processors, trainers

    draft = _bert_tokenizer(models.WordPiece(vocab={"[UNK]": 0}, unk_token="[UNK]"), lowercase)
    words: Counter[str] = Counter()
    spread: Counter[str] = Counter()  # number of different texts
    pieces = lru_cache(1 << 18)(lambda word: [piece for piece, _ in draft.pre_tokenizer.pre_tokenize_str(word)])
    for text, times in Counter(texts).items():
        counts = Counter(p for word in draft.normalizer.normalize_str(text).split() for p in pieces(word))
        spread.update(counts.keys())
        words.update({piece: count * times for piece, count in counts.items()})
    if not words:
        raise TokenizerError("no text to train a vocabulary on; check that the training part has reports")
    later = {c for word in words for c in word[1:]}
    alphabet = [*sorted({word[0] for word in words} | later), *sorted("##" + c for c in later)]
    if len(SPECIAL_TOKENS) + len(alphabet) > vocab_size:
        raise TokenizerError(
            f"vocab_size {vocab_size} is smaller than the alphabet of the texts with the special tokens"
            f" ({len(SPECIAL_TOKENS) + len(alphabet)})"
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=[*SPECIAL_TOKENS, *alphabet],
        continuing_subword_prefix="##",
    )
    # counted words instead of texts: the pair counts are the same, and normalising twice is harmless
    common = {word: count for word, count in words.items() if spread[word] >= min_texts}
    draft.train_from_iterator(_repeated(common), trainer=trainer)
    vocabulary = draft.get_vocab(with_added_tokens=True)
    renumbered = {token: number for number, token in enumerate(sorted(vocabulary, key=vocabulary.__getitem__))}
    model = models.WordPiece(vocab=renumbered, unk_token="[UNK]", max_input_chars_per_word=100)
    # built again, because the alphabet went in as special tokens, which would be matched before any merge
    final = _bert_tokenizer(model, lowercase)
    final.add_special_tokens(list(SPECIAL_TOKENS))
    final.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", final.token_to_id("[CLS]")), ("[SEP]", final.token_to_id("[SEP]"))],
    )
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=final, model_max_length=512, **_ROLES)


def _repeated(words: dict[str, int]) -> Iterable[str]:
    for word in sorted(words):
        count = words[word]
        while count > 0:  # in pieces, so that a frequent word does not become one huge string
            yield " ".join([word] * min(count, 1000))
            count -= 1000


def load_tokenizer(path_or_name: str | os.PathLike[str]) -> "PreTrainedTokenizerFast":
    """Load a fast tokenizer from a folder with tokenizer.json or vocab.txt, or by its hub name.

    Raises:
        TokenizerError: the folder has no vocabulary, the hub cannot be reached, or no fast tokenizer exists.
    """
    folder = Path(path_or_name)
    local = folder.exists() or folder.is_absolute() or str(path_or_name).startswith((".", "~"))
    if local:
        folder = folder.expanduser()
        if not folder.is_dir():
            raise TokenizerError(f"the tokenizer folder {folder} does not exist")
        if not any((folder / name).is_file() for name in _VOCABULARY_FILES):
            raise TokenizerError(
                f"the folder {folder} holds no vocabulary: neither {' nor '.join(_VOCABULARY_FILES)} is there;"
                " copy it beside the weights, or name a folder that has it"
            )
    from transformers import AutoTokenizer

    name = str(folder) if local else str(path_or_name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and hub errors of its own here
        if local:
            raise TokenizerError(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}") from error
        raise TokenizerError(
            f'the tokenizer "{name}" cannot be fetched from the hub ({first_line(error)}); pass a local folder that'
            " holds tokenizer.json or vocab.txt instead"
        ) from error
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TokenizerError(f'the tokenizer "{name}" has no fast version; its folder needs a tokenizer.json')
    return tokenizer


def tokenizer_state(tokenizer: "PreTrainedTokenizerFast") -> dict[str, Any]:
    """Return a fast tokenizer as strings, integers and dictionaries, for a checkpoint."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    # padding and truncation are left over from the last call and no part of the tokenizer
    backend.no_padding()
    backend.no_truncation()
    return {
        "backend": backend.to_str(),
        "special_tokens": {role: str(getattr(tokenizer, role)) for role in _ROLES if getattr(tokenizer, role, None)},
        "model_max_length": int(tokenizer.model_max_length),
        "padding_side": str(tokenizer.padding_side),
        "truncation_side": str(tokenizer.truncation_side),
    }


def tokenizer_from_state(state: dict[str, Any]) -> "PreTrainedTokenizerFast":
    """Invert :func:`tokenizer_state` exactly; any other state raises a :class:`~medvlp.errors.TokenizerError`."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        roles, length = state["special_tokens"], state["model_max_length"]
        sides = {name: state[name] for name in ("padding_side", "truncation_side")}
        if not (set(roles) <= set(_ROLES) and all(isinstance(token, str) for token in roles.values())):
            raise ValueError(f"special tokens are texts for {', '.join(_ROLES)}")
        if "pad_token" not in roles:
            raise ValueError("it has no padding token")
        if wrong := [name for name, side in sides.items() if side not in ("left", "right")]:
            raise ValueError(f"{wrong[0]} is {sides[wrong[0]]!r}; expected left or right")
        if type(length) is not int or length < 1:
            raise ValueError(f"model_max_length is {length!r}; expected a positive number")
        backend = Tokenizer.from_str(state["backend"])
        return PreTrainedTokenizerFast(tokenizer_object=backend, **roles, model_max_length=length, **sides)
    except BaseException as error:  # the Rust side raises bare Exceptions, and panics that are not even those
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise TokenizerError(f"the stored tokenizer cannot be restored ({type(error).__name__}: {error})") from error


class Collate:
    """Collate a list of samples into a batch; :mod:`medvlp.datamodules.base` lists the keys.

    What a sample may lack (text, mask, boxes, …) is in the batch if all samples have it.

    Args:
        tokenizer: a fast tokenizer, or None: then input_ids, attention_mask and word_groups are absent.
        max_length: longer texts are cut to this many tokens, special ones included.
        padding: pad to the "longest" text of the batch, or always to "max_length" (the official G2D code, where
            padding enters the batch statistics of the text projector).

    Raises:
        ConfigError: an unknown padding, or a tokenizer without word positions.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast | None",
        max_length: int = 256,
        padding: Literal["longest", "max_length"] = "longest",
    ) -> None:
        check_choice("padding", padding, ("longest", "max_length"))
        if tokenizer is not None and not getattr(tokenizer, "is_fast", False):
            raise ConfigError("the batches need word positions, which only a fast tokenizer knows")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.padding = padding

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collate samples of a :class:`~medvlp.datasets.base.RadiographDataset`."""
        # in a loader worker, torch's own collate stacks in shared memory: one copy less than torch.stack, and the heap
        # of the worker does not fill up with holes of the size of batches (1.2 GB instead of 40 MB)
        batch: dict[str, Any] = {
            "image": default_collate([s["image"] for s in samples]),
            "id": [s["id"] for s in samples],
            "index": torch.tensor([s["index"] for s in samples], dtype=torch.int64),
            "label": torch.stack([s["label"] for s in samples]),
            "skipped": [pair for s in samples for pair in s.get("skipped", ())],
        }
        for key in ("mask", "size", "geometry", "boxes", "box_labels"):
            if all(key in s for s in samples):
                values = [s[key] for s in samples]
                batch[key] = values if key.startswith("box") else default_collate(values)
        if all("text" in s for s in samples):
            batch["text"] = [s["text"] for s in samples]
            if self.tokenizer is not None:
                batch.update(self.tokenize(batch["text"]))
        return batch

    def tokenize(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Token ids, mask and word groups of texts, each int64 (B, L)."""
        assert self.tokenizer is not None
        encoded = self.tokenizer(texts, padding=self.padding, truncation=True, max_length=self.max_length)
        groups = [[-1 if w is None else w for w in encoded.word_ids(i)] for i in range(len(texts))]
        columns = {name: encoded[name] for name in ("input_ids", "attention_mask")} | {"word_groups": groups}
        # by way of numpy, which reads nested lists twice as fast as torch
        return {name: torch.from_numpy(np.array(rows, dtype=np.int64)) for name, rows in columns.items()}
