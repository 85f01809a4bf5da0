"""Settings, recipes and overrides: values that are accepted, and errors about all others."""

from __future__ import annotations

import doctest
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

import twinlens.config
import twinlens.recipes
from twinlens.config import PictureSettings, Settings, auto_keys, setting_fields, without_effect
from twinlens.errors import ConfigError, short_repr
from twinlens.recipes import (
    AUTO_KEYS,
    load_recipe,
    parse_overrides,
    recipe_names,
    recipe_text,
    recipe_values,
)
from twinlens.recipes.reference import settings_reference

REFERENCE = Path(__file__).parents[1] / "docs" / "settings.md"


def error_of(overrides: dict[str, object], recipe: str = "auto") -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


@pytest.fixture
def plain_recipe(tmp_path: Path) -> str:
    """A recipe by path that leaves nothing to the data."""
    path = tmp_path / "plain.toml"
    path.write_text('about = "x"\n[train]\nsteps = 7\n[loss]\nargs = {alpha = 2.0, beta = 1}\n')
    return str(path)


@pytest.mark.parametrize("name", recipe_names())
def test_every_built_in_recipe_loads_and_has_a_description(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.settings().seed == 0
    assert recipe.auto <= AUTO_KEYS
    assert recipe_values(name)["about"].strip()


def test_every_setting_is_described_in_one_or_two_sentences() -> None:
    for key, field in setting_fields():
        assert field.description, key
        assert field.description.endswith("."), key
        assert len(field.description) <= 200, key


def numbers(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The declarations of numbers below a JSON schema."""
    if schema.get("type") in ("integer", "number"):
        yield schema
    for inner in schema.values():
        for part in inner if isinstance(inner, list) else [inner]:
            if isinstance(part, dict):
                yield from numbers(part)


def test_every_number_has_limits() -> None:
    every = list(numbers(Settings.model_json_schema()))
    assert len(every) > 40
    for number in every:
        assert {"minimum", "exclusiveMinimum"} & number.keys(), number
        assert {"maximum", "exclusiveMaximum"} & number.keys(), number


def test_the_reference_of_settings_is_up_to_date() -> None:
    command = "python -m twinlens.recipes.reference > docs/settings.md"
    text = REFERENCE.read_text(encoding="utf-8") if REFERENCE.exists() else ""
    assert text == settings_reference(), f"write it anew: {command}"
    assert all(text.count(f"| `{key}` |") == 1 for key, _ in setting_fields())


def test_keys_left_to_the_data_are_taken_out_of_the_values() -> None:
    recipe = load_recipe()
    assert recipe.auto == AUTO_KEYS
    assert "size" not in recipe.values["picture"]
    chosen = recipe.settings({"picture.size": (20, 30), "train.steps": 11})
    assert chosen.picture.size == (20, 30)
    assert chosen.train.steps == 11


@pytest.mark.parametrize("loss", ["supcon", "triplet", "bce", "classes"])
def test_keys_left_to_other_settings_are_filled_in(loss: str, plain_recipe: str) -> None:
    keys = auto_keys("settings")
    overrides = {"loss.name": loss, "model.classes": "auto", **dict.fromkeys(keys, "auto")}
    recipe = load_recipe(plain_recipe, overrides)
    assert not recipe.auto
    settings = recipe.settings()
    for key in keys:
        section, field = key.split(".")
        assert getattr(getattr(settings, section), field) != "auto"


def test_overrides_are_not_left_to_the_data() -> None:
    recipe = load_recipe("auto", {"picture.size": [32, 40], "model.embedding": 64})
    assert not {"picture.size", "model.embedding"} & recipe.auto
    assert recipe.settings().picture.size == (32, 40)
    assert recipe.overrides == {"picture.size": [32, 40], "model.embedding": 64}


def test_an_override_can_leave_a_key_to_the_data(plain_recipe: str) -> None:
    assert load_recipe(plain_recipe).auto == set()
    assert load_recipe(plain_recipe, {"train.steps": "auto"}).auto == {"train.steps"}


def test_auto_is_no_value_of_other_settings() -> None:
    assert "loss.margin: " in error_of({"loss.margin": "auto"})


def test_one_error_lists_all_mistakes_with_near_names() -> None:
    message = error_of(
        {
            "loss.margn": 0.2,
            "optimiser.rate": 1e-3,
            "margin": 0.2,
            "trian": 3,
            "optimizer.rate": "fast",
            "augment.flip": 1,
            "seed": -1,
        }
    )
    for part in (
        "unknown key 'loss.margn': did you mean loss.margin",
        "unknown key 'optimiser': did you mean optimizer",
        "unknown key 'margin': did you mean loss.margin?",
        "unknown key 'trian': did you mean train",
        "optimizer.rate: input should be a valid number, found 'fast'",
        "augment.flip: input should be a valid boolean, found 1",
        "seed: input should be greater than or equal to 0, found -1",
    ):
        assert part in message
    assert len(message.splitlines()) == 1 + 7


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", True),
        ("seed", 2**63),
        ("train.steps", "3"),
        ("train.steps", 2.5),
        ("optimizer.rate", float("inf")),
        ("optimizer.rate", float("nan")),
        ("picture.size", [32]),
        ("picture.size", 32),
        ("model.channels", []),
        ("model.comparator", "manhattan"),
        ("loss", "supcon"),
        ("sampler.images_per_label", 1),
        ("model.embedding", 10**9),
        ("model.embedding", 128.0),
        ("model.channels", [64, 10**9]),
        ("model.channels", [True]),
        ("model.channels", [8] * 100),
        ("model.backbone", "x" * 1000),
        ("picture.size", [4096, 4096]),
        ("picture.size", ["32", 32]),
        ("picture.std", [1e-300]),
        ("train.steps", -3),
        ("train.steps", 10**5000),
        ("train.epochs", 1e308),
        ("optimizer.rate", 1e300),
        ("loss.margin", "x" * 10**6),
        ("loss.args", {"a": float("inf")}),
        ("loss.args", {"a": 10**5000}),
        ("loss.args", {"a": [0] * 10_000}),
        ("loss.args", {"a": object()}),
    ],
    # No address: each process of pytest has to name a test alike.
    ids=lambda value: short_repr(value).partition(" at 0x")[0],
)
def test_ill_typed_and_impossible_values_are_refused(key: str, value: object) -> None:
    assert f" {key}" in error_of({key: value})


def test_settings_of_python_programs_are_checked_too() -> None:
    for wrong in ("seed=3", ["seed=3"], {3: 4}, {None: 1}):
        with pytest.raises(ConfigError, match="settings need a value for each"):
            load_recipe("auto", wrong)  # type: ignore[arg-type]
    assert "model.channels: " in error_of({"model.channels": np.array([8, 8])})


def test_a_whole_number_is_a_number() -> None:
    assert load_recipe("auto", {"optimizer.rate": 1}).settings().optimizer.rate == 1.0


@pytest.mark.parametrize(
    ("item", "key", "value"),
    [
        ("loss.margin=0.5", "loss.margin", 0.5),
        ("seed=3", "seed", 3),
        ("picture.size=[28, 28]", "picture.size", [28, 28]),
        ("augment.flip=true", "augment.flip", True),
        ("model.backbone=resnet50", "model.backbone", "resnet50"),
        ("loss.name=pml:MultiSimilarityLoss", "loss.name", "pml:MultiSimilarityLoss"),
        ('model.weights="a = b.pth"', "model.weights", "a = b.pth"),
        (" loss.name = triplet ", "loss.name", "triplet"),
        ("loss.args.alpha=2.0", "loss.args.alpha", 2.0),
    ],
)
def test_overrides_are_toml_or_bare_words(item: str, key: str, value: object) -> None:
    overrides = parse_overrides([item])
    assert overrides == {key: value}
    assert type(overrides[key]) is type(value)


@pytest.mark.parametrize("item", ["loss.margin", "=3", " = 3"])
def test_an_override_needs_a_key_and_a_value(item: str) -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        parse_overrides([item])


def test_arguments_of_a_loss_are_overridden_one_by_one(plain_recipe: str) -> None:
    recipe = load_recipe(plain_recipe, {"loss.args.beta": 5})
    assert recipe.settings().loss.args == {"alpha": 2.0, "beta": 5}


def test_a_key_below_a_value_is_refused() -> None:
    assert "'loss.temperature' is a value" in error_of({"loss.temperature.x": 3})
    assert "'loss' is a value" in error_of({"loss": 3, "loss.margin": 3})


@pytest.mark.parametrize("length", ["steps", "epochs", "time_budget"])
def test_an_overriding_length_replaces_the_recipes_own(length: str, plain_recipe: str) -> None:
    for recipe in (load_recipe("auto", {f"train.{length}": 3}), load_recipe(plain_recipe)):
        train = recipe.settings().train
        given = {n: getattr(train, n) for n in ("steps", "epochs", "time_budget")}
        wanted = {length: 3} if recipe.name == "auto" else {"steps": 7}
        assert {n: v for n, v in given.items() if v is not None} == wanted
        assert "train.steps" not in recipe.auto


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({"train.steps": 3, "train.epochs": 2.0}, "train: set one of steps, epochs, time_budget"),
        ({"model.comparator": "sigmoid"}, "go together, found 'supcon' with 'sigmoid'"),
        (
            {"loss.name": "bce", "model.comparator": "cosine"},
            "go together, found 'bce' with 'cosine'",
        ),
        ({"loss.mining": "given"}, "loss.mining 'given' and sampler.kind 'triplets'"),
        (
            {"sampler.kind": "triplets", "loss.mining": "all"},
            "loss.mining 'given' and sampler.kind 'triplets'",
        ),
        ({"sampler.rotations": True, "picture.size": [8, 9]}, "square picture.size, found [8, 9]"),
        ({"model.shifts": True, "model.freeze": "all"}, "shifts needs a backbone that learns"),
        ({"model.shifts": True, "model.backbone": "strokes"}, "learns, found 'strokes'"),
        ({"model.clip": 3.0}, "model.clip needs model.init 'whitened'"),
        ({"picture.mean": [0.5, 0.5]}, "picture: mean needs 1 or 3 numbers"),
        (
            {"picture.color": "grey", "picture.std": [0.5] * 3},
            "picture: std needs 1 number for color 'grey', found 3",
        ),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(
    overrides: dict[str, object], part: str
) -> None:
    assert part in error_of(overrides)


def test_values_that_follow_from_the_loss() -> None:
    learned = load_recipe("auto", {"loss.name": "bce"}).settings()
    assert learned.model.comparator == "sigmoid"
    literal = load_recipe("auto", {"loss.name": "triplet", "sampler.kind": "triplets"}).settings()
    assert (literal.loss.mining, literal.model.comparator) == ("given", "cosine")
    plain = load_recipe("auto").settings()
    assert (plain.loss.mining, plain.model.comparator) == ("semi-hard", "cosine")


def test_a_sampler_that_follows_from_the_loss() -> None:
    assert load_recipe("cifar").settings().sampler.kind == "pairs"
    triplets = load_recipe("cifar", {"loss.name": "triplet"}).settings()
    assert (triplets.sampler.kind, triplets.loss.mining) == ("triplets", "given")
    assert load_recipe("cifar", {"loss.name": "supcon"}).settings().sampler.kind == "pk"


def test_a_frozen_layer_belongs_to_the_recipes_backbone() -> None:
    message = r"resnet50.tv_in1k from the layer 'layer4.1' on, .*--set model.freeze=LAYER"
    with pytest.raises(ConfigError, match=message):
        load_recipe("lookalikes", {"model.backbone": "tf_efficientnet_lite0"})
    for layer in ("blocks.6", "none", "all"):
        overrides = {"model.backbone": "tf_efficientnet_lite0", "model.freeze": layer}
        assert load_recipe("lookalikes", overrides).settings().model.freeze == layer
    assert load_recipe("lookalikes", {"model.backbone": "resnet50.tv_in1k"})
    # A wholly frozen backbone may be any.
    assert load_recipe("faces-triplet", {"model.backbone": "tf_efficientnet_lite0"})


def test_settings_without_effect_are_named() -> None:
    keys = ("loss.margin", "loss.temperature", "loss.forged_weight")
    keys += ("sampler.batch", "optimizer.rate")
    assert without_effect(load_recipe("auto").settings(), keys) == [
        "loss.margin has no effect with loss.name 'supcon'",
        "sampler.batch has no effect with sampler.kind 'pk'",
    ]
    triplets = load_recipe("auto", {"loss.name": "triplet", "sampler.kind": "triplets"}).settings()
    assert without_effect(triplets, keys) == [
        "loss.temperature has no effect with loss.name 'triplet'",
        "loss.forged_weight has no effect with loss.name 'triplet'",
    ]
    keys = ("model.kernel", "model.stride", "optimizer.rho", "sampler.fresh", "model.channels")
    assert without_effect(load_recipe("signet").settings(), keys) == [
        "model.kernel has no effect with model.backbone 'signet'",
        "model.channels has no effect with model.backbone 'signet'",
    ]
    plain = load_recipe("auto", {"model.backbone": "mlp"}).settings()
    assert without_effect(plain, ("model.pool", "model.head_norm")) == [
        "model.pool has no effect with model.backbone 'mlp'",
        "model.head_norm has no effect without model.head",
    ]
    assert without_effect(load_recipe("faces-triplet").settings(), keys) == [
        "model.kernel has no effect with model.backbone 'resnet50.tv_in1k'",
        "model.stride has no effect with model.backbone 'resnet50.tv_in1k'",
        "optimizer.rho has no effect with optimizer.name 'adam'",
        "model.channels has no effect with model.backbone 'resnet50.tv_in1k'",
    ]


def test_keys_without_a_condition_have_an_effect() -> None:
    settings = load_recipe("auto", {"loss.name": "pml:CosFaceLoss"}).settings()
    assert without_effect(settings, ["seed", "loss", "loss.args.margin", "data.split"]) == []
    assert without_effect(settings, ["model.grid"]) == [
        "model.grid has no effect without model.stage"
    ]
    first = load_recipe("auto", {"model.stage": 0}).settings()
    assert without_effect(first, ["model.grid"]) == []


@pytest.mark.parametrize("module", [twinlens.config, twinlens.recipes])
def test_examples_of(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_a_choice_from_the_data_must_fit_the_users_settings() -> None:
    recipe = load_recipe("auto", {"picture.mean": [0.4, 0.5, 0.6]})
    with pytest.raises(ConfigError, match="mean needs 1 number"):
        recipe.settings({"picture.color": "grey"})


def test_settings_come_back_from_their_json() -> None:
    settings = load_recipe("auto", {"model.head": [64], "train.epochs": 1.5}).settings()
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings
    with pytest.raises(ValidationError):
        settings.seed = 3  # type: ignore[misc]


def test_a_recipe_by_path(plain_recipe: str, tmp_path: Path) -> None:
    assert load_recipe(plain_recipe).settings().train.steps == 7
    assert "[train]" in recipe_text(plain_recipe)
    (tmp_path / "bad.toml").write_text("[train\n")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_recipe(str(tmp_path / "bad.toml"))
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        load_recipe(str(tmp_path / "absent.toml"))
    for name in ("r.yaml", "r.json"):
        with pytest.raises(ConfigError, match=f"the recipe {name} is no TOML file"):
            load_recipe(name)
    (tmp_path / "mark.toml").write_bytes(b"\xef\xbb\xbf[train]\r\nsteps = 7\r\n")
    assert load_recipe(str(tmp_path / "mark.toml")).settings().train.steps == 7


def test_a_recipe_with_many_mistakes_is_a_short_message(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("".join(f"key{n} = 1\n" for n in range(10_000)))
    with pytest.raises(ConfigError, match=r"\n  and 9980 more$") as caught:
        load_recipe(str(tmp_path / "r.toml"))
    assert len(str(caught.value)) < 30_000


def test_an_unknown_recipe_names_the_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown recipe 'autos': did you mean auto\?"):
        load_recipe("autos")


def test_channels_of_a_picture() -> None:
    assert PictureSettings(color="grey").channels == 1
    assert PictureSettings(color="rgb").channels == 3
