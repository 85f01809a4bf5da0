"""pytorch-metric-learning on characters: MPerClassSampler, MultiSimilarityMiner, triplets.

examples/notebooks/MetricLossOnly.ipynb of its repository: TripletMarginLoss with margin 0.1,
MultiSimilarityMiner with epsilon 0.1, four pictures of each class, torchvision's views. Network,
batch, optimiser and the course of its rate are twinlens's, and so are the sizes of the views;
mirroring, which the notebook does with photographs, would make other characters.

Reads `train` (N, 32, 32) uint8, `label` (N,), `asked` (M, 32, 32); writes `embedding` (M, D) of
length 1, the `steps` done and the `seconds` of training.
"""

from __future__ import annotations

from collections.abc import Callable

from networks import Pictures, blocks_network, train_by_the_clock
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.samplers import MPerClassSampler
from torch import Tensor
from torch.utils.data import DataLoader

MARGIN, EPSILON = 0.1, 0.1


def loader(data: Pictures, labels: int, images: int) -> DataLoader:
    batch = labels * images
    sampler = MPerClassSampler(data.label, images, batch, length_before_new_iter=100 * batch)
    return DataLoader(data, batch, sampler=sampler)


def criterion() -> Callable[[Tensor, Tensor], Tensor]:
    miner = miners.MultiSimilarityMiner(EPSILON)
    loss = losses.TripletMarginLoss(margin=MARGIN)
    return lambda emb_BD, label_B: loss(emb_BD, label_B, miner(emb_BD, label_B))


if __name__ == "__main__":
    train_by_the_clock(__doc__, blocks_network, loader, criterion())
