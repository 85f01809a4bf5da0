"""The networks that the PyTorch peers train, their pictures, and a loop for a given time.

Imported by the scripts beside it, in the peers' own environments; it knows no loss, no sampler and
neither library.

Shapes: M pictures, B of a batch, C channels, H x W pixels, D dimensions.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

# As twinlens trains by default: batches, rate and its course, and the views of drawn characters.
LABELS, IMAGES = 32, 4
RATE, DECAY = 3e-3, 0.05
WARM_UP, FIRST, LAST = 0.2, 0.04, 0.001
TURN, SHIFT, SIZES, SLANT = 10, (0.08, 0.08), (1 / 1.15, 1.15), 8


def example_network(normalize: bool = False) -> nn.Sequential:
    """The network for 28x28 in pytorch-metric-learning's example: two convolutions, 128 numbers."""
    layers = [
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout2d(0.25), nn.Flatten(), nn.Linear(9216, 128),
    ]  # fmt: skip
    return nn.Sequential(*layers, *([Normalized()] if normalize else []))


def blocks_network(channels: tuple[int, ...] = (64, 128, 128, 256), size: int = 32) -> nn.Module:
    """Blocks of 3x3 convolution, batch norm, pooling and ReLU, then 128 numbers of length 1."""
    layers: list[nn.Module] = []
    width = 1
    for channel in channels:
        layers += [
            nn.Conv2d(width, channel, 3, padding=1, bias=False), nn.BatchNorm2d(channel),
            nn.MaxPool2d(2), nn.ReLU(inplace=True),
        ]  # fmt: skip
        width, size = channel, size // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size * size, 128), Normalized())


class Normalized(nn.Module):
    """Embeddings of length 1."""

    def forward(self, emb_BD: Tensor) -> Tensor:
        return F.normalize(emb_BD, dim=1)


class Pictures(Dataset[tuple[Tensor, int]]):
    """uint8 pictures in memory, each seen through torchvision's transforms when it is asked for."""

    def __init__(self, pixels: np.ndarray, label: np.ndarray, view: transforms.Compose) -> None:
        self.pixels, self.label, self.view = pixels, label, view

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.view(self.pixels[row]), int(self.label[row])


def levels(pixels: np.ndarray) -> tuple[tuple[float], tuple[float]]:
    """Mean and standard deviation in [0, 1], as `transforms.Normalize` takes them."""
    return (float(pixels.mean() / 255),), (float(pixels.std() / 255),)


def rate_share(progress: float) -> float:
    """The learning rate as a share of the highest: up for a fifth, then down by a cosine."""
    if progress < WARM_UP:
        return FIRST + (1 - FIRST) * (1 - math.cos(math.pi * progress / WARM_UP)) / 2
    fallen = (progress - WARM_UP) / (1 - WARM_UP)
    return LAST + (1 - LAST) * (1 + math.cos(math.pi * min(1.0, fallen))) / 2


@torch.no_grad()
def embed(model: nn.Module, pixels: np.ndarray, view: transforms.Compose) -> np.ndarray:
    """The embeddings (M, D) of pictures (M, H, W), float32."""
    model.eval()
    parts = [
        torch.stack([view(x) for x in pixels[i : i + 512]]) for i in range(0, len(pixels), 512)
    ]
    return torch.cat([model(part) for part in parts]).numpy()


def train_by_the_clock(
    about: str | None,
    network: Callable[[], nn.Module],
    make_loader: Callable[[Pictures, int, int], DataLoader],
    criterion: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """The whole script of a peer on characters: read, train for so many seconds, embed, write."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("question")
    parser.add_argument("answer")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # Their samplers draw from numpy's global state.
    with np.load(args.question) as asked:
        train, label, pictures = asked["train"], asked["label"], asked["asked"]
    still = [transforms.ToTensor(), transforms.Normalize(*levels(train))]
    views = [
        transforms.ToPILImage(),
        transforms.RandomAffine(
            TURN, SHIFT, SIZES, (-SLANT, SLANT), transforms.InterpolationMode.BILINEAR, fill=255
        ),
    ]
    loader = make_loader(Pictures(train, label, transforms.Compose(views + still)), LABELS, IMAGES)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    steps = 0
    while (seconds := time.perf_counter() - started) < args.seconds:
        for x_BCHW, label_B in loader:
            seconds = time.perf_counter() - started
            if seconds >= args.seconds:
                break
            optimizer.param_groups[0]["lr"] = RATE * rate_share(seconds / args.seconds)
            loss = criterion(model(x_BCHW), label_B)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
    emb_MD = embed(model, pictures, transforms.Compose(still))
    np.savez(args.answer, embedding=emb_MD, steps=steps, seconds=seconds)
