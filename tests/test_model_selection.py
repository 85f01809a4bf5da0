"""The choice among candidates on held-out pictures: what it finds, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from twinlens.config import ModelSettings, PictureSettings, Settings, TrainSettings
from twinlens.learn import model_selection
from twinlens.learn.cross_validation import train_network
from twinlens.learn.embed_batch import LabelledPixels
from twinlens.learn.model_selection import ModelSelection
from twinlens.model.compute import Compute
from twinlens.model.encoder import Encoder, embed_pixels
from twinlens.model.fused import FusedEncoder

PICTURE = PictureSettings(size=(16, 16), color="rgb", mean=(0.5,) * 3, std=(0.25,) * 3)
NETWORK = ModelSettings(backbone="mlp", channels=(8,), embedding=8)
SETTINGS = Settings(model=NETWORK, picture=PICTURE, train=TrainSettings(steps=5))
COMPUTE = Compute("cpu")
NAME = "mlp, from nothing"


def colored(identities: int = 20, each: int = 5) -> LabelledPixels:
    """An identity has a colour of its own; its shapes differ in each picture."""
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(identities), each)
    color = rng.integers(40, 216, (identities, 3))[label]
    shape = rng.random((len(label), 1, 4, 4)) > 0.5
    place = shape.repeat(4, 2).repeat(4, 3)
    noise = rng.integers(-12, 13, (len(label), 3, 16, 16))
    pixels = np.where(place, color[:, :, None, None] + noise, 255).clip(0, 255).astype(np.uint8)
    return LabelledPixels.of(pixels, label, np.zeros(len(label), bool))


def quiet(title: str) -> Callable[[int, int], None]:
    return lambda done, total: None


def selection_of(images: LabelledPixels, **more: object) -> ModelSelection:
    values: dict[str, object] = {
        "closed": False, "frozen": (None, PICTURE), "compute": COMPUTE, "seconds": None,
        "progress": quiet,
    }  # fmt: skip
    settings = more.pop("settings", SETTINGS)
    return ModelSelection(settings, images, images.label < 4, **(values | more))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def chosen() -> ModelSelection:
    """With a network that learned next to nothing from shapes."""
    images = colored()
    selection = selection_of(images)
    selection.add_features()
    network = train_network(SETTINGS, images, selection.rest(0), COMPUTE, None)
    selection.add_network(NAME, network, SETTINGS, 1.0)
    return selection


def test_where_colour_decides_the_histogram_is_chosen(chosen: ModelSelection) -> None:
    weights, table, pairs = chosen.choose()
    histograms = sum(weight for name, weight in weights.items() if "histogram" in name)
    assert histograms > 0.5
    assert sum(weights.values()) == pytest.approx(1)
    rows = {row.name: row for row in table}
    assert table[0].name == "the chosen model"
    assert table[0].eer < rows[NAME].eer
    assert rows[NAME].folds == 1
    assert rows["colour histogram"].folds == len(chosen.folds) == 5
    assert ((chosen.images.label[pairs.a] == chosen.images.label[pairs.b]) == pairs.same).all()


def compared(selection: ModelSelection, name: str) -> tuple[set[tuple[int, int]], int]:
    """Folds of the pairs for a threshold, and the number of pairs of identities."""
    pairs = selection._pairs({name: 1.0})
    folds = np.sort(selection.fold_N[np.stack([pairs.a, pairs.b])], axis=0)
    labels = np.sort(selection.images.label[np.stack([pairs.a, pairs.b])[:, ~pairs.same]], axis=0)
    return set(map(tuple, folds.T.tolist())), len(np.unique(labels, axis=1).T)


def test_few_identities_are_compared_across_folds(chosen: ModelSelection) -> None:
    """Each with each: the maps of features are fitted again without both."""
    _, num = compared(chosen, "colour histogram, whitened")
    assert num == 20 * 19 / 2


def test_five_identities_are_compared_across_folds() -> None:
    selection = selection_of(colored(5))
    selection.add_features()
    assert compared(selection, "colour histogram, whitened")[1] == 5 * 4 / 2


def test_a_network_is_trained_once_more_for_a_threshold(chosen: ModelSelection) -> None:
    """Four identities were held out; now two further folds of four are, together."""
    folds, num = compared(chosen, NAME)
    assert folds == {(0, 0), (1, 1), (1, 2), (2, 2)}
    assert num == 4 * 3 / 2 + 8 * 7 / 2


@pytest.mark.parametrize("name", [NAME, "colour histogram, whitened"])
def test_without_time_folds_have_to_do(
    chosen: ModelSelection, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen, "left", lambda: 0.0)
    monkeypatch.setattr(chosen, "limit", 0.0)
    folds, _ = compared(chosen, name)
    assert all(first == second for first, second in folds)


def test_the_fused_model_is_fitted_to_all_pictures(chosen: ModelSelection) -> None:
    """Its members have the weights of the choice, and unseen identities keep apart."""
    weights, _, _ = chosen.choose()
    everything = np.arange(len(chosen.images.label))
    model = chosen.refit(weights, everything)
    assert isinstance(model, FusedEncoder)
    assert [one.weight for one in model.members] == list(weights.values())
    assert not model.training
    again = chosen.refit(weights, everything)
    pixels = chosen.images.pixels[:20]
    assert (embed_pixels(model, pixels) == embed_pixels(again, pixels)).all()


def test_the_fused_distance_is_that_of_the_choice(chosen: ModelSelection) -> None:
    """Fitted without a fold, the model gives the distances that the choice saw on that fold."""
    weights, _, _ = chosen.choose()
    model = chosen.refit({name: w for name, w in weights.items() if name != NAME}, chosen.rest(1))
    fold = chosen.folds[1]
    emb_ND = embed_pixels(model, chosen.images.take(fold.row))
    total = sum(w for name, w in weights.items() if name != NAME)
    expected = sum(
        w / total * chosen.candidates[name].matrices[1]
        for name, w in weights.items()
        if name != NAME
    )
    assert 1 - emb_ND @ emb_ND.T == pytest.approx(expected, abs=1e-4)


def test_a_trained_network_keeps_its_embedding_in_the_fused_model(chosen: ModelSelection) -> None:
    torch.manual_seed(1)
    network = Encoder(NETWORK, PICTURE).eval()
    weights = {NAME: 0.25, "pixels, 16 x 16": 0.75}
    model = chosen.refit(weights, chosen.rest(0), {NAME: network})
    pixels = chosen.images.pixels[:8]
    assert embed_pixels(model, pixels)[:, :8] * 2 == pytest.approx(
        embed_pixels(network, pixels), abs=1e-5
    )


def test_a_closed_set_is_told_apart_by_class_probabilities(tmp_path: Path) -> None:
    """Only there: identities of an open set are no classes in use."""
    file = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), file)
    network = ModelSettings(backbone="test_resnet", weights=str(file))
    images = colored(8, 20)
    name = "test_resnet, classes"
    for closed in (False, True):
        selection = selection_of(images, closed=closed, frozen=(network, PICTURE))
        selection.add_features()
        assert (name in selection.candidates) is closed
    rows = {row.name: row for row in selection.choose()[1]}
    assert rows[name].eer < 0.35  # By colour; the network learned nothing.
    model = selection.refit({name: 1.0}, np.arange(len(images.row)))
    emb_ND = embed_pixels(model, images.pixels)
    assert emb_ND.shape == (160, 8)
    assert (emb_ND.argmax(1) == images.label).mean() > 0.9
    assert np.square(emb_ND).sum(1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("num", "seconds", "most"),
    [
        (390, 100.0, 400),  # All of them, and 60 s for tuning.
        (410, 100.0, 700),
        (5000, 100.0, 700),
        (5000, 0.0, 200),
        (10**6, 1e6, 20_000),
    ],
)
def test_features_take_more_of_the_time_if_nothing_is_tuned(
    num: int, seconds: float, most: int
) -> None:
    """The features of a picture take 0.1 s."""
    assert ModelSelection.most_pictures(SETTINGS, num, seconds, 0.1) == most


PRETRAINED = ModelSettings(backbone="resnet18", weights="some file", embedding=8)


@pytest.mark.parametrize(("seconds", "is_tuned"), [(0.1, False), (1000.0, True), (None, True)])
def test_without_time_nothing_is_tuned(
    seconds: float | None, is_tuned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 0.2 s here."""
    settings = SETTINGS.model_copy(update={"model": PRETRAINED})
    images = colored()
    selection = selection_of(images, seconds=seconds, settings=settings)
    assert (selection.fold_N[images.label < 4] != 0).any()  # All folds are alike.
    selection.bank = object()  # type: ignore[assignment]

    def train(settings: Settings, numbers: list[int]) -> model_selection._Candidate:
        member = model_selection.Member(model=PRETRAINED, picture=PICTURE, weight=1.0)
        one = model_selection._Candidate(member, settings=settings)
        one.seconds = 0.2 * (settings.train.steps or 0) * len(numbers)
        for number in numbers:
            one.matrices[number] = np.eye(len(selection.folds[number].row), dtype=np.float32)
        return one

    monkeypatch.setattr(selection, "_train", train)
    selection.add_tuned()
    assert bool(selection.candidates) is is_tuned
    if is_tuned:
        ((name, one),) = selection.candidates.items()
        assert len(one.matrices) == model_selection.TUNED_FOLDS
        assert one.settings is not None
        assert (one.settings.train.steps or 0) <= model_selection.MOST_STEPS
        assert str(one.settings.train.steps) in name
