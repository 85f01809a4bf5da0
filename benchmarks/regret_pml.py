"""pytorch-metric-learning's losses on a small convolutional network, trained by the clock.

The loop that its documentation shows, with four losses: each learns for a tenth of the time, and
the one with the lowest EER on validation pictures then learns for all of it. Batches have 4
pictures of each identity; the views are small turns, shifts and changes of size.

Shapes: N pictures, B of a batch, C channels, H x W pixels, D dimensions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.regret_baselines import Embedded, Pictures, error_on, grey, rgb, unit
from twinlens.data.table import ImageTable

__all__ = ["LOSSES", "embed_by_pml"]

MOST_PIXELS = 48 * 48  # of a picture; larger ones are reduced
CHANNELS = (32, 64, 128, 256)
DIMENSIONS = 128
BATCH, PICTURES_EACH = 128, 4
RATE, PROXY_RATE, DECAY = 2e-3, 2e-2, 0.05
FIRST_TRY = 0.1  # of the time, for each loss
TURN, SHIFT, SCALE = 0.15, 0.1, 0.1

LOSSES: dict[str, Callable[[int], nn.Module]] = {
    "multi-similarity": lambda num: losses.MultiSimilarityLoss(),
    "supervised contrastive": lambda num: losses.SupConLoss(),
    "sub-center ArcFace": lambda num: losses.SubCenterArcFaceLoss(
        num_classes=num, embedding_size=DIMENSIONS
    ),
    "proxy anchor": lambda num: losses.ProxyAnchorLoss(num, DIMENSIONS),
}


def embed_by_pml(pictures: Pictures, budget: float) -> Embedded:
    """Embed all pictures by the best loss's network."""
    x_NCHW, table, protocol = network_input(pictures), pictures.table, pictures.protocol
    part = np.flatnonzero(table.split != "test")
    held = table.split[part] == "val"
    error = {}
    for name in LOSSES:
        emb = embed(train(x_NCHW, table, name, FIRST_TRY * budget), x_NCHW[part])
        error[name] = error_on(protocol, table.select(part), emb, held)
    name = min(error, key=lambda name: error[name])
    started = time.perf_counter()
    emb = embed(train(x_NCHW, table, name, budget), x_NCHW)
    return Embedded(unit(emb), name, time.perf_counter() - started)


def network_input(pictures: Pictures) -> Tensor:
    """All pictures in one shape that keeps their median proportions, (N, C, H, W) uint8."""
    shapes = np.array([one.shape[:2] for one in pictures.all])
    height, width = np.median(shapes, axis=0)
    factor = min(1, math.sqrt(MOST_PIXELS / (height * width)))
    size = (max(8, round(width * factor)), max(8, round(height * factor)))
    view = rgb if pictures.coloured else grey
    small = np.stack([
        cv2.resize(view(one), size, interpolation=cv2.INTER_AREA) for one in pictures.all
    ])  # fmt: skip
    return torch.from_numpy(small[:, None] if small.ndim == 3 else small.transpose(0, 3, 1, 2))


class Network(nn.Module):
    """Blocks of 3x3 convolution, batch norm, ReLU and pooling, and a linear map to 128 numbers."""

    def __init__(self, shape: tuple[int, int, int], mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        layers: list[nn.Module] = []
        width, height, breadth = shape
        for channel in CHANNELS:
            layers += [
                nn.Conv2d(width, channel, 3, padding=1, bias=False), nn.BatchNorm2d(channel),
                nn.ReLU(inplace=True), nn.MaxPool2d(2, ceil_mode=True),
            ]  # fmt: skip
            width, height, breadth = channel, -(-height // 2), -(-breadth // 2)
        layers += [nn.Flatten(), nn.Linear(width * height * breadth, DIMENSIONS)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.normalize(self.layers((x_BCHW - self.mean) / self.std), dim=1)


def moved(x_BCHW: Tensor) -> Tensor:
    """Each picture turned, shifted and scaled a little; the border repeats."""
    num = len(x_BCHW)
    turn, scale = TURN * torch.randn(num), 1 + SCALE * torch.randn(num)
    shift = SHIFT * torch.randn(num, 2)
    ratio = x_BCHW.shape[2] / x_BCHW.shape[3]
    cos, sin = scale * torch.cos(turn), scale * torch.sin(turn)
    theta = torch.stack([cos, -sin * ratio, shift[:, 0], sin / ratio, cos, shift[:, 1]], 1)
    grid = F.affine_grid(theta.view(num, 2, 3), list(x_BCHW.shape), align_corners=False)
    return F.grid_sample(x_BCHW, grid, padding_mode="border", align_corners=False)


def train(x_NCHW: Tensor, table: ImageTable, loss: str, seconds: float) -> Network:
    """Train a network with a loss for so many seconds."""
    torch.manual_seed(0)
    np.random.seed(0)  # The sampler draws from numpy's global state.
    rows = np.flatnonzero((table.split == "train") & ~table.forged)
    part = table.select(rows)
    label_N = torch.tensor(part.labels())
    levels = x_NCHW[rows[:1000]].float()
    network = Network(tuple(x_NCHW.shape[1:]), float(levels.mean()), float(levels.std()))
    num = len(part.identities())
    criterion, miner = LOSSES[loss](num), miners.MultiSimilarityMiner()
    groups = [{"params": list(network.parameters()), "rate": RATE}]
    if proxies := list(criterion.parameters()):
        groups.append({"params": proxies, "rate": PROXY_RATE})
    optimizer = torch.optim.AdamW(groups, RATE, weight_decay=DECAY)
    each = max(PICTURES_EACH, -(-BATCH // num))
    batch = min(BATCH, num * each) // each * each
    sampler = MPerClassSampler(part.labels(), each, batch, length_before_new_iter=100 * batch)
    started = time.perf_counter()
    while True:
        for index in torch.tensor(list(sampler)).split(batch):
            share = (time.perf_counter() - started) / seconds
            if share >= 1:
                return network
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * min(share / 0.1, (1 + math.cos(math.pi * share)) / 2)
            emb_BD = network(moved(x_NCHW[rows[index.numpy()]].float()))
            label_B = label_N[index]
            mined = miner(emb_BD, label_B) if loss == "multi-similarity" else None
            value = criterion(emb_BD, label_B, mined)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()


@torch.inference_mode()
def embed(network: Network, x_NCHW: Tensor) -> NDArray[np.float32]:
    network.eval()
    return np.concatenate([network(part.float()).numpy() for part in x_NCHW.split(256)])
