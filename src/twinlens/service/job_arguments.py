"""Arguments of jobs: names of sets, models and galleries, and numbers; never paths."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from twinlens.errors import ConfigError, unknown_name, validation_problems
from twinlens.recipes import load_recipe, recipe_names

__all__ = ["ARGUMENTS", "Arguments", "AuditArguments", "CalibrateArguments", "ClusterArguments",
           "ExportArguments", "FacesArguments", "ImportArguments", "TrainArguments",
           "check_arguments"]  # fmt: skip

OPEN_SECTIONS = ("picture", "augment", "sampler", "optimizer")
OPEN_SETTINGS = frozenset({
    "data.split", "data.fractions", "data.max_broken", "model.embedding", "train.steps",
    "train.epochs", "train.validations", "train.metric", "train.candidates", "train.refit",
    "train.extend", "train.precision", "train.target_far",
})  # fmt: skip
"""Settings that a caller may set, beside those of `OPEN_SECTIONS`.

None of them names a file, a package or a licence.
"""

SetName = Annotated[str, Field(description="name of a picture set")]
ModelName = Annotated[
    str | None, Field(description="name of a model; by default the first one of the service")
]
Share = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class _Arguments(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrainArguments(_Arguments):
    """A training.

    Attributes:
        pictures: name of the picture set.
        run: name of the new run, which is that of its model; by default after the set.
        recipe: name of a built-in recipe.
        time_budget: seconds; None for the length that the recipe sets.
        seed: random seed.
        settings: overrides of the recipe, "section.key" -> value.
    """

    pictures: SetName
    run: str | None = None
    recipe: str = "auto"
    time_budget: Annotated[float | None, Field(gt=0, le=30 * 24 * 3600)] = None
    seed: Seed = 0
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("recipe")
    @classmethod
    def _is_built_in(cls, recipe: str) -> str:
        if recipe not in recipe_names():
            raise ValueError(unknown_name("recipe", recipe, recipe_names()))
        return recipe

    @field_validator("settings")
    @classmethod
    def _is_open(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for key in settings:
            if key not in OPEN_SETTINGS and key.partition(".")[0] not in OPEN_SECTIONS:
                choices = [*sorted(OPEN_SETTINGS), *(f"{name}.*" for name in OPEN_SECTIONS)]
                raise ValueError(unknown_name("open setting", key, choices))
        return settings

    def overrides(self) -> dict[str, Any]:
        """Overrides of the recipe, with seed and time budget."""
        budget = {} if self.time_budget is None else {"train.time_budget": self.time_budget}
        return self.settings | {"seed": self.seed} | budget


class CalibrateArguments(_Arguments):
    """A calibration of a model on labelled pictures, or of a gallery.

    Attributes:
        model: name of the model; not with `gallery`.
        gallery: name of the gallery.
        pictures: labelled pictures; a gallery can do without, by its own templates.
        far: target false accept rate, for a model.
        fpir: target false positive identification rate, for a gallery.
        split: pictures of the set that are used, for a model.
        seed: random seed of pairs or probes.
    """

    model: ModelName = None
    gallery: str | None = None
    pictures: str | None = None
    far: Share = 0.01
    fpir: Share = 0.01
    split: Literal["auto", "train", "val", "test", "all"] = "auto"
    seed: Seed = 0


class ClusterArguments(_Arguments):
    """A clustering of pictures, as a proposal of identities.

    Attributes:
        pictures: name of the picture set.
        model: name of the model.
        labelled: whether to cluster the labelled pictures; by default the unsorted ones.
        threshold: mean distance up to which to merge; by default the calibrated threshold.
        min_size: least number of pictures of a group.
    """

    pictures: SetName
    model: ModelName = None
    labelled: bool = False
    threshold: Annotated[float | None, Field(ge=0)] = None
    min_size: Annotated[int, Field(ge=1, le=1000)] = 2


class ImportArguments(_Arguments):
    """An enrolment of the labelled pictures of a set, or of an uploaded Parquet file.

    Attributes:
        gallery: name of the gallery.
        pictures: name of the picture set; None for an uploaded file.
        thumbnails: whether the gallery keeps a small picture of each.
        min_quality: least quality of a picture, in [0, 1]; None for no such gate.
    """

    gallery: str
    pictures: str | None = None
    thumbnails: bool = False
    min_quality: Annotated[float | None, Field(ge=0, le=1)] = None


class ExportArguments(_Arguments):
    """An export of a model for other runtimes.

    Attributes:
        model: name of the model.
        format: "onnx" with metadata, "onnx-int8" (smaller, less exact), "openvino", or "hub".
        resize: "inside": the graph takes a picture of any size.
        pictures: labelled pictures to measure on; by default those of the training.
    """

    model: ModelName = None
    format: Literal["onnx", "onnx-int8", "openvino", "hub"] = "onnx"
    resize: Literal["outside", "inside"] = "outside"
    pictures: str | None = None


class AuditArguments(_Arguments):
    """A search for labels that are probably wrong.

    Attributes:
        pictures: name of the picture set.
        model: name of a model whose embeddings are compared; None for features that need no
            training, which need the extra `train`.
        seed: random seed of the errors that are made on purpose.
    """

    pictures: SetName
    model: str | None = None
    seed: Seed = 0


class FacesArguments(_Arguments):
    """Crops of faces into another set: the largest of a named picture, all of an unsorted one.

    Attributes:
        pictures: name of the picture set.
        into: name of the new set.
        margin: margin on each side, as a share of the face's box.
    """

    pictures: SetName
    into: str
    margin: Annotated[float, Field(ge=0, le=4)] = 0.2


Arguments: TypeAlias = (
    TrainArguments | CalibrateArguments | ClusterArguments | ImportArguments | ExportArguments
    | AuditArguments | FacesArguments
)  # fmt: skip

ARGUMENTS: dict[str, type[Arguments]] = {
    "train": TrainArguments,
    "calibrate": CalibrateArguments,
    "cluster": ClusterArguments,
    "import": ImportArguments,
    "export": ExportArguments,
    "audit": AuditArguments,
    "faces": FacesArguments,
}
"""Schema by kind of job."""


def check_arguments(kind: str, values: Any) -> Arguments:
    """The arguments of a job.

    Raises:
        ConfigError: an unknown kind, or wrong values, all of them at once.
    """
    if kind not in ARGUMENTS:
        raise ConfigError(unknown_name("kind of job", kind, ARGUMENTS))
    try:
        arguments = ARGUMENTS[kind].model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"arguments of '{kind}': {validation_problems(error)}") from error
    if isinstance(arguments, TrainArguments):
        load_recipe(arguments.recipe, arguments.overrides())
    if isinstance(arguments, CalibrateArguments) and not (arguments.gallery or arguments.pictures):
        raise ConfigError("a model is calibrated on labelled pictures: name a picture set")
    return arguments
