"""Byte-pair encoding of words (Sennrich et al. 2016, section 3.2), small enough to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

# Marks the first symbol of a word, so that decoding knows where the spaces were.
_SPACE = "\u2581"


class Bpe:
    """Symbols are numbered: characters first, then merges in the order they were learned."""

    def __init__(self, characters: list[str], merges: list[tuple[str, str]]) -> None:
        symbols = [*characters, *(a + b for a, b in merges)]
        self._ids = {symbol: i for i, symbol in enumerate(symbols)}
        self._ranks = {pair: i for i, pair in enumerate(merges)}
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def train(cls, words: Iterable[str], vocabulary: int) -> Bpe:
        """Merge the most frequent pair (ties: the first in order) until `vocabulary` symbols."""
        counts = Counter(words)
        splits = {word: list(_SPACE + word) for word in counts}
        characters = sorted({symbol for symbols in splits.values() for symbol in symbols})
        merges: list[tuple[str, str]] = []
        while len(characters) + len(merges) < vocabulary:
            pairs: Counter[tuple[str, str]] = Counter()
            for word, symbols in splits.items():
                for pair in pairwise(symbols):
                    pairs[pair] += counts[word]
            if not pairs:
                break
            best = min(pairs, key=lambda pair: (-pairs[pair], pair))
            merges.append(best)
            for word, symbols in splits.items():
                if best[0] in symbols:
                    splits[word] = _merge(symbols, best)
        return cls(characters, merges)

    def encode(self, words: Iterable[str]) -> list[int]:
        """KeyError for a character that was not in the training words."""
        return [i for word in words for i in self._word(word)]

    def _word(self, word: str) -> list[int]:
        if word not in self._cache:
            symbols = list(_SPACE + word)
            while True:
                known = [p for p in pairwise(symbols) if p in self._ranks]
                if not known:
                    break
                symbols = _merge(symbols, min(known, key=self._ranks.__getitem__))
            self._cache[word] = [self._ids[symbol] for symbol in symbols]
        return self._cache[word]


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    i = 0
    while i < len(symbols):
        if i + 1 < len(symbols) and (symbols[i], symbols[i + 1]) == pair:
            out.append(pair[0] + pair[1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return out
