"""From word pieces to words: sums over the pieces of each word, on the device and without loops."""

from dataclasses import dataclass

import torch
from torch import Tensor

from medvlp.errors import ConfigError


@dataclass(frozen=True)
class Entries:
    """Entry of a merged text for each piece: [CLS], the words in order, [SEP].

    Attributes:
        index: (B, L) int64 in [0, L]; L for padding.
        count: (B,) int64, entries of each text: its words and its special tokens.
        words: (B,) int64, words alone. [CLS] being entry 0, words are the entries 1 to ``words``.
    """

    index: Tensor
    count: Tensor
    words: Tensor

    def up_to(self, count: Tensor) -> Tensor:
        """(B, L) bool, true at the first ``count`` (B,) entries of each text."""
        return torch.arange(self.index.shape[1], device=count.device) < count[:, None]

    def merge(self, values: Tensor) -> Tensor:
        """Sum the pieces of each entry, (…, B, L, D); rows beyond a text's entries are exact zeros.

        On a GPU the sum of three or more pieces may differ in the last bit between runs unless
        ``torch.use_deterministic_algorithms`` is on.
        """
        *lead, batch, length, dim = values.shape
        rows = torch.arange(batch, device=values.device)[:, None] * (length + 1)
        merged = values.new_zeros(*lead, batch * (length + 1), dim)
        merged = merged.index_add(-2, (rows + self.index).flatten(), values.reshape(*lead, batch * length, dim))
        return merged.view(*lead, batch, length + 1, dim)[..., :length, :]


def entries(word_groups: Tensor, attention_mask: Tensor) -> Entries:
    """Return the entries of a batch's texts.

    Consecutive pieces of one word are one entry; a special token that is attended to ([CLS], [SEP]) is one of its own.

    Args:
        word_groups: (B, L) int64, the word that each piece belongs to, −1 for special tokens and padding.
        attention_mask: (B, L), 0 at padding: tells [SEP] from padding.
    """
    if word_groups.shape != attention_mask.shape or word_groups.ndim != 2:
        raise ConfigError(
            f"word_groups and attention_mask are both (B, L), not {tuple(word_groups.shape)}"
            f" and {tuple(attention_mask.shape)}"
        )
    attended, word = attention_mask.bool(), word_groups >= 0
    same = torch.zeros_like(word)
    same[:, 1:] = word[:, 1:] & (word_groups[:, 1:] == word_groups[:, :-1]) & attended[:, :-1]
    starts = attended & ~same
    index = torch.where(attended, starts.cumsum(1) - 1, word_groups.shape[1])
    return Entries(index, starts.sum(1), (starts & word).sum(1))
