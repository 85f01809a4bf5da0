"""Two embeddings -> a distance. Lower is closer, for every comparator.

`matrix(a, b)[i, j]` is the distance of a[i] and b[j], and `pairwise(a, b)[i]` that of a[i] and
b[i]; an embedding has distance 0 to itself. Learned comparators also have `logits`, for binary
cross-entropy: log-odds that a pair is genuine.

Shapes: N, M embeddings of D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from twinlens.errors import ConfigError, unknown_name

__all__ = ["COMPARATORS", "Comparator", "TorchComparison", "at_least_float32", "make_comparator",
           "safe_sqrt"]  # fmt: skip

# Elements of the largest intermediate tensor of `Network`: 64 MiB of float32.
BLOCK = 2**24


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision widened to float32; float32 and float64 unchanged.

    >>> at_least_float32(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def safe_sqrt(square: Tensor) -> Tensor:
    """The square root with gradient 0 at 0; torch's is infinite there, and NaN after it."""
    root: Tensor = _SafeSqrt.apply(square)
    return root


def squared_distances(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """`res[i, j] = |a[i] - b[j]|^2`, by one matrix product."""
    # Autocast would multiply in bfloat16.
    with torch.autocast(a_ND.device.type, enabled=False):
        square_NM: Tensor = _SquaredDistances.apply(a_ND, b_MD)
    return square_NM


class _SafeSqrt(torch.autograd.Function):
    """With its own gradient: that of torch's operations makes three times the passes."""

    @staticmethod
    def forward(ctx: Any, square: Tensor) -> Tensor:
        root = F.threshold(square, 1e-12, 0).sqrt_()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        # 1 / root without a mask, which would dominate the time.
        slope: Tensor = root / root.square().clamp_min_(1e-12)
        return slope.mul_(grad / 2)


class _SquaredDistances(torch.autograd.Function):
    """With its own gradient, for the same reason."""

    @staticmethod
    def forward(ctx: Any, a_ND: Tensor, b_MD: Tensor) -> Tensor:
        ctx.save_for_backward(a_ND, b_MD)
        square_NM = a_ND.square().sum(1)[:, None] + b_MD.square().sum(1)
        return square_NM.addmm_(a_ND, b_MD.T, alpha=-2).clamp_min_(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NM: Tensor) -> tuple[Tensor, Tensor]:
        a_ND, b_MD = ctx.saved_tensors
        grad_ND = grad_NM.sum(1)[:, None] * a_ND
        grad_MD = grad_NM.sum(0)[:, None] * b_MD
        return grad_ND.sub_(grad_NM @ b_MD).mul_(2), grad_MD.sub_(grad_NM.T @ a_ND).mul_(2)


class Comparator(nn.Module):
    """Base of all comparators; distances are float32 or wider, also inside autocast."""

    name: str

    def matrix(self, a_ND: Tensor, b_MD: Tensor) -> Tensor:
        """`res[i, j]` = the distance of a[i] and b[j], shape (N, M)."""
        return self.prepared_matrix(self.prepare(a_ND), self.prepare(b_MD))

    def prepare(self, emb_ND: Tensor) -> Tensor:
        """The form that `prepared_matrix` takes, computed once for embeddings compared often."""
        return at_least_float32(emb_ND)

    def prepared_matrix(self, a_ND: Tensor, b_MD: Tensor) -> Tensor:
        """`matrix` of prepared embeddings."""
        raise NotImplementedError

    def pairwise(self, a_ND: Tensor, b_ND: Tensor) -> Tensor:
        """`res[i]` = the distance of a[i] and b[i], shape (N,)."""
        return self.prepared_pairwise(self.prepare(a_ND), self.prepare(b_ND))

    def prepared_pairwise(self, a_ND: Tensor, b_ND: Tensor) -> Tensor:
        """`pairwise` of prepared embeddings."""
        raise NotImplementedError

    def logits(self, a_ND: Tensor, b_ND: Tensor) -> Tensor:
        """Log-odds that the pair a[i], b[i] is genuine, shape (N,); learned comparators only."""
        raise NotImplementedError


class Euclidean(Comparator):
    """`|a - b|`."""

    name = "euclidean"

    def prepared_matrix(self, a_ND: Tensor, b_MD: Tensor) -> Tensor:
        return safe_sqrt(squared_distances(a_ND, b_MD))

    def prepared_pairwise(self, a_ND: Tensor, b_ND: Tensor) -> Tensor:
        return safe_sqrt((a_ND - b_ND).square().sum(1))


class SquaredEuclidean(Comparator):
    """`|a - b|^2`: the order of Euclidean, without the triangle inequality."""

    name = "squared-euclidean"

    def prepared_matrix(self, a_ND: Tensor, b_MD: Tensor) -> Tensor:
        return squared_distances(a_ND, b_MD)

    def prepared_pairwise(self, a_ND: Tensor, b_ND: Tensor) -> Tensor:
        return (a_ND - b_ND).square().sum(1)


class Cosine(Comparator):
    """`1 - cos(a, b)`, in [0, 2]: half the squared distance of the normalised embeddings."""

    name = "cosine"

    def prepare(self, emb_ND: Tensor) -> Tensor:
        return F.normalize(at_least_float32(emb_ND), dim=1)

    def prepared_matrix(self, a_ND: Tensor, b_MD: Tensor) -> Tensor:
        return squared_distances(a_ND, b_MD) / 2

    def prepared_pairwise(self, a_ND: Tensor, b_ND: Tensor) -> Tensor:
        # From the difference, so that equal embeddings have distance exactly 0.
        return (a_ND - b_ND).square().sum(1) / 2


class Sigmoid(Comparator):
    """A sigmoid on the Euclidean distance: logit = bias - scale * |a - b| with scale > 0.

    The distance, scale * |a - b|, is the logit of identical pictures minus that of the pair.
    """

    name = "sigmoid"

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.ones(()))

    def prepared_matrix(self, a_ND: Tensor, b_MD: Tensor) -> Tensor:
        return self.log_scale.exp() * safe_sqrt(squared_distances(a_ND, b_MD))

    def prepared_pairwise(self, a_ND: Tensor, b_ND: Tensor) -> Tensor:
        return self.log_scale.exp() * safe_sqrt((a_ND - b_ND).square().sum(1))

    def logits(self, a_ND: Tensor, b_ND: Tensor) -> Tensor:
        return self.bias - self.pairwise(a_ND, b_ND)


