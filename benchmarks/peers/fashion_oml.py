"""open-metric-learning: the training loop of its documentation, on the small network of `pml`.

docs/readme/examples_source/extractor/train_val_img_txt.md of its repository (a dataset of
"input_tensors" and "labels", BalanceSampler, TripletLossWithMiner, AllTripletsMiner, Adam) with
the tips of pipelines/features_extraction/README.md: normalised features with margin 0.2, all
labels and as many instances as there is room for. An epoch of its sampler is a batch here, where
all labels fit into one; `--epochs` counts passes over the pictures instead.

Reads `train` (N, 28, 28) uint8, `label` (N,), `asked` (M, 28, 28); writes `embedding` (M, D) for
the Euclidean distance, and the `seconds` of training.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from networks import Pictures, embed, example_network, levels
from oml.interfaces.models import IExtractor
from oml.losses import TripletLossWithMiner
from oml.miners import AllTripletsMiner
from oml.samplers import BalanceSampler
from torch import Tensor
from torchvision import transforms


class Extractor(IExtractor):
    """The small network as its library wants one."""

    def __init__(self) -> None:
        super().__init__()
        self.network = example_network(normalize=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.network(x_BCHW)

    @property
    def feat_dim(self) -> int:
        return 128


class Labelled(Pictures):
    """Pictures under the keys that its loops read."""

    def __getitem__(self, row: int) -> dict[str, Any]:  # type: ignore[override]
        x, label = super().__getitem__(row)
        return {"input_tensors": x, "labels": label}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question")
    parser.add_argument("answer")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--instances", type=int, default=12)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # Its sampler draws from numpy's global state.
    with np.load(args.question) as asked:
        train, label, pictures = asked["train"], asked["label"], asked["asked"]
    started = time.perf_counter()
    view = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*levels(train))])
    labels = len(np.unique(label))
    sampler = BalanceSampler(label.tolist(), n_labels=labels, n_instances=args.instances)
    loader = torch.utils.data.DataLoader(Labelled(train, label, view), batch_sampler=sampler)
    model = Extractor().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=args.rate)
    criterion = TripletLossWithMiner(0.2, AllTripletsMiner())
    batches = args.epochs * len(label) // (labels * args.instances)
    done = 0
    while done < batches:
        for batch in loader:
            loss = criterion(model(batch["input_tensors"]), batch["labels"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            done += 1
        if done % 500 == 0:
            print(f"batch {done} of {batches}: {time.perf_counter() - started:.0f} s", flush=True)
    seconds = time.perf_counter() - started
    np.savez(args.answer, embedding=embed(model, pictures, view), seconds=seconds)


if __name__ == "__main__":
    main()
