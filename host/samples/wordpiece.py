"""The uncased BERT tokenizer: basic splitting, then greedy longest-match WordPiece.

Reference: google-research/bert, tokenization.py.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_MAX_CHARACTERS_PER_WORD = 100


class WordPiece:
    def __init__(self, vocabulary: Sequence[str]) -> None:
        self._ids = {token: i for i, token in enumerate(vocabulary)}
        self._unknown, self._pad = self._ids["[UNK]"], self._ids["[PAD]"]
        self._first, self._last = self._ids["[CLS]"], self._ids["[SEP]"]

    @classmethod
    def from_file(cls, path: Path) -> WordPiece:
        """vocab.txt: one token per line, its line number is its id."""
        return cls(path.read_text(encoding="utf-8").splitlines())

    def tokens(self, text: str) -> list[int]:
        return [i for word in _words(text) for i in self._pieces(word)]

    def encode(
        self, texts: Sequence[str], length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """input_ids and attention_mask, both (N, length), padded on the right."""
        ids = np.full((len(texts), length), self._pad, np.int64)
        mask = np.zeros((len(texts), length), np.int64)
        for row, text in enumerate(texts):
            tokens = [self._first, *self.tokens(text)[: length - 2], self._last]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return ids, mask

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _MAX_CHARACTERS_PER_WORD:
            return [self._unknown]
        pieces: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                piece = self._ids.get(prefix + word[start:end])
                if piece is not None:
                    break
            else:
                return [self._unknown]
            pieces.append(piece)
            start = end
        return pieces


def _words(text: str) -> list[str]:
    """Lower case, accents stripped; punctuation and CJK characters stand alone."""
    decomposed = unicodedata.normalize("NFD", text).lower()
    out: list[str] = []
    for character in decomposed:
        category = unicodedata.category(character)
        if category == "Mn":
            continue
        if character.isspace():
            out.append(" ")
        elif character in "\0\ufffd" or category.startswith("C"):
            continue
        elif _stands_alone(character, category):
            out.append(f" {character} ")
        else:
            out.append(character)
    return "".join(out).split()


def _stands_alone(character: str, category: str) -> bool:
    code = ord(character)
    ascii_symbol = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    ideograph = 0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0x20000 <= code <= 0x2FA1F
    return ascii_symbol or category.startswith("P") or ideograph
