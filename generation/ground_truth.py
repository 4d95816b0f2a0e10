"""Paired text and image vectors with a known modality gap, made by law: no weights, no images, any number of pairs.

Every transfer method and every diagnostic can be shown and tested on them. In a hidden orthonormal frame

    u = Norm(m_u + s + n_u)      text
    v = Norm(m_v + s + n_v)      image

m   the modality's mean: its square lies along the axes as the modality's variance to the power 1.2; both are of equal
    norm and, normalised, at right angles.
s   what the two share: norm constant, variance (j + 1)^-1.7 along axis j. 70 % of it is one of 600 topics in 40
    regions (topic t has weight t^-0.5), the rest is the pair's own.
n   the modality's residual, 10 % of it constant within a topic. The spectrum of n_v - n_u is a peak and a shifted
    power law; each axis belongs to text and image in shares drawn from Beta(0.68, 0.68). The last fifth of the axes
    is text's alone: images have rank 4/5 d, as those of LLM2CLIP ViT-L have rank 1024 in 1280.

The free scalars (``CALIBRATED``) were fitted to the figures that AnisoAlign (arXiv 2605.07825) prints for LLM2CLIP and
Bunny's pairs, after normalisation, by ``python -m benchmarks.ground_truth --calibrate``. The exponent 1.7 and the Beta
law were chosen by hand, among a few, for C_lambda, O_128 and the participation ratio; the shares of topics are given,
not fitted.

At 1280 dimensions these hold: gap 0.392, paired cosine 0.291 (0.365 to 0.37 after the gap is added), rho 0.108, mean
cos(Delta_i, Dbar) 0.33, residual 1.264 and 0.89 of the whole, A_r 28.6, d_eff/d 0.284, first component 2.2 %,
first ten 9.7 %; and about: C_lambda (of float16 rows) 0.83, O_128 0.44, participation ratio of the images 58. At other
dimensions, from 64, all up to the residual still hold to about 2 %, but d_eff/d grows (0.30 at 768, 0.32 at 384, 0.38
at 64) and A_r falls (21, 16, 8), for an axis then is a larger share of the whole. `tests/test_ground_truth.py` states
most of it.

Only elementwise arithmetic of numpy and its counter-based Philox generator are used, one thread, no BLAS: a chunk is
the same to the bit whatever else was made before, and for any number of threads.
"""

from dataclasses import astuple, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import EmbeddingError

TOPICS, REGIONS = 600, 40
TOPIC_SHARE, REGION_SHARE = 0.7, 0.5  # of the shared part that is the topic's; of that, what is its region's
TOPIC_RESIDUAL = 0.1  # of each residual, what is constant within a topic
SPLIT = 0.68  # both parameters of the Beta law by which an axis' residual is shared out
IMAGE_RANK = 0.8  # of the dimension: 1024 of 1280
LAYERS = 12  # of plane rotations in the frame: more than log2(1280), so that each axis reaches all coordinates
BLOCK_ROWS = 512  # rows in work at once
SMALLEST_DIMENSION = 64

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Parameters:
    """What is calibrated. All of it is meant before normalisation, where a vector's mean square is 1.

    Attributes:
        shared: squared norm of the shared part, s.
        text_mean: norm of m_u.
        image_mean: norm of m_v.
        tilt: how much of m_u's direction is added to m_v's, so that the means are orthogonal after normalisation.
        peak: first eigenvalue of the residual's spectrum over the mean one, in 1280 dimensions.
        offset: the other eigenvalues are (j - 1 + offset)^-exponent, j = 2 ... 1280.
        exponent: see ``offset``.
    """

    shared: float
    text_mean: float
    image_mean: float
    tilt: float
    peak: float
    offset: float
    exponent: float


CALIBRATED = {
    64: Parameters(0.295681, 0.283581, 0.280653, 0.032163, 33.34679, 17.525504, 0.9033620),
    1280: Parameters(0.293885, 0.281497, 0.283264, -0.007552, 33.34679, 17.525504, 0.9033620),
}


def calibrated(dimension: int) -> Parameters:
    """The calibrated parameters: linear in 1/d through the two dimensions that were calibrated."""
    (low, at_low), (high, at_high) = CALIBRATED.items()
    weight = (1 / dimension - 1 / high) / (1 / low - 1 / high)
    pairs = zip(astuple(at_low), astuple(at_high), strict=True)
    return Parameters(*(weight * a + (1 - weight) * b for a, b in pairs))


