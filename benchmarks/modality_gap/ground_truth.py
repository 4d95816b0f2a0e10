"""Paired text and image vectors with a known modality gap: no weights, no images, any number of pairs.

In a hidden orthonormal frame of d = 1280 axes

    u = Norm(m_u + s + n_u)      text
    v = Norm(m_v + s + n_v)      image

m   the modality's mean: its square lies along the axes as the modality's variance to the power 1.2. Both have the same
    norm and, after normalisation, are orthogonal.
s   what the two share: constant norm, variance (j + 1)^-1.7 along axis j. 70 % of it is one of 600 topics in 40
    regions (topic t has weight t^-0.5), the rest is the pair's own.
n   the modality's residual, 10 % of it constant within a topic. The spectrum of n_v - n_u is a peak and a shifted
    power law; each axis belongs to text and image in shares drawn from Beta(0.68, 0.68). The last fifth of the axes
    is only text's: images have rank 1024, as those of LLM2CLIP ViT-L.

``SHARED`` to ``EXPONENT`` were fitted, by fixed-point rounds on 262,144 normalised pairs of seed 0, to what AnisoAlign
(arXiv 2605.07825) prints for LLM2CLIP and Bunny's pairs. The exponent 1.7 and the Beta law were chosen by hand, among
a few, for C_lambda, O_128 and the participation ratio; the shares of topics are given, not fitted. All these numbers
are meant before normalisation, where the mean square norm of a vector is 1.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DIMENSION, IMAGE_RANK, CHUNK_ROWS = 1280, 1024, 4096
SHARED = 0.293885  # squared norm of s
TEXT_MEAN, IMAGE_MEAN = 0.281497, 0.283264  # norms of m_u and m_v
TILT = -0.007552  # share of m_u's direction in m_v's, so that the means are orthogonal after normalisation
PEAK = 33.34679  # first eigenvalue of the residual's spectrum over the mean one
OFFSET, EXPONENT = 17.525504, 0.9033620  # the other eigenvalues: (j - 1 + OFFSET)^-EXPONENT, j = 2 ... d
TOPICS, REGIONS = 600, 40
TOPIC_SHARE, REGION_SHARE = 0.7, 0.5  # of s, what is the topic's; of that, what is its region's
TOPIC_RESIDUAL = 0.1  # of each residual, what is constant within a topic
SPLIT = 0.68  # both parameters of the Beta law by which an axis' residual is split

IMAGE_AXES = np.arange(DIMENSION) < IMAGE_RANK
_RANK = np.arange(1.0, TOPICS + 1) ** -0.5
TOPIC_WEIGHTS = _RANK / _RANK.sum()


class GroundTruth:
    """A population of pairs; ``seed`` decides its frame, means, topics and all of its pairs."""

    def __init__(self, seed: int = 0) -> None:
        self._seed, generator = seed, self._generator(seed, 0)
        shared = np.where(IMAGE_AXES, np.arange(2.0, DIMENSION + 2) ** -1.7, 0)
        self._shared = SHARED * shared / shared.sum()  # float64 [d], as the next two: variances along the axes
        spectrum = _residual_spectrum()
        text_share = _text_share(spectrum, generator)
        self._text = 2 * (1 - SHARED - TEXT_MEAN**2) * text_share * spectrum
        self._image = 2 * (1 - SHARED - IMAGE_MEAN**2) * (1 - text_share) * spectrum
        means = _means(self._shared + self._text, self._shared + self._image, generator)
        self._topics = self._tables(means, generator)
        self._frame = np.linalg.qr(generator.standard_normal((DIMENSION, DIMENSION)))[0].astype(np.float32)

    @staticmethod
    def _generator(seed: int, stream: int, chunk: int = 0) -> np.random.Generator:
        key, counter = np.array([seed, stream], np.uint64), np.array([0, 0, 0, chunk], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    @property
    def image_basis(self) -> torch.Tensor:
        """An orthonormal basis of the images' column space, float32 [d, 1024]."""
        return torch.from_numpy(self._frame[:, :IMAGE_RANK].copy())

    def pairs(self, chunks: Iterable[int], rows: int = CHUNK_ROWS) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first ``rows`` pairs of each numbered chunk: texts and images, float32 [n, d] of unit rows."""
        made = [self._chunk(chunk, rows) for chunk in chunks]
        return torch.cat([text for text, _ in made]), torch.cat([image for _, image in made])

    def _chunk(self, chunk: int, rows: int) -> list[torch.Tensor]:
        topics, *streams = (self._generator(self._seed, stream, chunk) for stream in (1, 2, 3, 4))
        topic = np.searchsorted(np.cumsum(TOPIC_WEIGHTS)[:-1], topics.random(rows), side="right")
        own = ((1 - TOPIC_SHARE, self._shared), (1 - TOPIC_RESIDUAL, self._text), (1 - TOPIC_RESIDUAL, self._image))
        shared, *residuals = (
            stream.standard_normal((rows, DIMENSION), np.float32) * np.sqrt(share * variance).astype(np.float32)
            for stream, (share, variance) in zip(streams, own, strict=True)
        )
        shared += self._topics[0][topic]
        shared *= np.float32(np.sqrt(SHARED)) / np.linalg.norm(shared, axis=1, keepdims=True)
        sides = [shared + table[topic] + own for table, own in zip(self._topics[1:], residuals, strict=True)]
        return [torch.nn.functional.normalize(torch.from_numpy(side @ self._frame.T)) for side in sides]

    def _tables(self, means: list[Floats], generator: np.random.Generator) -> list[NDArray[np.float32]]:
        """Return what a topic holds constant, [topics, d] each: shared part; mean and residual of text and image."""
        weights = TOPIC_WEIGHTS[:, None]
        regions = generator.standard_normal((REGIONS, DIMENSION))[np.arange(TOPICS) % REGIONS]
        own, *residuals = (generator.standard_normal((TOPICS, DIMENSION)) for _ in range(3))
        mixed = np.sqrt(REGION_SHARE) * regions + np.sqrt(1 - REGION_SHARE) * own
        shared = _standardised(mixed, weights) * np.sqrt(self._shared)
        for _ in range(10):  # towards equal norms about a mean of 0
            shared /= np.linalg.norm(shared, axis=1, keepdims=True)
            shared -= (weights * shared).sum(0)
        tables = [shared * np.sqrt(TOPIC_SHARE * SHARED)] + [
            mean + _standardised(raw, weights) * np.sqrt(TOPIC_RESIDUAL * variance)
            for mean, raw, variance in zip(means, residuals, (self._text, self._image), strict=True)
        ]
        return [table.astype(np.float32) for table in tables]


def _residual_spectrum() -> Floats:
    """Return the eigenvalues of the residual's covariance before normalisation, float64 [d], descending, of sum 1."""
    tail = (np.arange(1, DIMENSION) + OFFSET) ** -EXPONENT
    law = np.append(tail.sum() * PEAK / (DIMENSION - PEAK), tail)
    return np.asarray(law / law.sum())


