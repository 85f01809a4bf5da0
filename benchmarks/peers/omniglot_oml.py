"""open-metric-learning on characters: BalanceSampler, TripletLossWithMiner, AllTripletsMiner.

docs/readme/examples_source/extractor/train_val_img_txt.md of its repository, with the tips of
pipelines/features_extraction/README.md: normalised features with margin 0.2. Network, batch,
optimiser and the course of its rate are twinlens's, and so are the sizes of torchvision's views.

Reads `train` (N, 32, 32) uint8, `label` (N,), `asked` (M, 32, 32); writes `embedding` (M, D) of
length 1, the `steps` done and the `seconds` of training.
"""

from __future__ import annotations

from networks import Pictures, blocks_network, train_by_the_clock
from oml.losses import TripletLossWithMiner
from oml.miners import AllTripletsMiner
from oml.samplers import BalanceSampler
from torch.utils.data import DataLoader

MARGIN = 0.2


def loader(data: Pictures, labels: int, images: int) -> DataLoader:
    sampler = BalanceSampler(data.label.tolist(), n_labels=labels, n_instances=images)
    return DataLoader(data, batch_sampler=sampler)


if __name__ == "__main__":
    criterion = TripletLossWithMiner(MARGIN, AllTripletsMiner())
    train_by_the_clock(__doc__, blocks_network, loader, criterion)