class GroundTruth:
    """A population of pairs, and its truth.

    Args:
        dimension: d, of the vectors.
        seed: of the population: its frame, means, topics and all of its pairs.
        parameters: others than the calibrated ones.

    Attributes:
        image_rank: dimension of the images' column space.
        text_mean, image_mean: float64 [d], m_u and m_v along the frame's axes.
        shared, text_residual, image_residual: float64 [d], variances along the frame's axes, before normalisation.

    Raises:
        EmbeddingError: the dimension is below 64, or the seed is no unsigned 64-bit number.
    """

    def __init__(self, dimension: int = 1280, seed: int = 0, parameters: Parameters | None = None) -> None:
        if dimension < SMALLEST_DIMENSION:
            raise EmbeddingError(f"dimension {dimension}: the ground truth needs {SMALLEST_DIMENSION} or more")
        self.dimension, self.seed = dimension, _unsigned("seed", seed)
        self.image_rank = round(IMAGE_RANK * dimension)
        given = parameters or calibrated(dimension)
        generator = self._generator(0)
        images = np.arange(dimension) < self.image_rank  # the axes that images have
        self.shared = given.shared * _unit_sum(np.where(images, np.arange(2.0, dimension + 2) ** -1.7, 0))
        spectrum = residual_spectrum(dimension, given)
        text_share = _text_share(spectrum, images, generator)
        self.text_residual = 2 * (1 - given.shared - given.text_mean**2) * text_share * spectrum
        self.image_residual = 2 * (1 - given.shared - given.image_mean**2) * (1 - text_share) * spectrum
        self.text_mean, self.image_mean = self._means(given, images, generator)
        self._topics = self._tables(generator)
        self._frame = _Frame(dimension, generator)

    def pairs(self, chunk: int, rows: int = 4096) -> tuple[torch.Tensor, torch.Tensor]:
        """The pairs of a chunk: (texts, images), each float32 [rows, d] of unit rows.

        The first rows of a chunk are the same whatever ``rows`` is.

        Raises:
            EmbeddingError: ``chunk`` is no unsigned 64-bit number, or ``rows`` is negative.
        """
        _unsigned("rows", rows)
        topics, *generators = (self._generator(stream, chunk) for stream in (1, 2, 3, 4))
        weights = np.cumsum(_topic_weights())
        topic = np.searchsorted(weights[:-1], topics.random(rows), side="right")
        shared, texts, images = self._topics
        deviations = [
            np.sqrt(share * variance).astype(np.float32)
            for share, variance in (
                (1 - TOPIC_SHARE, self.shared),
                (1 - TOPIC_RESIDUAL, self.text_residual),
                (1 - TOPIC_RESIDUAL, self.image_residual),
            )
        ]
        norm = np.float32(np.sqrt(self.shared.sum()))
        made = np.empty((2, rows, self.dimension), np.float32)
        for first in range(0, rows, BLOCK_ROWS):
            block = topic[first : first + BLOCK_ROWS]
            size = (len(block), self.dimension)
            s, n_u, n_v = (
                generator.standard_normal(size, np.float32) * deviation
                for generator, deviation in zip(generators, deviations, strict=True)
            )
            s += shared[block]
            s *= norm / np.sqrt((s * s).sum(1, keepdims=True))
            for half, table, residual in ((0, texts, n_u), (1, images, n_v)):
                made[half, first : first + len(block)] = self._frame.rotate_rows(s + table[block] + residual)
        return torch.from_numpy(made[0]), torch.from_numpy(made[1])

    def frame(self) -> torch.Tensor:
        """The hidden frame, float32 [d, d]: column j is axis j. The shared part and the residual are largest along
        the first axes."""
        return torch.from_numpy(np.ascontiguousarray(self._frame.rotate(np.eye(self.dimension, dtype=np.float32))))

    def image_basis(self) -> torch.Tensor:
        """An orthonormal basis of the images' column space, float32 [d, image_rank]."""
        return self.frame()[:, : self.image_rank].clone()

    def _generator(self, stream: int, chunk: int = 0) -> np.random.Generator:
        key = np.array([self.seed, stream], np.uint64)
        counter = np.array([0, 0, 0, _unsigned("chunk", chunk)], np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))

    def _means(
        self, given: Parameters, images: NDArray[np.bool_], generator: np.random.Generator
    ) -> tuple[Floats, Floats]:
        """Normalisation takes a mean m to about (1 - variance) m; it is there that the two are at right angles."""
        text_variance, image_variance = self.shared + self.text_residual, self.shared + self.image_residual
        text, image = (
            _unit(generator.choice([-1.0, 1.0], self.dimension) * variance**0.6)
            for variance in (text_variance, image_variance)
        )
        kept = (1 - text_variance) * (1 - image_variance)
        along = np.where(images, text, 0)
        image = _unit(image - along * (kept * text * image).sum() / (kept * text * along).sum())
        return given.text_mean * text, given.image_mean * _unit(image + given.tilt * along)

    def _tables(self, generator: np.random.Generator) -> list[NDArray[np.float32]]:
        """What a topic holds constant, float32 [topics, d] each: its shared part, and text's and image's mean and
        residual."""
        weights = _topic_weights()[:, None]
        regions = generator.standard_normal((REGIONS, self.dimension))[np.arange(TOPICS) % REGIONS]
        own, *residuals = (generator.standard_normal((TOPICS, self.dimension)) for _ in range(3))
        mixed = np.sqrt(REGION_SHARE) * regions + np.sqrt(1 - REGION_SHARE) * own
        shared = _standardised(mixed, weights) * np.sqrt(self.shared)
        for _ in range(10):  # towards equal norms about a mean of 0
            shared /= np.sqrt((shared * shared).sum(1, keepdims=True))
            shared -= (weights * shared).sum(0)
        shared *= np.sqrt(TOPIC_SHARE * self.shared.sum())
        of = ((self.text_mean, self.text_residual), (self.image_mean, self.image_residual))
        tables = [shared] + [
            mean + _standardised(raw, weights) * np.sqrt(TOPIC_RESIDUAL * variance)
            for raw, (mean, variance) in zip(residuals, of, strict=True)
        ]
        return [table.astype(np.float32) for table in tables]


