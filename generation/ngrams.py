"""Texts as sets of word n-grams, for what compares them: normalised, hashed to 64 bits."""

import unicodedata
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying modulo 2**64 loses nothing
_CACHED_CHARACTERS = 64  # longer words are hashed anew each time, so that the cache is bounded in bytes too


class _Kept(dict[int, str | None]):
    """For ``str.translate``: letters, marks, numbers and symbols stay, format characters go, the rest parts words."""

    def __missing__(self, code: int) -> str | None:
        category = unicodedata.category(chr(code))
        self[code] = chr(code) if category[0] in "LMNS" else None if category == "Cf" else " "
        return self[code]


_KEPT = _Kept()


def normalised(text: str) -> str:
    """``text`` without differences of compatibility forms (NFKC), case, white space and punctuation.

    >>> normalised("A  dog\\u2014asleep, on the \\uff32\\uff35\\uff27!")
    'a dog asleep on the rug'
    """
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_KEPT)
    return " ".join(unicodedata.normalize("NFKC", plain).split())


def text_hash(text: str) -> int:
    """64 bits that differ between any two texts but by a chance of 2**-64."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def ngrams(text: str, n: int) -> Hashes:
    """The set of the word n-grams of a normalised text, as ascending hashes; one of fewer words is one n-gram.

    >>> len(ngrams("a dog and a dog", 2)), len(ngrams("a dog", 8)), len(ngrams("", 8))
    (3, 1, 0)
    """
    words = text.split()
    n = min(n, len(words))
    hashes = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    # Horner's rule modulo 2**64: as the words' hashes are random, so are the sums.
    grams = np.zeros(len(words) - n + 1 if words else 0, np.uint64)
    for place in range(n):
        grams = grams * FACTOR + hashes[place : place + len(grams)]
    return np.unique(grams)


def _word_hash(word: str) -> int:
    return _cached_hash(word) if len(word) <= _CACHED_CHARACTERS else text_hash(word)


_cached_hash = lru_cache(maxsize=65_536)(text_hash)
