"""Map of embeddings: thumbnails laid out by t-SNE, as SVG text.

Near embeddings lie near (t-SNE, van der Maaten and Hinton 2008, after PCA); large distances on the
map are not meaningful. Models, files and pages play no part here.

Shapes: N pictures, D embedding dimension, K principal components, C channels, H height, W width.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["data_uri", "embedding_map", "map_rows", "thumbnail_uri"]

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

MAP_SIZE = (860, 600)
TWELVE = (
    "#4477aa", "#ee6677", "#228833", "#b89b1d", "#3fa9c9", "#aa3377",
    "#ee7733", "#009988", "#8a6d3b", "#7a5cc4", "#c75a93", "#7f8c2d",
)  # fmt: skip


def map_rows(
    identity: Sequence[str], rng: np.random.Generator, max_rows: int = 600
) -> NDArray[np.intp]:
    """Rows of the pictures to show, sorted: all, or random identities up to `max_rows`.

    If not all fit, at most 20 pictures of an identity are taken.
    """
    names = np.asarray(identity, dtype=object)
    if len(names) <= max_rows:
        return np.arange(len(names))
    rows: list[NDArray[np.intp]] = []
    for name in rng.permutation(np.unique(names)):
        own = np.flatnonzero(names == name)
        rows.append(rng.permutation(own)[:20])
        if sum(map(len, rows)) >= max_rows:
            break
    return np.sort(np.concatenate(rows)[:max_rows])


def embedding_map(
    emb_ND: Floats,
    identity: Sequence[str],
    pixels_NCHW: Pixels,
    *,
    forged: Bools | None = None,
    seed: int = 0,
    most_thumbnails: int = 300,
) -> str:
    """Pictures laid out so that near embeddings lie near: t-SNE after PCA, or PCA below 30.

    Pictures that would cover another, and those above `most_thumbnails`, are dots. The same
    input gives the same map. Choose rows with `map_rows` first: t-SNE is slow above a thousand.

    Args:
        emb_ND: embeddings; rows that are not finite are left out.
        identity: N names, for frame colours and tooltips.
        pixels_NCHW: the pictures.
        forged: (N,) pictures with a dashed frame.
        seed: random seed of the layout.
        most_thumbnails: largest number of thumbnails, which bounds the size of the SVG.
    Returns:
        One SVG element; empty if no embedding is finite.
    """
    rows = [int(row) for row in np.flatnonzero(np.isfinite(emb_ND).all(axis=1))]
    if not rows:
        return ""
    side = float(np.clip(0.55 * math.sqrt(MAP_SIZE[0] * MAP_SIZE[1] / len(rows)), 26, 64))
    at_N2 = _fit_into(_layout(emb_ND[rows].astype(np.float64), seed), side)
    shown = _without_overlap(at_N2, side * 0.85, most_thumbnails, np.random.default_rng(seed))
    names = sorted({identity[row] for row in rows})
    color = dict(zip(names, _identity_colors(len(names)), strict=True))
    dots, pictures = [], []
    for place, row in enumerate(rows):
        look = _Look(identity[row], color[identity[row]], forged is not None and bool(forged[row]))
        if shown[place]:
            pictures.append(_thumbnail(at_N2[place], side, look, pixels_NCHW[row]))
        else:
            dots.append(_dot(at_N2[place], look))
    legend, height = _legend(color) if len(names) <= len(TWELVE) else ("", 0)
    alt = f"Map of {len(rows):,} pictures of {len(names):,} identities by their embeddings."
    box = f'viewBox="0 0 {MAP_SIZE[0]} {MAP_SIZE[1] + height}"'
    start = f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="{alt}">'
    return start + "".join(dots + pictures) + legend + "</svg>"


def data_uri(pixels_CHW: Pixels, max_side: float | None = None) -> str:
    """A picture as a `data:` URI: PNG or JPEG, whichever is smaller; no side above `max_side`."""
    array = pixels_CHW[0] if len(pixels_CHW) == 1 else np.moveaxis(pixels_CHW, 0, -1)
    picture = Image.fromarray(np.ascontiguousarray(array))
    if max_side is not None:
        picture.thumbnail((round(max_side), round(max_side)))
    encoded = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        out = io.BytesIO()
        picture.save(out, kind, **options)
        encoded.append((out.tell(), kind, out.getvalue()))
    _, kind, content = min(encoded)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail_uri(opened: Image.Image, side: int) -> str:
    """An opened picture as a `data:` URI in colour, no side above `side`."""
    picture = opened.convert("RGB")
    picture.thumbnail((side, side), reducing_gap=3.0)
    return data_uri(np.moveaxis(np.asarray(picture), -1, 0))


@dataclass(frozen=True)
class _Look:
    """Tooltip, colour and dash of a picture."""

    identity: str
    color: str
    forged: bool

    @property
    def title(self) -> str:
        return f"<title>{escape(self.identity)}{' (forged)' if self.forged else ''}</title>"


def _dot(at_2: Floats, look: _Look) -> str:
    place = f'cx="{at_2[0]:.1f}" cy="{at_2[1]:.1f}"'
    return f'<circle {place} r="3.5" fill="{look.color}">{look.title}</circle>'


def _thumbnail(at_2: Floats, side: float, look: _Look, pixels_CHW: Pixels) -> str:
    _, high, wide = pixels_CHW.shape
    w, h = side * wide / max(high, wide), side * high / max(high, wide)
    place = f'x="{at_2[0] - w / 2:.1f}" y="{at_2[1] - h / 2:.1f}"'
    box = f'{place} width="{w:.1f}" height="{h:.1f}"'
    dash = ' stroke-dasharray="4 3"' if look.forged else ""
    return (
        f'<g>{look.title}<image {box} href="{data_uri(pixels_CHW, 2 * side)}"/>'
        f'<rect {box} fill="none" stroke="{look.color}" stroke-width="2"{dash}/></g>'
    )


def _layout(emb_ND: Floats, seed: int) -> Floats:
    centred_ND = emb_ND - emb_ND.mean(axis=0)
    u_NK, scale_K, _ = np.linalg.svd(centred_ND, full_matrices=False)
    pca_NK = (u_NK * scale_K)[:, :50]
    if pca_NK.shape[1] < 2:
        pca_NK = np.pad(pca_NK, ((0, 0), (0, 2 - pca_NK.shape[1])))
    scale = float(pca_NK[:, 0].std())
    if len(pca_NK) < 30 or scale < 1e-9:
        flat_N2: Floats = pca_NK[:, :2]
        return flat_N2
    from sklearn.manifold import TSNE

    start_N2 = pca_NK[:, :2] / scale * 1e-4
    near = min(30.0, (len(pca_NK) - 1) / 3)
    tsne = TSNE(init=start_N2, perplexity=near, max_iter=500, random_state=seed)
    at_N2: Floats = tsne.fit_transform(pca_NK).astype(np.float64)
    centred_N2 = at_N2 - at_N2.mean(axis=0)
    axes_22 = np.linalg.svd(centred_N2, full_matrices=False)[2]
    turned_N2: Floats = centred_N2 @ axes_22.T  # The long side across.
    return turned_N2


def _fit_into(at_N2: Floats, side: float) -> Floats:
    middle_2 = (at_N2.max(axis=0) + at_N2.min(axis=0)) / 2
    extent_2 = np.maximum(np.ptp(at_N2, axis=0), 1e-9)
    room_2 = np.array(MAP_SIZE) - side - 6
    fitted_N2: Floats = (at_N2 - middle_2) * (room_2 / extent_2) + np.array(MAP_SIZE) / 2
    return fitted_N2


def _without_overlap(at_N2: Floats, gap: float, limit: int, rng: np.random.Generator) -> Bools:
    shown = np.zeros(len(at_N2), dtype=bool)
    for row in rng.permutation(len(at_N2)):
        if shown.sum() >= limit:
            break
        shown[row] = not (np.abs(at_N2[shown] - at_N2[row]).max(axis=1) < gap).any()
    return shown


def _identity_colors(count: int) -> list[str]:
    if count <= len(TWELVE):
        return list(TWELVE[:count])
    # Steps of the golden angle keep neighbours in the alphabet far apart in hue.
    return [f"hsl({round(i * 137.508) % 360} 55% {(45, 58)[i % 2]}%)" for i in range(count)]


def _legend(color: Mapping[str, str]) -> tuple[str, int]:
    parts = []
    for place, (name, value) in enumerate(color.items()):
        x, y = place % 4 * MAP_SIZE[0] // 4 + 10, MAP_SIZE[1] + 26 + place // 4 * 22
        short = escape(name if len(name) <= 24 else "…" + name[-23:])
        text = f'x="{x + 18}" y="{y}" font-size="13" font-family="sans-serif"'
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{value}"/>')
        parts.append(f'<text {text} fill="var(--ink, #1d1f22)">{short}</text>')
    return "".join(parts), math.ceil(len(color) / 4) * 22 + 14
