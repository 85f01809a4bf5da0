"""Keras on TensorFlow, pair by pair: a CNN or an MLP with the contrastive loss.

`cnn` follows PyImageSearch, "Contrastive Loss for Siamese Networks with Keras and TensorFlow"
(A. Rosebrock, January 2021): two blocks of 64 2x2 filters, 48 dimensions, batches of 64 pairs.
`mlp` follows Keras's example mnist_siamese as a notebook for Keras 3 has it: 784-512-256-128,
batches of 32 pairs. Each picture is in one pair of its class and in one of another, drawn once.
Both take PyImageSearch's distance, since the notebook's `keras.ops.norm` turned to NaN here.

Reads `train` (N, 28, 28) uint8, `label` (N,), `asked` (M, 28, 28); writes `embedding` (M, D) for
the Euclidean distance, and the `seconds` of training.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
from keras import layers, ops

MARGIN = 1.0
BATCH = {"cnn": 64, "mlp": 32}


def cnn() -> keras.Model:
    picture = layers.Input((28, 28, 1))
    x = picture
    for _ in range(2):
        x = layers.Conv2D(64, 2, padding="same", activation="relu")(x)
        x = layers.Dropout(0.3)(layers.MaxPooling2D(2)(x))
    return keras.Model(picture, layers.Dense(48)(layers.GlobalAveragePooling2D()(x)))


def mlp() -> keras.Model:
    picture = layers.Input((28, 28, 1))
    x = layers.Flatten()(picture)
    for width in (512, 256):
        x = layers.Dense(width, activation="relu")(x)
    return keras.Model(picture, layers.Dense(128)(x))


def distance(embeddings: list[object]) -> object:
    a, b = embeddings
    squares = ops.sum(ops.square(a - b), axis=1, keepdims=True)
    return ops.sqrt(ops.maximum(squares, keras.config.epsilon()))


def contrastive(same: object, dist: object) -> object:
    same = ops.cast(same, dist.dtype)
    apart = ops.square(ops.maximum(MARGIN - dist, 0.0))
    return ops.mean(same * ops.square(dist) + (1 - same) * apart)


def pairs(label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the first and of the second pictures, and whether they are of one class."""
    rows = {c: np.flatnonzero(label == c) for c in np.unique(label)}
    others = {c: np.flatnonzero(label != c) for c in rows}
    near = [rng.choice(rows[c]) for c in label]
    far = [rng.choice(others[c]) for c in label]
    first = np.repeat(np.arange(len(label)), 2)
    return first, np.stack([near, far], 1).ravel(), np.tile([1.0, 0.0], len(label))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question")
    parser.add_argument("answer")
    parser.add_argument("--network", choices=("cnn", "mlp"), required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    with np.load(args.question) as asked:
        train, label, pictures = asked["train"], asked["label"], asked["asked"]
    started = time.perf_counter()
    train = train[..., None].astype("float32") / 255
    first, second, same = pairs(label, np.random.default_rng(args.seed))
    tower = {"cnn": cnn, "mlp": mlp}[args.network]()
    a, b = layers.Input((28, 28, 1)), layers.Input((28, 28, 1))
    model = keras.Model([a, b], layers.Lambda(distance, output_shape=(1,))([tower(a), tower(b)]))
    model.compile(optimizer="adam", loss=contrastive)
    # The tutorials' arrays of pairs, made here as they make them.
    both = [train[first], train[second]]
    model.fit(both, same, batch_size=BATCH[args.network], epochs=args.epochs, verbose=2)
    seconds = time.perf_counter() - started
    embedding = tower.predict(pictures[..., None].astype("float32") / 255, 256, verbose=0)
    np.savez(args.answer, embedding=embedding, seconds=seconds)


if __name__ == "__main__":
    main()
