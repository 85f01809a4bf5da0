"""Muon (Jordan 2024): steps for matrices whose singular values are all about one.

The momentum of a layer's gradient is orthogonalised, so that no few directions dominate the step. A
convolution is a matrix with a row for each output channel. All other parameters take AdamW's steps.

`torch.optim.Muon` accepts matrices only, and always multiplies in bfloat16: twice as slow as
float32 on a processor without it. With it, the steps of large matrices are three times as fast. On
Omniglot, one-shot of 20, Muon gives 83.6 % where AdamW gives 80.9 % after as many steps
(benchmarks/NOTES.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from twinlens.model.device import has_bfloat16

__all__ = ["Muon", "orthogonal"]

# The quintic of Jordan 2024: five rounds map singular values from (0.01, 1] to about 0.7-1.2.
COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5
STEP_RMS = 0.2  # RMS of an AdamW step, so that both have one learning rate (Liu 2025)
MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """AdamW, with orthogonal steps for parameter groups whose key `matrices` is true.

    Their parameters have two or more dimensions, and the state `momentum`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__([{"matrices": False, **group} for group in groups], lr=lr, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; gradients of matrices are then None."""
        assert closure is None
        for group in self.param_groups:
            if group["matrices"]:
                for param in group["params"]:
                    self._step_matrix(param, group["lr"], group["weight_decay"])
        super().step()

    def _step_matrix(self, param: Tensor, rate: float, weight_decay: float) -> None:
        if param.grad is None:
            return
        state = self.state[param]
        if not state:
            # AdamW needs `step` in every state that it loads.
            state.update(momentum=torch.zeros_like(param), step=torch.zeros(()))
        state["momentum"].lerp_(param.grad, 1 - MOMENTUM)
        ahead = param.grad.lerp(state["momentum"], MOMENTUM)  # Nesterov's momentum.
        fast = torch.bfloat16 if has_bfloat16(param.device.type) else param.dtype
        step = orthogonal(ahead.flatten(1).to(fast)).to(param.dtype)
        param.mul_(1 - rate * weight_decay)
        param.add_(step.view_as(ahead), alpha=-rate * STEP_RMS * max(step.shape) ** 0.5)
        param.grad = None  # AdamW then skips it.


def orthogonal(matrix_NM: Tensor) -> Tensor:
    """The nearest orthogonal matrix (N, M), approximately, by Newton-Schulz iterations.

    Singular values are then between about 0.7 and 1.2, which is as good for a step as 1 (Jordan
    2024). A matrix of zeros stays zero.

    >>> values = torch.linalg.svdvals(orthogonal(torch.diag(torch.tensor([3.0, 1.0]))))
    >>> bool(((values > 0.6) & (values < 1.3)).all())
    True
    """
    tall = matrix_NM.shape[0] > matrix_NM.shape[1]
    x = matrix_NM.T if tall else matrix_NM
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    step: Tensor = x.T if tall else x
    return step
