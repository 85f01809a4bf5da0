"""`--init`: the network of one's own model learns on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PictureFolder, TinyRun, save_networks

import twinlens
from twinlens.commands.initial_model import read_initial_model
from twinlens.config import Member, ModelSettings, PictureSettings
from twinlens.errors import ConfigError, ModelError
from twinlens.model.comparators import make_comparator
from twinlens.model.encoder import Encoder, embed_pixels
from twinlens.model.fused import FusedEncoder, fused_settings
from twinlens.model.weights import load_weights
from twinlens.recipes import load_recipe

PICTURE = PictureSettings(size=(16, 16), color="grey", mean=(0.4,), std=(0.2,))
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 1, 16, 16), dtype=np.uint8)
SHORT: dict[str, Any] = {"train.steps": 2, "train.validations": 2, "train.refit": False}


def settings(**model: Any) -> ModelSettings:
    values = {"backbone": "mlp", "channels": (8,), "embedding": 6, **model}
    return ModelSettings.model_validate(values)


def embedded(folder: Path, **overrides: Any) -> tuple[Encoder, np.ndarray]:
    """A new network of the settings that begin with a model, and its embeddings of `PIXELS`."""
    initial = read_initial_model(folder)
    chosen = initial.applied(load_recipe("auto", overrides)).settings()
    encoder = Encoder(chosen.model, chosen.picture)
    initial.load(encoder, make_comparator(chosen.model.comparator, chosen.model.embedding))
    return encoder, embed_pixels(encoder, PIXELS)


def test_a_run_begins_with_the_network_of_another(
    tiny_run: TinyRun, picture_folder: PictureFolder, tmp_path: Path
) -> None:
    data = picture_folder({f"other {number}": 4 for number in range(8)}, seed=9)
    run = tmp_path / "run"
    model = twinlens.train(data, out=run, init=tiny_run.run, settings=SHORT, quiet=True)
    before, now = twinlens.load(tiny_run.run), model.stored.description
    assert now.model.embedding == before.stored.description.model.embedding
    assert now.picture == before.picture
    assert now.start is not None
    assert before.fingerprint in now.start.name
    record = json.loads((run / "run.json").read_text())
    assert record["init"] == str(tiny_run.run)
    assert f"--init {tiny_run.run}" in record["command"]
    chosen = {choice["key"]: choice["value"] for choice in record["choices"]}
    assert chosen["train.candidates"] is False
    assert chosen["optimizer.rate"] == 1e-3
    # Two steps at a low rate change little.
    new, old = model.embed(str(data / "other 0/0.png")), before.embed(str(data / "other 0/0.png"))
    assert np.linalg.norm(new - old) < 0.2
    with pytest.raises(ConfigError, match=r"--init: was .*run, is .*model"):
        twinlens.train(data, out=run, init=tiny_run.model, resume=True, quiet=True)


def test_the_weights_and_the_map_are_taken_over(tmp_path: Path) -> None:
    encoder = Encoder(settings(), PICTURE)
    save_networks(tmp_path / "model", encoder, make_comparator("cosine", 6))
    new, emb_ND = embedded(tmp_path / "model", **{"model.freeze": "all"})
    assert np.array_equal(emb_ND, embed_pixels(encoder, PIXELS))
    assert new.model_settings.freeze == "all"
    assert new.model_settings.init == "given"


def test_a_learned_comparator_is_taken_over(tmp_path: Path) -> None:
    model, comparator = settings(comparator="network"), make_comparator("network", 6)
    save_networks(tmp_path / "model", Encoder(model, PICTURE), comparator)
    initial = read_initial_model(tmp_path / "model")
    chosen = initial.applied(load_recipe("auto")).settings()
    assert (chosen.loss.name, chosen.model.comparator) == ("bce", "network")
    loaded = make_comparator("network", 6)
    initial.load(Encoder(chosen.model, chosen.picture), loaded)
    for name, value in comparator.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_of_classes_the_backbone_is_taken_over(tmp_path: Path) -> None:
    encoder = Encoder(settings(classes=True), PICTURE)
    save_networks(tmp_path / "model", encoder, make_comparator("cosine", 6))
    initial = read_initial_model(tmp_path / "model")
    recipe = initial.applied(load_recipe("auto"))
    assert recipe.auto >= {"model.classes", "model.embedding", "loss.name"}
    new, _ = embedded(tmp_path / "model")
    weights = encoder.backbone.state_dict()
    assert all(torch.equal(value, weights[k]) for k, value in new.backbone.state_dict().items())


def fused(*backbones: str) -> FusedEncoder:
    members = [
        Member(
            model=settings(backbone=name, freeze="all" if name == "pixels" else "none"),
            picture=PICTURE,
            weight=1.0 + number,
        )
        for number, name in enumerate(backbones)
    ]
    return FusedEncoder(fused_settings(members, mirrored=True), PICTURE, members).eval()


def test_of_a_fused_model_the_heaviest_network_learns_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = fused("mlp", "conv", "pixels")
    save_networks(tmp_path / "model", encoder, make_comparator("cosine", 18))
    with caplog.at_level("INFO", "twinlens"):
        new, emb_ND = embedded(tmp_path / "model")
    assert "fused of 3 members: conv, with 33 % of the weight, learns on" in caplog.text
    assert new.model_settings.mirrored
    whole_ND = embed_pixels(encoder, PIXELS)[:, 6:12]  # The embedding of the second member.
    unit_ND = whole_ND / np.linalg.norm(whole_ND, axis=1, keepdims=True)
    assert emb_ND == pytest.approx(unit_ND, abs=1e-5)


def test_features_alone_have_nothing_to_learn(tmp_path: Path) -> None:
    save_networks(tmp_path / "model", fused("pixels"), make_comparator("cosine", 6))
    with pytest.raises(ConfigError, match="no network that could learn on"):
        read_initial_model(tmp_path / "model")


def test_other_networks_and_pictures_are_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    other = {"model.embedding": 32, "picture.size": (20, 20), "train.candidates": True}
    with pytest.raises(ConfigError) as caught:
        twinlens.train(
            tiny_run.data, out=tmp_path / "run", init=tiny_run.run, settings=other, quiet=True
        )
    assert str(caught.value) == (
        f"--init {tiny_run.run} brings its network and its pictures, which do not fit the settings "
        "given:\n  model.embedding: is 16, given 32\n  picture.size: is [16, 16], given [20, 20]\n"
        "  train.candidates: the network of --init is the only candidate\n"
        "  Leave these out, or train without --init"
    )
    with pytest.raises(ConfigError, match=r"recipe cifar:\n(.*\n)+.*backbone: is mlp, given res"):
        twinlens.train(
            tiny_run.data, out=tmp_path / "run", init=tiny_run.run, recipe="cifar", quiet=True
        )
    with pytest.raises(ModelError, match="is not a model"):
        twinlens.train(tiny_run.data, out=tmp_path / "run", init=tmp_path, quiet=True)
    with pytest.raises(ConfigError, match="add --init RUN"):
        twinlens.train(
            tiny_run.data, out=tmp_path / "run", settings={"model.init": "given"}, quiet=True
        )
    assert not (tmp_path / "run").exists()


def test_weights_of_ones_own_model_name_the_option(tiny_run: TinyRun) -> None:
    backbone = Encoder(settings(backbone="conv"), PICTURE).backbone
    for path in (tiny_run.run, tiny_run.model, tiny_run.model / "model.safetensors"):
        with pytest.raises(ConfigError, match=rf"--init {tiny_run.run}.* in place of --weights"):
            load_weights(backbone, path)
