"""A WordPiece tokenizer as BERT's, trained on the text at hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drupe.data._optional import need

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Encoded:
    """Token ids, padded to one length.

    Attributes:
        input_ids: (N, S) int64; each row is [CLS] tokens [SEP] and then [PAD].
        attention_mask: (N, S) int64, 1 up to [SEP].
    """

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.input_ids)

    def inputs(self) -> dict[str, npt.NDArray[np.int64]]:
        """Return the arguments of the BERT models' ``forward``."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}


class WordPiece:
    """Text to token ids and back: lower case, punctuation apart, words in pieces.

    Args:
        vocabulary: the pieces in order of their ids, special tokens included.

    Reference:
        J. Devlin et al., "BERT", arXiv:1810.04805, section 3; Y. Wu et al., arXiv:1609.08144, section 4.1.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
        if missing:
            raise ValueError(f"[WordPiece] the vocabulary lacks {', '.join(missing)}")
        tokenizers = need("tokenizers", "drupe.data.WordPiece")
        self.vocabulary = list(vocabulary)
        ids = {token: i for i, token in enumerate(self.vocabulary)}
        model = tokenizers.models.WordPiece(vocab=ids, unk_token="[UNK]", max_input_chars_per_word=100)
        self._tokenizer: Any = _bert_tokenizer(tokenizers, model)
        self._tokenizer.decoder = tokenizers.decoders.WordPiece()
        self._tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[t] for t in SPECIAL_TOKENS)
        self._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", self.cls_id), ("[SEP]", self.sep_id)],
        )

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int = 4096, min_frequency: int = 2) -> WordPiece:
        """Learn the vocabulary: the same texts give the same one.

        Args:
            texts: what to learn from.
            vocab_size: pieces at most, special tokens included.
            min_frequency: how often a pair of pieces must occur to be merged.

        Raises:
            ValueError: ``vocab_size`` leaves no room for the characters of the texts.
            ImportError: tokenizers is not installed.
        """
        tokenizers = need("tokenizers", "drupe.data.WordPiece")
        texts = list(texts)
        learner = _bert_tokenizer(tokenizers, tokenizers.models.WordPiece(unk_token="[UNK]"))
        characters = sorted({c for text in texts for c in learner.normalizer.normalize_str(text) if not c.isspace()})
        # The trainer numbers the characters' pieces in the order of a hash map, which differs from run to run and
        # breaks ties among merges; naming them all beforehand fixes the order.
        alphabet = [*SPECIAL_TOKENS, *characters, *(f"##{c}" for c in characters)]
        if len(alphabet) > vocab_size:
            raise ValueError(f"[WordPiece] vocab_size is {vocab_size}: the characters alone take {len(alphabet)}")
        trainer = tokenizers.trainers.WordPieceTrainer(
            vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=alphabet, show_progress=False
        )
        learner.train_from_iterator(texts, trainer)
        vocabulary = learner.get_vocab()
        return cls(sorted(vocabulary, key=vocabulary.__getitem__))

    @classmethod
    def from_file(cls, path: str | Path) -> WordPiece:
        """Read a BERT ``vocab.txt``: one piece per line."""
        return cls(Path(path).read_text(encoding="utf-8").splitlines())

    def save(self, path: str | Path) -> None:
        """Write a BERT ``vocab.txt``."""
        Path(path).write_text("\n".join(self.vocabulary) + "\n", encoding="utf-8")

    def __len__(self) -> int:
        return len(self.vocabulary)

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text's pieces, without special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode(self, texts: Sequence[str], *, max_length: int = 128) -> Encoded:
        """Return the ids of several texts, cut and padded to one length.

        Args:
            texts: N of them; special tokens in the text, such as ``[MASK]``, are recognised.
            max_length: S at most, [CLS] and [SEP] included; S is that of the longest text if it is shorter.

        Raises:
            ValueError: no texts, or a ``max_length`` below 3.
        """
        if not texts:
            raise ValueError("[encode] there are no texts")
        if max_length < 3:
            raise ValueError(f"[encode] max_length is {max_length}: expected 3 or more")
        self._tokenizer.enable_truncation(max_length)
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        self._tokenizer.no_truncation()
        return _pad(rows, self.pad_id)

    def pack(self, texts: Sequence[str], *, length: int = 64) -> Encoded:
        """Return the texts cut into full rows of [CLS] … [SEP]; what a text leaves over makes a shorter row.

        Args:
            texts: documents; no row holds parts of two.
            length: S, special tokens included.

        Raises:
            ValueError: no text has a token, or a ``length`` below 3.
        """
        if length < 3:
            raise ValueError(f"[pack] length is {length}: expected 3 or more")
        step = length - 2
        rows = []
        for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False):
            ids = encoding.ids
            rows += [[self.cls_id, *ids[i : i + step], self.sep_id] for i in range(0, len(ids), step)]
        if not rows:
            raise ValueError("[pack] the texts have no tokens")
        return _pad(rows, self.pad_id)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of these ids, without special tokens."""
        return str(self._tokenizer.decode([int(i) for i in ids]))


def _bert_tokenizer(tokenizers: Any, model: Any) -> Any:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _pad(rows: list[list[int]], pad_id: int) -> Encoded:
    width = max(map(len, rows))
    input_ids = np.full((len(rows), width), pad_id, np.int64)
    attention_mask = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = row
        attention_mask[i, : len(row)] = 1
    return Encoded(input_ids, attention_mask)
