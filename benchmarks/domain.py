"""Pictures away from home: the share that a model's domain flags, and thresholds without labels.

Each data set gives a model: a whitened map of ImageNet's EfficientNet-lite0 at 96 x 96, fitted to
its training and validation identities, whose embeddings and picture statistics make the domain. The
model fitted them too, as after `twinlens train`. Flagged are pictures of its test identities (of
closed sets and landmarks: other pictures), of other data sets, and of its own pictures that were
changed. Only training and validation identities of these sets were used for choices.

Thresholds are set on pictures of test identities, with labels and without, at a FAR of 1 %, by one
half of the identities, and measured on the other: means over 10 halves.

Prediction: other domains 95 %, but for photographs of everything (landmarks, CIFAR-10).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.regret_data import DATA, DATA_SETS, LITE0
from benchmarks.table import Line
from twinlens.config import ModelSettings, PictureSettings
from twinlens.data.pixel_cache import decode_table
from twinlens.data.table import ImageTable
from twinlens.learn.whitening import whitening_transform
from twinlens.measure.domain import Domain, fit_domain
from twinlens.measure.error_rates import threshold_at_far
from twinlens.measure.picture_statistics import picture_statistics
from twinlens.measure.unlabelled import unlabelled_thresholds
from twinlens.model.encoder import Encoder

SETS = ("omniglot", "faces", "groceries", "signatures", "landmarks", "fashion", "mnist", "cifar10",
        "badges", "textures")  # fmt: skip
CLOSED = ("landmarks", "fashion", "mnist", "cifar10")
SIDE, DIM, FAR, HALVES = 96, 128, 0.01, 10
MOST_KNOWN, MOST_NEW, MOST_CHANGED = 200, 100, 20
SHARES = {"badges": 0.1, "textures": 0.1}  # of genuine pairs: 10 identities and fewer

Pixels = NDArray[np.uint8]
Floats = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pixels, identities, features of the network and statistics of some pictures."""

    pixels: Pixels
    identity: NDArray[Any]
    features: Floats
    statistics: Floats


@dataclass(frozen=True, eq=False)
class Home:
    """A model of a data set: its map, and the domain."""

    weight: Floats
    mean: Floats
    domain: Domain

    def embed(self, pictures: Pictures) -> Floats:
        """Embeddings of length 1."""
        emb: Floats = (pictures.features - self.mean) @ self.weight.T
        return emb / np.linalg.norm(emb, axis=1, keepdims=True).clip(1e-9)

    def flagged(self, pictures: Pictures) -> float:
        """Share of pictures outside the domain."""
        return float((self.domain.scores(self.embed(pictures), pictures.statistics) > 1).mean())


def lines() -> Iterator[Line]:
    """Each data set as a home, the mean, and the thresholds without labels."""
    settings = ModelSettings(backbone="tf_efficientnet_lite0", weights=str(LITE0))
    spec = PictureSettings(size=(SIDE, SIDE), color="rgb", mean=(0.5,), std=(0.5,))
    encoder = Encoder(settings, spec).eval()
    tables = {name: cifar() if name == "cifar10" else DATA_SETS[name].make(0) for name in SETS}
    known = {name: pictures(table, ("train", "val"), MOST_KNOWN, encoder)
             for name, table in tables.items()}  # fmt: skip
    new = {name: pictures(table, ("test",), MOST_NEW, encoder) for name, table in tables.items()}
    made = {name: given(draw(), encoder) for name, draw in MADE.items()}
    homes = {name: home_of(part, name in CLOSED) for name, part in known.items()}
    rates = []
    for name, home in homes.items():
        away = {other: home.flagged(part) for other, part in new.items() if other != name}
        away |= {other: home.flagged(part) for other, part in made.items()}
        few = new[name].pixels[:MOST_CHANGED]
        changed = {kind: home.flagged(given(change(few), encoder))
                   for kind, change in CHANGES.items()}  # fmt: skip
        own, others = home.flagged(new[name]), float(np.mean(list(away.values())))
        rates.append((own, others))
        yield Line(
            f"domain of {name}", "new pictures at home; those of other data sets",
            f"{100 * own:.1f} % flagged", f"{100 * others:.1f} % flagged",
            aim="at most 1 %, at least 95 %", reached=own <= 0.01 and others >= 0.95,
            note=f"{shown(away)}; changed: {shown(changed)}",
        )  # fmt: skip
    own, others = np.mean(rates, axis=0).tolist()
    yield Line(
        "domain, mean of all", "new pictures at home; those of other data sets",
        f"{100 * own:.1f} % flagged", f"{100 * others:.1f} % flagged",
        aim="at most 1 %, at least 95 %", reached=own <= 0.01 and others >= 0.95,
    )  # fmt: skip
    for name in (name for name in SETS if name not in CLOSED):
        yield unlabelled_line(name, homes[name].embed(new[name]), new[name].identity)


def pictures(table: ImageTable, splits: tuple[str, ...], most: int, encoder: Encoder) -> Pictures:
    """At most so many genuine pictures of some splits, as many of each identity as possible."""
    rows = np.flatnonzero(np.isin(table.split.astype(str), splits) & ~table.forged)
    rows = np.random.default_rng(0).permutation(rows)
    code = np.unique(table.identity[rows].astype(str), return_inverse=True)[1]
    place = np.zeros(len(rows), np.int64)
    for identity in np.unique(code):
        place[code == identity] = np.arange((code == identity).sum())
    kept = np.sort(rows[np.argsort(place, kind="stable")[:most]])
    decoded = decode_table(table.select(kept), encoder.picture, max_pixels=2**27, max_broken=0.1)
    return given(np.asarray(decoded.pixels), encoder, decoded.table.identity.astype(str))


