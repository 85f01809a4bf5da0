"""twinlens teaches a computer which pictures show the same thing.

    import twinlens

    model = twinlens.train("photos/")
    answer = model.verify("a.jpg", "b.jpg")
    print(answer.explain())

The public names are loaded when they are first used, so `import twinlens` takes milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinlens.data.table import ImageTable
    from twinlens.errors import (
        CalibrationError,
        ConfigError,
        DataError,
        GalleryError,
        MissingExtraError,
        ModelError,
        PictureError,
        TrainingError,
        TwinlensError,
    )
    from twinlens.jobs.calibrate import calibrate
    from twinlens.jobs.cluster import cluster
    from twinlens.jobs.demo import demo
    from twinlens.jobs.doctor import doctor
    from twinlens.jobs.embed import embed
    from twinlens.jobs.evaluate import evaluate
    from twinlens.jobs.faces import faces
    from twinlens.jobs.identify import identify, search
    from twinlens.jobs.inspect import inspect
    from twinlens.jobs.train import train
    from twinlens.jobs.verify import load, verify
    from twinlens.match.answers import Hit, IdentifyAnswer, VerifyAnswer
    from twinlens.match.gallery import Gallery
    from twinlens.match.matcher import Matcher

__version__ = "0.1.0"

__all__ = [
    "CalibrationError",
    "ConfigError",
    "DataError",
    "Gallery",
    "GalleryError",
    "Hit",
    "IdentifyAnswer",
    "ImageTable",
    "Matcher",
    "MissingExtraError",
    "ModelError",
    "PictureError",
    "TrainingError",
    "TwinlensError",
    "VerifyAnswer",
    "calibrate",
    "cluster",
    "demo",
    "doctor",
    "embed",
    "evaluate",
    "faces",
    "identify",
    "inspect",
    "load",
    "search",
    "train",
    "verify",
]

_HOMES = {
    "Gallery": "match.gallery",
    "Hit": "match.answers",
    "IdentifyAnswer": "match.answers",
    "ImageTable": "data.table",
    "Matcher": "match.matcher",
    "VerifyAnswer": "match.answers",
    "calibrate": "jobs.calibrate",
    "cluster": "jobs.cluster",
    "demo": "jobs.demo",
    "doctor": "jobs.doctor",
    "embed": "jobs.embed",
    "evaluate": "jobs.evaluate",
    "faces": "jobs.faces",
    "identify": "jobs.identify",
    "inspect": "jobs.inspect",
    "load": "jobs.verify",
    "search": "jobs.identify",
    "train": "jobs.train",
    "verify": "jobs.verify",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'twinlens' has no attribute '{name}'")
    return getattr(import_module(f"twinlens.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
