"""`twinlens verify`: whether two pictures show the same thing."""

from __future__ import annotations

from pathlib import Path

from twinlens.data.decode import open_picture
from twinlens.files import check_output_file, save_picture, writing_file
from twinlens.match.answers import VerifyAnswer
from twinlens.match.matcher import Matcher

__all__ = ["load", "verify"]


def load(path: str | Path) -> Matcher:
    """Load a trained model.

    Args:
        path: folder of a model or of a run.
    Raises:
        ModelError: no model, a damaged one, or one of a newer format.

    Example:
        >>> model = twinlens.load("runs/photos")  # doctest: +SKIP
        >>> model.distance("a.jpg", "b.jpg")  # doctest: +SKIP
        0.4137
    """
    return Matcher.load(path)


def verify(
    model: str | Path, a: str | Path, b: str | Path, *, show: str | Path | None = None
) -> VerifyAnswer:
    """Verify that two picture files show the same thing.

    Torch is not loaded for the backbones `conv`, `mlp`, `residual` and `signet` with a comparator
    without weights. For many pairs, `load(model).verify(a, b)` is faster.

    Args:
        model: folder of a model or of a run.
        a: a picture file.
        b: another picture file.
        show: file for a picture of both and the verdict; its ending sets the format.
    Raises:
        CalibrationError: the model is not calibrated.
        PictureError: a file that cannot be read.
        DataError: `show` cannot be written.

    Example:
        >>> twinlens.verify("runs/photos", "a.jpg", "b.jpg").match  # doctest: +SKIP
        True
    """
    if show is not None:
        check_output_file(show)
    matcher = Matcher.load(model)
    answer = matcher.verify(a, b)
    if show is not None:
        from twinlens.report.answer_sheet import draw_verdict

        left, right = (open_picture(path, max_pixels=matcher.max_pixels) for path in (a, b))
        lines = [
            answer.verdict,
            f"distance {answer.distance:.4f}, threshold {answer.threshold:.4f}",
            f"probability {answer.probability:.1%}, cosine similarity {answer.similarity:.2f}",
        ]
        with writing_file(show) as part:
            save_picture(draw_verdict(left, right, lines, answer.match), part)
    return answer
