"""`twinlens verify`: are these two pictures of the same thing?"""

from __future__ import annotations

from pathlib import Path

from twinlens.data.decode import open_picture
from twinlens.files import check_output_file, writing_file
from twinlens.match.answers import VerifyAnswer
from twinlens.match.matcher import Matcher

__all__ = ["load", "verify"]


def load(path: str | Path) -> Matcher:
    """Load a trained model: its folder, or the run folder around it.

    Raises:
        ModelError: no model, a damaged one, or one of a newer format.
    """
    return Matcher.load(path)


def verify(
    model: str | Path, a: str | Path, b: str | Path, *, show: str | Path | None = None
) -> VerifyAnswer:
    """Whether two picture files show the same thing; `show` draws them with the verdict.

    Torch is not loaded for `conv`, `mlp`, `residual` and `signet` with a comparator that is not
    learned; whoever asks often does so quicker of `load(model)`.

    Args:
        model: a model's folder or a run's.
        a: a picture file.
        b: another.
        show: where to write a picture of the two, a PNG or whatever the ending says.
    Raises:
        CalibrationError: the model is not calibrated.
        PictureError: a file that cannot be read.
        DataError: `show` cannot be written.
    """
    if show is not None:
        check_output_file(show)
    matcher = Matcher.lazy(model)
    answer = matcher.verify(a, b)
    if show is not None:
        from twinlens.report.montage import draw_verdict

        left, right = (open_picture(path, max_pixels=matcher.max_pixels) for path in (a, b))
        lines = [
            answer.verdict,
            f"distance {answer.distance:.4f}, threshold {answer.threshold:.4f}",
            f"probability {answer.probability:.1%}, cosine similarity {answer.similarity:.2f}",
        ]
        with writing_file(show) as part:
            draw_verdict(left, right, lines, answer.match).save(part)
    return answer