def _text_share(spectrum: Floats, generator: np.random.Generator) -> Floats:
    """Return the share of each axis' residual that is text's, float64 [d]: 1 where images have none, else drawn.

    The odds of the drawn ones are multiplied by the factor that gives text and image half of the whole each.
    """
    drawn = np.clip(generator.beta(SPLIT, SPLIT, DIMENSION), 1e-3, 1 - 1e-3)
    low, high, share = -10.0, 10.0, drawn  # the log of that factor, by bisection
    for _ in range(60):
        factor = np.exp((low + high) / 2)
        share = np.where(IMAGE_AXES, factor * drawn / (factor * drawn + 1 - drawn), 1)
        low, high = (low, (low + high) / 2) if (share * spectrum).sum() > 0.5 else ((low + high) / 2, high)
    return share


def _means(text_variance: Floats, image_variance: Floats, generator: np.random.Generator) -> list[Floats]:
    """Return m_u and m_v. Normalisation takes m to about (1 - variance) m; these are orthogonal."""
    text, image = (
        _unit(generator.choice([-1.0, 1.0], DIMENSION) * variance**0.6) for variance in (text_variance, image_variance)
    )
    kept, along = (1 - text_variance) * (1 - image_variance), np.where(IMAGE_AXES, text, 0)
    image = _unit(image - along * (kept * text * image).sum() / (kept * text * along).sum())
    return [TEXT_MEAN * text, IMAGE_MEAN * _unit(image + TILT * along)]


def _standardised(table: Floats, weights: Floats) -> Floats:
    """Return a table whose columns have weighted mean 0 and variance 1."""
    centred = table - (weights * table).sum(0)
    return np.asarray(centred / np.sqrt((weights * centred**2).sum(0)))


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / np.linalg.norm(vector))
