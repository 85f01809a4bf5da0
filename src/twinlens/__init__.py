"""twinlens teaches a computer which pictures show the same thing.

Example:
    >>> import twinlens
    >>> model = twinlens.train("photos/")  # doctest: +SKIP
    >>> model.verify("a.jpg", "b.jpg").match  # doctest: +SKIP
    True

Public names are loaded at their first use, so `import twinlens` takes milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from twinlens._version import __version__ as __version__

if TYPE_CHECKING:
    from twinlens.commands.audit import audit
    from twinlens.commands.calibrate import calibrate
    from twinlens.commands.cluster import cluster
    from twinlens.commands.demo import demo
    from twinlens.commands.doctor import doctor
    from twinlens.commands.embed import embed
    from twinlens.commands.evaluate import evaluate
    from twinlens.commands.export import export
    from twinlens.commands.faces import faces
    from twinlens.commands.fetch import fetch
    from twinlens.commands.identify import identify, search
    from twinlens.commands.inspect import inspect
    from twinlens.commands.pack import pack
    from twinlens.commands.pretrain import pretrain
    from twinlens.commands.push import push_to_hub
    from twinlens.commands.train import train
    from twinlens.commands.verify import compare, load, verify
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
    from twinlens.gallery.gallery import Gallery
    from twinlens.learn.callbacks import Callback
    from twinlens.learn.trackers import MlflowTracker, WandbTracker
    from twinlens.match.answers import Hit, IdentifyAnswer, VerifyAnswer
    from twinlens.match.matcher import Matcher
    from twinlens.service.run import serve

__all__ = [
    "CalibrationError",
    "Callback",
    "ConfigError",
    "DataError",
    "Gallery",
    "GalleryError",
    "Hit",
    "IdentifyAnswer",
    "ImageTable",
    "Matcher",
    "MissingExtraError",
    "MlflowTracker",
    "ModelError",
    "PictureError",
    "TrainingError",
    "TwinlensError",
    "VerifyAnswer",
    "WandbTracker",
    "audit",
    "calibrate",
    "cluster",
    "compare",
    "demo",
    "doctor",
    "embed",
    "evaluate",
    "export",
    "faces",
    "fetch",
    "identify",
    "inspect",
    "load",
    "pack",
    "pretrain",
    "push_to_hub",
    "search",
    "serve",
    "train",
    "verify",
]

_HOMES = {
    "Callback": "learn.callbacks",
    "Gallery": "gallery.gallery",
    "Hit": "match.answers",
    "IdentifyAnswer": "match.answers",
    "ImageTable": "data.table",
    "Matcher": "match.matcher",
    "MlflowTracker": "learn.trackers",
    "VerifyAnswer": "match.answers",
    "WandbTracker": "learn.trackers",
    "audit": "commands.audit",
    "calibrate": "commands.calibrate",
    "cluster": "commands.cluster",
    "compare": "commands.verify",
    "demo": "commands.demo",
    "doctor": "commands.doctor",
    "embed": "commands.embed",
    "evaluate": "commands.evaluate",
    "export": "commands.export",
    "faces": "commands.faces",
    "fetch": "commands.fetch",
    "identify": "commands.identify",
    "inspect": "commands.inspect",
    "load": "commands.verify",
    "pack": "commands.pack",
    "pretrain": "commands.pretrain",
    "push_to_hub": "commands.push",
    "search": "commands.identify",
    "serve": "service.run",
    "train": "commands.train",
    "verify": "commands.verify",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'twinlens' has no attribute '{name}'")
    from twinlens.errors import naming_extras

    with naming_extras(f"twinlens.{name}"):
        return getattr(import_module(f"twinlens.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