class _Frame:
    """A random orthonormal frame in layers, like a fast Hadamard transform: each permutes the axes, draws their signs
    and turns them by 45 degrees two by two."""

    def __init__(self, dimension: int, generator: np.random.Generator) -> None:
        self._half = dimension // 2
        scale = np.where(np.arange(dimension) < 2 * self._half, np.sqrt(0.5), 1)  # an odd axis is left as it is
        self._layers = [
            (
                generator.permutation(dimension),
                (generator.choice([-1, 1], dimension) * scale).astype(np.float32)[:, None],
            )
            for _ in range(LAYERS)
        ]

    def rotate(self, columns: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors in the frame's coordinates, float32 [d, n], to the outer ones."""
        for order, signs in self._layers:
            columns = columns[order]
            columns *= signs
            a, b = columns[: self._half], columns[self._half : 2 * self._half]
            difference = a - b
            b += a
            a[:] = difference
        return columns

    def rotate_rows(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same for float32 [n, d], each row brought to norm 1."""
        columns = self.rotate(np.ascontiguousarray(rows.T))
        columns /= np.sqrt((columns * columns).sum(0))
        return columns.T


def residual_spectrum(dimension: int, given: Parameters) -> Floats:
    """The eigenvalues of the residual's covariance before normalisation, float64 [d], descending, of sum 1.

    They are the law's 1280, read as a density over j/d: in fewer dimensions neighbours are summed.
    """
    tail = (np.arange(1, 1280) + given.offset) ** -given.exponent
    law = np.append(tail.sum() * given.peak / (1280 - given.peak), tail)
    cumulated = np.append(0, np.cumsum(law / law.sum()))
    return np.diff(np.interp(np.linspace(0, 1280, dimension + 1), np.arange(1281), cumulated))


def _text_share(spectrum: Floats, images: NDArray[np.bool_], generator: np.random.Generator) -> Floats:
    """How much of each axis' residual is text's: 1 where images have none, else drawn, and its odds then multiplied
    by whatever gives text and image half of the whole each."""
    drawn = np.clip(generator.beta(SPLIT, SPLIT, len(spectrum)), 1e-3, 1 - 1e-3)
    low, high = -10.0, 10.0  # the log of that factor, by bisection
    for _ in range(60):
        factor = np.exp((low + high) / 2)
        share = np.where(images, factor * drawn / (factor * drawn + 1 - drawn), 1)
        if (share * spectrum).sum() > 0.5:
            high = (low + high) / 2
        else:
            low = (low + high) / 2
    return share


def _topic_weights() -> Floats:
    return _unit_sum(np.arange(1.0, TOPICS + 1) ** -0.5)


def _standardised(table: Floats, weights: Floats) -> Floats:
    """Each column with weighted mean 0 and variance 1."""
    centred = table - (weights * table).sum(0)
    return np.asarray(centred / np.sqrt((weights * centred**2).sum(0)))


def _unit(vector: Floats) -> Floats:
    return np.asarray(vector / np.sqrt((vector * vector).sum()))


def _unit_sum(vector: Floats) -> Floats:
    return np.asarray(vector / vector.sum())


def _unsigned(name: str, value: int) -> int:
    if not 0 <= value < 2**64:
        raise EmbeddingError(f"{name} {value}: it must lie in 0 ... 2^64 - 1")
    return value
