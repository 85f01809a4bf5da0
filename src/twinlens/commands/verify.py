"""`twinlens verify`: whether two pictures show the same thing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twinlens.files import check_output_file, save_picture, writing_file
from twinlens.match.answers import VerifyAnswer
from twinlens.match.matcher import Matcher, Model, Picture

__all__ = ["compare", "load", "verify"]


def load(path: str | Path, device: str = "auto", *, as_is: bool = False) -> Matcher:
    """Load a trained model.

    Args:
        path: folder of a model or of a run.
        device: computes embeddings: "auto" (CUDA if ONNX Runtime has it, else the CPU), "cpu",
            "cuda", "cuda:1", "coreml", "openvino" or "directml".
        as_is: take pictures as they are, although the model compares cropped faces.
    Raises:
        ModelError: no model, a damaged one, or one of a newer format.

    Example:
        >>> model = twinlens.load("runs/photos")  # doctest: +SKIP
        >>> model.distance("a.jpg", "b.jpg")  # doctest: +SKIP
        0.4137
    """
    matcher = Matcher.load(path, device)
    return matcher.as_is() if as_is else matcher


def verify(
    model: Model,
    a: Picture,
    b: Picture,
    *,
    prior: float = 0.5,
    min_quality: float | None = None,
    show: str | Path | None = None,
    explain: str | Path | None = None,
    as_is: bool = False,
    device: str = "auto",
) -> VerifyAnswer:
    """Verify that two pictures show the same thing.

    For many pairs, load the model once: `load(model).verify_many(pairs)`.

    Args:
        model: folder of a model or of a run, or a loaded model.
        a: a picture: a file, or any form of `match.matcher.Picture`.
        b: another picture.
        prior: probability of a genuine pair before the comparison, for the probability of the
            answer; 0.5 is even odds. The verdict does not depend on it.
        min_quality: least quality of each picture, in [0, 1]; None for no such gate.
        show: file for a picture of both and the verdict; its ending sets the format.
        explain: file for a picture of the parts that make them alike or unlike, with checks; takes
            some 600 embeddings. The answer then has an `explanation`.
        as_is: take pictures as they are, although the model compares cropped faces.
        device: device of the embeddings, as in `twinlens.load`.
    Raises:
        CalibrationError: the model is not calibrated.
        ConfigError: a prior outside (0, 1), or a minimum outside [0, 1].
        PictureError: a file that cannot be read, or a quality below the minimum (failure to
            acquire).
        DataError: `show` or `explain` cannot be written.
        ModelError: `explain` with an export that resizes pictures itself.

    Example:
        >>> twinlens.verify("runs/photos", "a.jpg", "b.jpg").match  # doctest: +SKIP
        True
    """
    for file in (show, explain):
        if file is not None:
            check_output_file(file)
    matcher = Matcher.of(model, device)
    matcher = matcher.as_is() if as_is else matcher
    a, b, faces = matcher.nearest_faces(a, b)
    answer = replace(matcher.verify(a, b, prior=prior, min_quality=min_quality), faces=faces)
    if explain is not None:
        answer = replace(answer, explanation=matcher.explain(a, b))
    if show is not None or explain is not None:
        _draw(matcher, (a, b), answer, show, explain)
    return answer


def compare(
    model: Model,
    a: Picture,
    b: Picture,
    *,
    prior: float = 0.5,
    min_quality: float | None = None,
    device: str = "auto",
) -> Image.Image:
    """Draw two pictures with the verdict, as `verify --show` does; a notebook shows the drawing.

    Args:
        model: as in `verify`.
        a: as there.
        b: as there.
        prior: as there.
        min_quality: as there.
        device: as there.
    Returns:
        An RGB picture.
    Raises:
        CalibrationError: the model is not calibrated.
        PictureError: a file that cannot be read, or a quality below the minimum (failure to
            acquire).

    Example:
        >>> twinlens.compare("runs/photos", "a.jpg", "b.jpg").save("pair.png")  # doctest: +SKIP
    """
    from twinlens.report.answer_sheet import draw_verdict

    matcher = Matcher.of(model, device)
    a, b, faces = matcher.nearest_faces(a, b)
    answer = replace(matcher.verify(a, b, prior=prior, min_quality=min_quality), faces=faces)
    return draw_verdict(matcher.open(a), matcher.open(b), _lines(answer), answer.match)


def _draw(
    matcher: Matcher,
    pictures: tuple[Picture, Picture],
    answer: VerifyAnswer,
    show: str | Path | None,
    explain: str | Path | None,
) -> None:
    left, right = map(matcher.open, pictures)
    lines = _lines(answer)
    if show is not None:
        from twinlens.report.answer_sheet import draw_verdict

        with writing_file(show) as part:
            save_picture(draw_verdict(left, right, lines, answer.match), part)
    if explain is not None and answer.explanation is not None:
        from twinlens.report.explanation import draw_explanation

        if matcher.picture.fit != "stretch":  # The maps show what the network sees.
            left, right = (_as_picture(one.pixels) for one in answer.explanation.pictures)
        with writing_file(explain) as part:
            save_picture(draw_explanation(answer.explanation, (left, right), lines), part)


def _lines(answer: VerifyAnswer) -> list[str]:
    probability = ""
    if answer.probability is not None:
        probability = f"probability {100 * answer.probability:.1f} %, "
    lines = [
        answer.verdict,
        f"distance {answer.distance:.4f}, threshold {answer.threshold:.4f}",
        f"{probability}cosine similarity {answer.similarity:.2f}",
        *wrap(answer.reason or "", 60),
    ]
    for line in [] if answer.faces is None else answer.faces.as_lines():
        lines += wrap(line, 60)
    for name, check in zip(("first", "second"), answer.domain or (), strict=False):
        if not check.in_domain:
            lines += wrap(f"{name} picture unlike the calibration: {check.reason}", 60)
    return lines


def _as_picture(pixels_CHW: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.moveaxis(pixels_CHW, 0, -1).squeeze())
