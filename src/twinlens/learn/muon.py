"""Muon (Jordan 2024): steps for matrices whose singular values are all about one.

The momentum of a layer's gradient is made orthogonal before it is taken off the weights, so that no
few directions of it rule the step; a convolution is a matrix with one row for each output channel.
Everything that is no matrix goes AdamW's way. torch.optim.Muon takes nothing but matrices, and
multiplies in bfloat16, which takes twice as long where the processor has only float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonal"]

# The quintic of Jordan 2024: five rounds bring singular values from (0.01, 1] to about 0.7-1.2.
COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5
SIZE = 0.2  # root mean square of an AdamW step, so that both take one learning rate (Liu 2025)
MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """AdamW, but groups with `matrices` true take orthogonal steps.

    `matrices` are parameters with two dimensions or more. Their moment is `momentum`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__([{"matrices": False, **group} for group in groups], lr=lr, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; those of matrices are used up."""
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
            # AdamW asks for the step of every state that it loads; it never counts this one.
            state.update(momentum=torch.zeros_like(param), step=torch.zeros(()))
        state["momentum"].lerp_(param.grad, 1 - MOMENTUM)
        ahead = param.grad.lerp(state["momentum"], MOMENTUM)  # Nesterov's look ahead.
        step = orthogonal(ahead.flatten(1))
        param.mul_(1 - rate * weight_decay)
        param.add_(step.view_as(ahead), alpha=-rate * SIZE * max(step.shape) ** 0.5)
        param.grad = None  # So that AdamW, whose turn comes, leaves it alone.


def orthogonal(matrix_NM: Tensor) -> Tensor:
    """Nearly the orthogonal matrix nearest to one, (N, M), by Newton and Schulz's iteration.

    Singular values come out between about 0.7 and 1.2, which is as good for a step as 1
    (Jordan 2024); a matrix of zeros stays one.
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
