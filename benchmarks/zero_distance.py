"""`python -m benchmarks.zero_distance`: a training step with a pair at distance 0, side by side.

The network of `digits-mlp`, contrastive loss, Adam, 32 random pairs; the first is twice the same
picture, once labelled so and once as different (which embeddings that coincide amount to). There a
plain square root has no finite slope. Ours runs in torch, what was published in Keras 3 on the
backend that KERAS_BACKEND names: on TensorFlow with and without XLA, which Keras takes on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from twinlens.config import SamplerSettings
from twinlens.data.pair_samplers import PairSampler
from twinlens.learn.losses import contrastive
from twinlens.model.comparators import make_comparator
from twinlens.model.encoder import Encoder
from twinlens.recipes import load_recipe

NUM = 32
PAIRS = np.random.default_rng(0).random((2, NUM, 784), dtype=np.float32)
PAIRS[1, 0] = PAIRS[0, 0]
SAME = np.arange(NUM) % 2 == 0
LABELS = {"same": SAME, "different": ~SAME}


def main() -> None:
    """Print a line a distance and label: the loss, the next loss, the weights that are lost."""
    print(f"pairs of a picture with itself that PairSampler drew: {drawn_with_itself()}")
    print(f"{'distance':56} {'labelled':10} {'loss':>7} {'then':>7} {'NaN weights':>12}")
    # Ours first: torch and TensorFlow each bring an LLVM, and torch's must be there before.
    for label, same in LABELS.items():
        show("twinlens: Euclidean().pairwise(a, b)", label, *ours(same))
    if find_spec("keras") is None:
        print("Keras is absent, so that is all: pip install keras tensorflow-cpu")
        return
    for name, label, figures in published():
        show(name, label, *figures)


def show(name: str, label: str, before: float, after: float, lost: float) -> None:
    print(f"{name:56} {label:10} {before:7.4f} {after:7.4f} {lost:12.0%}", flush=True)


def ours(same: np.ndarray) -> tuple[float, float, float]:
    """By the recipe's own network, distance and loss (halved, as Hadsell 2006 has it)."""
    torch.manual_seed(0)
    settings = load_recipe("digits-mlp").settings()
    encoder = Encoder(settings.model, settings.picture)
    comparator = make_comparator(settings.model.comparator, settings.model.embedding)
    optimizer = torch.optim.Adam(encoder.parameters(), settings.optimizer.rate)
    genuine, losses = torch.from_numpy(same), []
    for _ in range(2):
        a_ND, b_ND = (encoder(x.view(NUM, 1, 28, 28)) for x in torch.from_numpy(PAIRS))
        loss = contrastive(comparator.pairwise(a_ND, b_ND), genuine, ~genuine, 1.0) / 2
        losses.append(loss.item())
        if len(losses) == 1:
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    weights = torch.cat([p.detach().ravel() for p in encoder.parameters()])
    return losses[0], losses[1], weights.isnan().float().mean().item()


def published() -> Iterator[tuple[str, str, tuple[float, float, float]]]:
    """The three distances of the tutorials, with both labels, by Keras."""
    keras: Any = import_module("keras")
    ops, epsilon, backend = keras.ops, keras.backend.epsilon(), keras.backend.backend()
    distances = {
        "norm(a - b, axis=1)": lambda d: ops.norm(d, axis=1),
        "sqrt(sum(square(a - b)))": lambda d: ops.sqrt(ops.sum(d * d, axis=1)),
        "sqrt(max(sum(square(a - b)), epsilon))": lambda d: ops.sqrt(
            ops.maximum(ops.sum(d * d, axis=1), epsilon)
        ),
    }
    for xla in (False, True) if backend == "tensorflow" else ("auto",):
        where = f"{backend}, XLA" if xla is True else backend
        for name, distance in distances.items():
            for label, same in LABELS.items():
                model = network(keras, distance)
                model.compile(keras.optimizers.Adam(1e-3), hadsell(keras.ops), jit_compile=xla)
                yield f"{where}: {name}", label, step(model, same)


def network(keras: Any, distance: Any) -> Any:
    keras.utils.set_random_seed(0)
    relu = [keras.layers.Dense(width, activation="relu") for width in (512, 256)]
    net = keras.Sequential([keras.Input((784,)), *relu, keras.layers.Dense(128)])
    left, right = keras.Input((784,)), keras.Input((784,))
    apart = keras.layers.Subtract()([net(left), net(right)])
    return keras.Model([left, right], keras.layers.Lambda(distance)(apart))


def hadsell(ops: Any) -> Any:
    def loss(same: Any, dist: Any) -> Any:
        same, gap = ops.cast(same, dist.dtype), ops.maximum(1 - dist, 0)
        return ops.mean(same * ops.square(dist) + (1 - same) * ops.square(gap)) / 2

    return loss


def step(model: Any, same: np.ndarray) -> tuple[float, float, float]:
    before = float(model.train_on_batch(list(PAIRS), same))
    lost = np.concatenate([np.isnan(w).ravel() for w in model.get_weights()]).mean()
    return before, float(model.test_on_batch(list(PAIRS), same)), float(lost)


def drawn_with_itself(pictures: int = 200, epochs: int = 20) -> str:
    forged = np.zeros(pictures, dtype=bool)
    sampler = PairSampler(np.arange(pictures) % 10, forged, SamplerSettings(kind="pairs"), seed=0)
    drawn = [sampler.batch(at).pairs for at in range(epochs * sampler.steps_per_epoch)]
    pairs = np.concatenate([pairs for pairs in drawn if pairs is not None])
    return f"{(pairs[:, 0] == pairs[:, 1]).sum()} of {len(pairs)}"


if __name__ == "__main__":
    main()
