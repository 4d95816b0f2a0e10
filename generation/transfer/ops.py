"""The operations that a transfer is made of. A method is an ordered list of them, and so is what real images must be
treated with; both lists stand in ``transfer/<method>.safetensors``, whose tensors they name.

    l2norm              x / |x|
    sub:NAME, add:NAME  x -+ a vector [d]
    mul:NAME            x times a number
    noise, noise:sphere x + eta n / sqrt(d), n normal; or x + eta n / |n|
    project:NAME        B B' x, B [d, r] with orthonormal columns
    matmul:NAME         A x, A [d, d]
    recall:NAME         softmax(x M' / tau) M over the rows of M [m, d], by the largest weights
    radii:NAME          the radii of planes, moved from one distribution to another (see ``experimental``)
"""

from collections.abc import Mapping, Sequence

import torch

from ..errors import EmbeddingError
from .noise import Noise, noise_rows

SMALLEST_NORM = 1e-6  # below it a row has no direction
RECALL_TEMPERATURE = 0.01  # DeCap's notebook: 1 / 100
RECALL_ROWS = 256  # of the memory, with the largest weights; the others weigh less than e^-20 of the first


def apply_ops(
    rows: torch.Tensor, ops: Sequence[str], tensors: Mapping[str, torch.Tensor], noise: Noise | None = None
) -> torch.Tensor:
    """Applies operations in order.

    Args:
        rows: float32 [n, d]; may be changed in place.
        ops: as above. Noise is left out where ``noise`` is None.
        tensors: what the operations name; float64 or float32.
        noise: the rows' noise.

    Returns:
        float32 [n, d].

    Raises:
        EmbeddingError: a row has no direction to be normalised; says which.
    """
    for op in ops:
        verb, _, name = op.partition(":")
        if verb == "l2norm":
            _normalise(rows)
        elif verb == "sub":
            rows.sub_(tensors[name].float())
        elif verb == "add":
            rows.add_(tensors[name].float())
        elif verb == "mul":
            rows.mul_(float(tensors[name]))
        elif verb == "noise":
            if noise:
                rows.add_(noise_rows(noise, rows.shape[1], sphere=name == "sphere"))
        elif verb == "project":
            basis = tensors[name].float()
            rows = (rows @ basis) @ basis.T
        elif verb == "matmul":
            rows = rows @ tensors[name].float().T
        elif verb == "recall":
            rows = _recall(rows, tensors[name].float())
        elif verb == "radii":
            from .experimental import move_radii

            rows = move_radii(rows, tensors)
        else:
            raise EmbeddingError(f"unknown operation {op!r}; this code is older than the file that names it")
    return rows


def _normalise(rows: torch.Tensor) -> None:
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if not bool(norms.min() >= SMALLEST_NORM):  # also catches NaN
        row = int((~(norms[:, 0] >= SMALLEST_NORM)).nonzero()[0])
        raise EmbeddingError(f"row {row} has norm {float(norms[row]):.3g} and no direction: does it equal the mean?")
    rows.div_(norms)


def _recall(rows: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Largest weights alone: all of them would hold subnormal numbers, which make the product many times slower."""
    scores, nearest = (rows @ memory.T).topk(min(RECALL_ROWS, len(memory)), dim=1)
    weights = torch.softmax(scores / RECALL_TEMPERATURE, dim=1)  # [n, k]
    return torch.bmm(weights.unsqueeze(1), memory[nearest]).squeeze(1)