class Network(Comparator):
    """A small network on |a - b| (Koch 2015 has one layer of it): D -> 512, ReLU, -> 1 logit.

    The distance is the logit of identical pictures minus that of the pair, and at least 0. It is
    not a metric: the triangle inequality does not hold.
    """

    name = "network"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, 512)
        self.out = nn.Linear(512, 1)

    def _logit(self, difference: Tensor) -> Tensor:
        with torch.autocast(difference.device.type, enabled=False):
            logit: Tensor = self.out(F.relu(self.hidden(difference.float()))).squeeze(-1)
        return logit

    def logits(self, a_ND: Tensor, b_ND: Tensor) -> Tensor:
        return self._logit((a_ND.float() - b_ND.float()).abs())

    def prepared_pairwise(self, a_ND: Tensor, b_ND: Tensor) -> Tensor:
        zero_1D = a_ND.new_zeros(1, a_ND.shape[1])
        logit = self.logits(torch.cat([zero_1D, a_ND]), torch.cat([zero_1D, b_ND]))
        # The last bits of a matrix product depend on the row; equal embeddings get exactly 0.
        equal_N = (a_ND == b_ND).all(dim=1)
        return (logit[0] - logit[1:]).clamp_min(0).masked_fill(equal_N, 0)

    def prepared_matrix(self, a_ND: Tensor, b_MD: Tensor) -> Tensor:
        num, dim = b_MD.shape
        rows = max(1, BLOCK // max(1, num * max(dim, 512)))
        blocks = []
        for part in torch.split(a_ND, rows):
            left = part.repeat_interleave(num, dim=0)
            blocks.append(
                self.prepared_pairwise(left, b_MD.repeat(len(part), 1)).view(len(part), num)
            )
        return torch.cat(blocks) if blocks else a_ND.new_zeros(0, num)


_MAKERS: dict[str, Callable[[int], Comparator]] = {
    "euclidean": lambda dim: Euclidean(),
    "squared-euclidean": lambda dim: SquaredEuclidean(),
    "cosine": lambda dim: Cosine(),
    "sigmoid": lambda dim: Sigmoid(),
    "network": Network,
}
COMPARATORS = tuple(_MAKERS)


def make_comparator(name: str, dim: int) -> Comparator:
    """The comparator with a name, for embeddings of `dim` dimensions.

    Raises:
        ConfigError: an unknown name.

    >>> a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0], [3.0, 0.0]])
    >>> make_comparator("euclidean", 2).matrix(a, b).tolist()
    [[5.0, 0.0]]
    """
    if name not in _MAKERS:
        raise ConfigError(unknown_name("comparator", name, COMPARATORS))
    return _MAKERS[name](dim)


class TorchComparison:
    """A `measure.pairs.Comparison` by torch: float32 arrays in and out, no gradients."""

    def __init__(self, comparator: Comparator) -> None:
        self._comparator = comparator
        self.name = comparator.name
        self._device = next(comparator.parameters(), torch.empty(0)).device

    @property
    def scale(self) -> float:
        """The learned factor of the Euclidean distance; 1 without one."""
        log_scale = getattr(self._comparator, "log_scale", None)
        return 1.0 if log_scale is None else float(log_scale.detach().exp())

    @torch.inference_mode()
    def matrix(self, a_ND: NDArray[np.float32], b_MD: NDArray[np.float32]) -> NDArray[np.float32]:
        """`res[i, j]` = the distance of a[i] and b[j], shape (N, M)."""
        return _array(self._comparator.matrix(self._tensor(a_ND), self._tensor(b_MD)))

    @torch.inference_mode()
    def pairwise(self, a_ND: NDArray[np.float32], b_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """`res[i]` = the distance of a[i] and b[i], shape (N,)."""
        return _array(self._comparator.pairwise(self._tensor(a_ND), self._tensor(b_ND)))

    def _tensor(self, array: NDArray[np.float32]) -> Tensor:
        # torch warns about sharing read-only memory, such as memory-mapped embeddings.
        array = np.asarray(array, dtype=np.float32)
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self._device)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.cpu().numpy(), dtype=np.float32)