def given(pixels: Pixels, encoder: Encoder, identity: NDArray[Any] | None = None) -> Pictures:
    """Features and statistics of decoded pictures."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(pixels), 32):
            batch = torch.from_numpy(np.array(pixels[start : start + 32]))
            parts.append(encoder.features(batch).numpy())
    names = np.full(len(pixels), "") if identity is None else identity
    return Pictures(pixels, names, np.concatenate(parts), picture_statistics(pixels))


def cifar() -> ImageTable:
    """Some photographs of CIFAR-10, training and test; all of them take a minute to decode."""
    file = zipfile.ZipFile(DATA / "cifar10/cifar10-jpeg.zip")
    names = sorted(name for name in file.namelist() if name.endswith(".jpg"))
    names = sorted(np.random.default_rng(0).permutation(names)[:2000].tolist())
    pixels = [np.asarray(Image.open(io.BytesIO(file.read(name)))) for name in names]
    parts = [name.split("/") for name in names]
    return ImageTable(
        np.array(names, dtype=object), np.array([part[1] for part in parts], dtype=object),
        np.zeros(len(names), dtype=bool), np.array([part[0] for part in parts], dtype=object),
        "cifar10", None, pixels=np.stack(pixels),
    )  # fmt: skip


def home_of(part: Pictures, closed: bool) -> Home:
    """The map and the domain by the known pictures of a data set."""
    label = np.unique(part.identity, return_inverse=True)[1]
    weight, mean = whitening_transform(
        torch.from_numpy(part.features), torch.from_numpy(label), DIM
    )
    names = np.arange(len(label)) if closed else label
    home = Home(weight.numpy(), mean.numpy(), None)  # type: ignore[arg-type]
    domain = fit_domain(home.embed(part), names, part.statistics, names)
    assert domain is not None
    return Home(home.weight, home.mean, domain)


def shown(rates: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * rate:.0f}" for name, rate in rates.items())


def unlabelled_line(name: str, emb: Floats, identity: NDArray[Any]) -> Line:
    """FAR and FRR on other identities, by thresholds with labels and without."""
    rates: dict[str, list[tuple[float, float]]] = {"with": [], "without": []}
    names = np.unique(identity)
    for half in range(HALVES):
        chosen = np.random.default_rng(half).permutation(names)[: len(names) // 2]
        inside = np.isin(identity, chosen)
        (dist, same), (new_dist, new_same) = (
            pair_distances(emb[rows], identity[rows]) for rows in (inside, ~inside)
        )
        thresholds = {
            "with": threshold_at_far(dist[~same], FAR),
            "without": unlabelled_thresholds(dist, FAR, SHARES.get(name, 0.05))[0],
        }
        for way, threshold in thresholds.items():
            far = float((new_dist[~new_same] <= threshold).mean())
            frr = float((new_dist[new_same] > threshold).mean()) if new_same.any() else np.nan
            rates[way].append((far, frr))
    words = []
    for part in rates.values():
        far, frr = np.mean(part, axis=0)
        highest = max(one for one, _ in part)
        rejected = "unknown" if np.isnan(frr) else f"{100 * frr:.1f} %"
        words.append(f"FAR {100 * far:.2f} % (up to {100 * highest:.1f}), FRR {rejected}")
    share = float(pair_distances(emb, identity)[1].mean())
    return Line(
        f"calibrate without labels, {name}", "with labels, a plain quantile", words[1], words[0],
        note=f"{len(names)} identities, of which half set the threshold; {100 * share:.1f} % of "
        "all pairs are genuine",
    )  # fmt: skip


def pair_distances(emb: Floats, identity: NDArray[Any]) -> tuple[Floats, NDArray[np.bool_]]:
    """Cosine distances of all pairs, and whether they are genuine."""
    a, b = np.triu_indices(len(emb), 1)
    return 1 - (emb[a] * emb[b]).sum(1), identity[a] == identity[b]


# --- pictures that are made or changed ----------------------------------------------------------


def noise() -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (40, 3, SIDE, SIDE), dtype=np.uint8)


def blank() -> Pixels:
    grey = np.linspace(0, 255, 40).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (40, 3, SIDE, SIDE)).copy()


def text() -> Pixels:
    """Lines of random letters."""
    rng, pages = np.random.default_rng(2), []
    for _ in range(40):
        page = np.full((192, 192), 255, np.uint8)
        for row in range(12, 192, 18):
            letters = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz   "), 20))
            cv2.putText(page, letters, (4, row), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 0, 1, cv2.LINE_AA)
        pages.append(cv2.resize(page, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    return np.stack(pages)[:, None].repeat(3, 1)


def blurred(pixels: Pixels) -> Pixels:
    rows = [cv2.GaussianBlur(one.transpose(1, 2, 0), (0, 0), 3) for one in pixels]
    return np.stack(rows).transpose(0, 3, 1, 2)


def noisy(pixels: Pixels) -> Pixels:
    added = pixels + np.random.default_rng(3).normal(0, 25, pixels.shape)
    return np.clip(added, 0, 255).astype(np.uint8)


def another_camera(pixels: Pixels) -> Pixels:
    """A steeper gamma and a warmer white."""
    gain = np.array([1.15, 0.95, 0.75])[:, None, None]
    return np.clip(255 * (pixels / 255.0) ** 1.5 * gain, 0, 255).astype(np.uint8)


MADE: dict[str, Callable[[], Pixels]] = {"noise": noise, "blank": blank, "text": text}
CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "inverted": lambda pixels: 255 - pixels,
    "darker": lambda pixels: (pixels * 0.4).astype(np.uint8),
    "blurred": blurred,
    "noisy": noisy,
    "camera": another_camera,
}
