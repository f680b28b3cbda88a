"""Token ids of texts, made once and kept in a memory-mapped file.

Texts are found by a 128-bit digest in two sorted numpy columns, so that loader workers share the pages and no Python
object per text exists that they would copy.

No text is stored in clear. Yet token ids are turned back into words with the vocabulary, so **a token cache must be
kept as safe as the corpus that it was made from**. Its files are readable by their owner alone.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from medvlp.errors import ConfigError, DataError
from medvlp.store import atomic_write
from medvlp.text import tokenizer_state

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedTokenizerFast

FILE = "tokens.arrow"
_FORMAT = 1
_SCHEMA = pa.schema(
    [
        ("high", pa.uint64()),  # digest of the text, its two halves
        ("low", pa.uint64()),
        ("ids", pa.large_list(pa.int32())),  # special tokens included, cut to max_length, without padding
        ("words", pa.large_list(pa.int32())),  # the word that each piece belongs to, −1 for special tokens
    ]
)
_BATCH = 4096


def _digests(texts: Sequence[str]) -> np.ndarray:
    """uint64 (N, 2): BLAKE2b of each text, 128 bits."""
    joined = b"".join(_digest(text) for text in texts)
    return np.frombuffer(joined, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def _digest(text: str) -> bytes:
    # surrogates occur where a report was decoded with errors="surrogateescape"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class TokenCache:
    """Tokens of many texts for one tokenizer and one length.

    Made by :meth:`build`. Several processes may read it while another adds texts: they keep seeing what they opened.
    A pickled cache holds the folder only, and opens its file again.

    Args:
        folder: with the file, as :meth:`folder_of` names it.

    Raises:
        DataError: the file is missing or broken.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._open()

    def _open(self) -> None:
        path = self.folder / FILE
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all().combine_chunks()
            table.validate(full=True)
            metadata = table.schema.metadata or {}
            if not table.schema.equals(_SCHEMA) or metadata.get(b"format") != str(_FORMAT).encode():
                raise DataError(f"the token cache {path} is of another format; remove the folder to make it anew")
            columns = [c.chunk(0) if c.num_chunks else pa.array([], type=c.type) for c in table.columns]
            self._high, self._low = (c.to_numpy() for c in columns[:2])
            self._starts = columns[2].offsets.to_numpy()
            self._ids, self._words = (c.values.to_numpy() for c in columns[2:])
            if any(c.null_count for c in columns) or not columns[2].offsets.equals(columns[3].offsets):
                raise pa.ArrowInvalid("ids and words do not fit")
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(
                f"the token cache {path} is missing or broken; remove the folder to make it anew"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder = state["folder"]
        self._open()

    def __len__(self) -> int:
        return len(self._high)

    @staticmethod
    def folder_of(cache_dir: str | Path, tokenizer: "PreTrainedTokenizerFast", max_length: int) -> Path:
        """Folder of the tokens of one tokenizer and one length, below a cache folder."""
        text = json.dumps([tokenizer_state(tokenizer), max_length, _FORMAT], sort_keys=True)
        return Path(cache_dir) / f"tokens-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"

    def belongs_to(self, tokenizer: "PreTrainedTokenizerFast", max_length: int) -> bool:
        """Whether the tokens are those that this tokenizer gives, cut to this length."""
        return self.folder_of(self.folder.parent, tokenizer, max_length) == self.folder

    @classmethod
    def build(
        cls, cache_dir: str | Path, tokenizer: "PreTrainedTokenizerFast", max_length: int, texts: Iterable[str]
    ) -> "TokenCache":
        """Open the tokens of texts; texts that are not there yet are tokenised and added.

        The new file takes the old one's place at once. Of several processes that add texts together the last one's
        stays, with everything that was there before and all texts that it was given; others are tokenised when they
        are needed.

        Args:
            cache_dir: folder of the caches.
            tokenizer: a fast tokenizer.
            max_length: longer texts are cut to this many tokens, special ones included.
            texts: the texts; repeated ones are kept once.

        Raises:
            ConfigError: the tokenizer knows no word positions.
            DataError: the file that is there is broken.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError("the batches need word positions, which only a fast tokenizer knows")
        folder = cls.folder_of(cache_dir, tokenizer, max_length)
        old = cls(folder) if (folder / FILE).is_file() else None
        listed = list(dict.fromkeys(texts))
        digests = _digests(listed)
        if old is not None:
            missing = np.flatnonzero(old._find(digests) < 0)
            if not len(missing):
                return old
            listed, digests = [listed[i] for i in missing], digests[missing]
        ids, words, lengths = _tokenised(tokenizer, max_length, listed)
        if old is not None:
            digests = np.concatenate((np.stack((old._high, old._low), axis=1), digests))
            ids, words = np.concatenate((old._ids, ids)), np.concatenate((old._words, words))
            lengths = np.concatenate((np.diff(old._starts), lengths))
        _write(folder / FILE, digests, ids, words, lengths)
        return cls(folder)

    def _find(self, digests: np.ndarray) -> np.ndarray:
        """Rows of digests uint64 (N, 2), −1 where there is none."""
        first = np.searchsorted(self._high, digests[:, 0])
        found = np.full(len(digests), -1, dtype=np.int64)
        active = np.arange(len(digests))
        # rows with one upper half follow each other; more than one is a rarity, so this loop ends after one turn
        while len(active):
            active = active[first[active] < len(self)]
            active = active[self._high[first[active]] == digests[active, 0]]
            same = self._low[first[active]] == digests[active, 1]
            found[active[same]] = first[active[same]]
            active = active[~same]
            first[active] += 1
        return found

    def get(self, text: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Tokens of a text.

        Returns:
            Ids and word groups as the tokenizer gives them without padding, each int32 (L,), or None if the text is not
            stored. Views of the file: do not write to them.
        """
        digest = _digest(text)
        high, low = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
        row = int(np.searchsorted(self._high, np.uint64(high)))
        while row < len(self._high) and int(self._high[row]) == high:
            if int(self._low[row]) == low:
                part = slice(int(self._starts[row]), int(self._starts[row + 1]))
                return self._ids[part], self._words[part]
            row += 1
        return None


def _tokenised(
    tokenizer: "PreTrainedTokenizerFast", max_length: int, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and words one after the other, int32, and the number of each text's tokens, int64."""
    ids: list[np.ndarray] = []
    words: list[np.ndarray] = []
    for start in range(0, len(texts), _BATCH):
        part = list(texts[start : start + _BATCH])
        encoded = tokenizer(part, padding=False, truncation=True, max_length=max_length)
        ids += [np.array(row, dtype=np.int32) for row in encoded["input_ids"]]
        words += [
            np.array([-1 if w is None else w for w in encoded.word_ids(i)], dtype=np.int32) for i in range(len(part))
        ]
    lengths = np.array([len(row) for row in ids], dtype=np.int64)
    empty = np.zeros(0, dtype=np.int32)
    return np.concatenate([empty, *ids]), np.concatenate([empty, *words]), lengths


def _write(path: Path, digests: np.ndarray, ids: np.ndarray, words: np.ndarray, lengths: np.ndarray) -> None:
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ends = np.cumsum(lengths)
    starts = np.concatenate(([0], np.cumsum(lengths[order]))).astype(np.int64)
    # token k of the sorted file is token source[k] of the given order
    source = np.repeat((ends - lengths)[order] - starts[:-1], lengths[order]) + np.arange(len(ids))
    columns = [
        pa.array(digests[order, 0]),
        pa.array(digests[order, 1]),
        *(pa.LargeListArray.from_arrays(pa.array(starts), pa.array(part[source])) for part in (ids, words)),
    ]
    table = pa.table(columns, schema=_SCHEMA.with_metadata({"format": str(_FORMAT)}))
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with atomic_write(path, private=True) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(len(table), 1))
