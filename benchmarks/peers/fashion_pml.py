"""pytorch-metric-learning: the loop of its example TripletMarginLossMNIST, on other pictures.

examples/notebooks/TripletMarginLossMNIST.ipynb of its repository: semi-hard triplets by cosine
similarity, margin 0.2, zeros left out of the mean, batches of 256 drawn at random, Adam at 0.01.
The example stops after one epoch and normalises by the levels of MNIST; both are given here.

Reads `train` (N, 28, 28) uint8, `label` (N,), `asked` (M, 28, 28); writes `embedding` (M, D) for
the cosine distance, and the `seconds` of training.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from networks import Pictures, embed, example_network, levels
from pytorch_metric_learning import distances, losses, miners, reducers
from torchvision import transforms

MARGIN = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question")
    parser.add_argument("answer")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    with np.load(args.question) as asked:
        train, label, pictures = asked["train"], asked["label"], asked["asked"]
    started = time.perf_counter()
    view = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*levels(train))])
    loader = torch.utils.data.DataLoader(Pictures(train, label, view), 256, shuffle=True)
    model = example_network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    distance = distances.CosineSimilarity()
    criterion = losses.TripletMarginLoss(
        margin=MARGIN, distance=distance, reducer=reducers.ThresholdReducer(low=0)
    )
    miner = miners.TripletMarginMiner(margin=MARGIN, distance=distance, type_of_triplets="semihard")
    for epoch in range(args.epochs):
        for x_BCHW, label_B in loader:
            optimizer.zero_grad()
            emb_BD = model(x_BCHW)
            loss = criterion(emb_BD, label_B, miner(emb_BD, label_B))
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: {time.perf_counter() - started:.0f} s", flush=True)
    seconds = time.perf_counter() - started
    np.savez(args.answer, embedding=embed(model, pictures, view), seconds=seconds)


if __name__ == "__main__":
    main()
