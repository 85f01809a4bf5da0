"""`twinlens demo`: learn letters of three scripts, then tell apart and identify those of a fourth.

The pictures are the named set `glyphs`. The steps are those of a program of a user.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from twinlens.commands.identify import Identification, identify
from twinlens.commands.train import train
from twinlens.data.folders import read_table
from twinlens.data.table import ImageTable
from twinlens.gallery.gallery import Gallery
from twinlens.learn.run_folder import new_run_folder
from twinlens.match.matcher import Matcher
from twinlens.parsing import read_json

__all__ = ["demo"]

# No quarter turns, since a Z turned is an N. No fit to the validation letters in the end, since
# they set the gallery's threshold.
SETTINGS = {"train.steps": 200, "sampler.rotations": False, "train.refit": False}
ENROLLED_TYPEFACE, NUM_STRANGERS, FPIR, NUM_SHOWN = "DejaVuSerif", 4, 0.05, 5


def demo(*, out: str | Path | None = None, quiet: bool = False) -> Iterator[str]:
    """Train on letters, then identify letters of another script from one example each.

    Args:
        out: run folder; by default `runs/demo`, or `runs/demo-2` if that exists.
        quiet: log warnings only.
    Yields:
        Lines of text.

    Example:
        >>> for line in twinlens.demo():  # doctest: +SKIP
        ...     print(line)
    """
    run = Path(new_run_folder("demo") if out is None else out)
    table = read_table("glyphs")
    model = train(table, out=run, settings=SETTINGS, quiet=quiet)
    scores = read_json(run / "results.json")["verification"]
    eer = scores["eer"]
    yield (
        "The model learned Latin, phonetic, Armenian and Georgian letters. For pairs of pictures "
        f"of {scores['num_identities']} Cyrillic letters the equal error rate is "
        f"{100 * eer['value']:.1f} % ({100 * eer['low']:.1f} % to {100 * eer['high']:.1f} %)."
    )
    yield from _identify_unseen(model, table, run)
    yield f"Report: {run / 'report.html'}"


def _identify_unseen(model: Matcher, table: ImageTable, run: Path) -> Iterator[str]:
    """Enrol one picture of most unseen letters, and identify the other pictures of all."""
    letters = _as_files(table.of_split("test"), run / "letters")
    rng = np.random.default_rng(0)
    strangers = rng.choice(letters.identities(), NUM_STRANGERS, replace=False).tolist()
    is_stranger = np.isin(letters.identity.astype(str), strangers)
    is_plain = np.array([Path(path).stem == ENROLLED_TYPEFACE for path in letters.path])
    gallery = Gallery.create(run / "gallery", model)
    gallery.enrol(letters.select(is_plain & ~is_stranger))
    gallery.calibrate(table.of_split("val"), fpir=FPIR)
    yield (
        f"A gallery has one picture of each of {len(gallery)} of these letters. By its threshold "
        f"{100 * (1 - FPIR):.0f} % of the pictures of Greek letters, which were not trained on "
        "either, are nobody."
    )

    mated = letters.path[~is_stranger & ~is_plain].tolist()
    others = letters.path[is_stranger & ~is_plain].tolist()
    yield (
        f"Of {len(mated)} pictures of these letters in other typefaces "
        f"{100 * _share_right(gallery, mated, strangers):.0f} % are identified rightly; of "
        f"{len(others)} pictures of {NUM_STRANGERS} letters that are not enrolled "
        f"{100 * _share_right(gallery, others, strangers):.0f} % are nobody. For example:"
    )
    sheet = run / "identify.png"
    shown = [*rng.choice(mated, NUM_SHOWN - 1, replace=False), rng.choice(others)]
    for row in identify(gallery, shown, k=4, show=sheet, quiet=True).answers:
        assert row.answer is not None
        verdict = "right" if _is_right(row, strangers) else "wrong"
        yield f"  {_letter(row.picture)}: {row.answer.explain()} [{verdict}]"
    yield f"Picture of these answers: {sheet}"


def _share_right(gallery: Gallery, pictures: list[str], strangers: list[str]) -> float:
    answers = identify(gallery, pictures, quiet=True).answers
    return float(np.mean([_is_right(row, strangers) for row in answers]))


def _is_right(row: Identification, strangers: list[str]) -> bool:
    assert row.answer is not None
    letter = _letter(row.picture)
    return (row.answer.identity or row.answer.verdict) == (
        "nobody" if letter in strangers else letter
    )


def _letter(picture: str) -> str:
    """The letter in a picture, by its folder."""
    return Path(picture).parent.name


def _as_files(table: ImageTable, folder: Path) -> ImageTable:
    """Write pictures as class folders, `LETTER/TYPEFACE.png`."""
    assert table.pixels is not None
    for path, pixels in zip(table.path, table.pixels, strict=True):
        file = folder / Path(*Path(path).parts[1:]).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return read_table(folder)
