"""The page of a run, shown in a notebook or opened in a browser."""

from __future__ import annotations

import html
import os
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from twinlens.errors import ModelError

__all__ = ["RunPage"]

PAGE = "report.html"
HEIGHT = 720  # pixels of the frame in a notebook


@dataclass(frozen=True)
class RunPage(os.PathLike[str]):
    """The report of a run; a notebook shows it inline.

    Attributes:
        path: the HTML file, complete in itself.
    """

    path: Path

    @classmethod
    def of_model(cls, model: Path) -> RunPage:
        """The page of the run that a model lies in.

        Raises:
            ModelError: none, such as beside a copy or an export.
        """
        path = model.resolve().parent / PAGE
        if not path.is_file():
            raise ModelError(
                f"there is no {PAGE} beside the model {model}, as in the run that `train` wrote: "
                "load that run, or write a page with twinlens.evaluate(model, data, "
                f'report="{PAGE}")'
            )
        return cls(path)

    def open(self) -> None:
        """Open the page in the browser."""
        webbrowser.open(self.path.as_uri())

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        page = html.escape(self.path.read_text(encoding="utf-8"))
        return (
            f'<iframe srcdoc="{page}" sandbox="allow-popups" title="{PAGE}" '
            f'style="width:100%;height:{HEIGHT}px;border:1px solid #8888"></iframe>'
        )
