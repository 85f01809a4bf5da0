"""A model on disk: its weights come back to the last bit, or the error says what is wrong.

tests/golden/bundle_1 was written by format 1 and must be read by every later version; it holds a
tiny network, and beside the model the embeddings that it gave (`golden_bundle` makes one).
"""

from __future__ import annotations

import hashlib
import json
import pickletools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from twinlens.config import DataSettings, ModelSettings, PictureSettings
from twinlens.data.contents import digest_of_pixels
from twinlens.errors import ModelError
from twinlens.model.bundle import Bundle, load_bundle, save_bundle, store_calibration
from twinlens.model.comparators import TorchComparison, make_comparator
from twinlens.model.encoder import Encoder, embed_pixels
from twinlens.model.stored import FORMAT, Origin, hash_identities, model_folder
from twinlens.model.training_record import find_record

GOLDEN = Path(__file__).parent / "golden" / "bundle_1"
PICTURE = PictureSettings(size=(8, 8), color="grey", mean=(0.3,), std=(0.25,))
MODEL = ModelSettings(
    backbone="conv", channels=(3, 4), embedding=4, head=(5,), dropout=0.1, comparator="sigmoid"
)
ORIGIN = Origin("digits", "ab" * 32, 3, DataSettings(split="images"), "cd" * 16)


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)


def saved(
    folder: Path, seed: int = 0, picture: PictureSettings = PICTURE, **kinds: object
) -> Bundle:
    torch.manual_seed(seed)
    model = MODEL.model_copy(update=kinds)
    encoder = Encoder(model, picture)
    for module in encoder.modules():  # Statistics that are not where they begin.
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
    comparator = make_comparator(model.comparator, model.embedding)
    for parameter in comparator.parameters():
        parameter.data.uniform_(0.5, 1.5)
    return save_bundle(folder, encoder.eval(), comparator, origin=ORIGIN)


def golden_bundle(folder: Path) -> None:
    """Write tests/golden/bundle_1."""
    bundle = store_calibration(saved(folder / "model"), {"threshold": 0.5})
    emb_ND = embed_pixels(bundle.encoder, pixels())
    dist_NN = TorchComparison(bundle.comparator).matrix(emb_ND, emb_ND)
    answer = {"embeddings": emb_ND.tolist(), "distances": dist_NN.tolist()}
    (folder / "answer.json").write_text(json.dumps(answer))


def test_the_golden_bundle_still_gives_its_embeddings() -> None:
    answer = json.loads((GOLDEN / "answer.json").read_text())
    bundle = load_bundle(GOLDEN)
    emb_ND = embed_pixels(bundle.encoder, pixels())
    np.testing.assert_allclose(emb_ND, answer["embeddings"], atol=1e-5)
    dist_NN = TorchComparison(bundle.comparator).matrix(emb_ND, emb_ND)
    np.testing.assert_allclose(dist_NN, answer["distances"], atol=1e-3)
    assert np.max(answer["distances"]) > 0.1
    assert json.loads((GOLDEN / "model" / "model.json").read_text())["format"] == 1
    assert bundle.calibration == {"threshold": 0.5}
    assert bundle.origin == replace(ORIGIN, record=None, identities=hash_identities(["1", "ü"]))


def test_the_golden_bundle_of_format_2_finds_its_training_record() -> None:
    """Recorded: flat pictures of 8 x 8 in memory, of the identities 1 and 2 in turn."""
    bundle = load_bundle(GOLDEN.with_name("bundle_2"))
    assert bundle.fingerprint == load_bundle(GOLDEN).fingerprint
    assert bundle.origin is not None
    assert bundle.origin == replace(ORIGIN, record=bundle.origin.record)
    record = find_record(bundle.path, bundle.origin)
    assert record is not None
    pictures = np.arange(0, 240, 60, dtype=np.uint8)[:, None, None] + np.tile(
        np.arange(8, dtype=np.uint8), (8, 1)
    )
    digests = [digest_of_pixels(picture) for picture in pictures]
    assert record.splits_of(digests).tolist() == ["train", "train", "val", "test"]
    assert record.knows_names(["1", "2", "3"], "train").tolist() == [True, True, False]
    assert record.knows_names(["1", "2"], "val").tolist() == [True, False]


@pytest.mark.parametrize("comparator", ["sigmoid", "network", "cosine"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_weights_come_back_to_the_last_bit(
    comparator: str, channels_last: bool, tmp_path: Path
) -> None:
    bundle = saved(tmp_path / "m", comparator=comparator)
    if channels_last:
        bundle.encoder.to(memory_format=torch.channels_last)
        bundle = save_bundle(tmp_path / "m", bundle.encoder, bundle.comparator, origin=ORIGIN)
        bundle.encoder.to(memory_format=torch.contiguous_format)
    loaded = load_bundle(tmp_path / "m")
    for network in ("encoder", "comparator"):
        saved_state = getattr(bundle, network).state_dict()
        state = getattr(loaded, network).state_dict()
        assert state.keys() == saved_state.keys()
        assert all(torch.equal(state[name], saved_state[name]) for name in state)
    emb_ND = embed_pixels(bundle.encoder, pixels())
    np.testing.assert_allclose(embed_pixels(loaded.encoder, pixels()), emb_ND, atol=1e-6)
    assert (loaded.fingerprint, loaded.origin, loaded.calibration) == (
        bundle.fingerprint,
        ORIGIN,
        None,
    )
    assert loaded.encoder.picture == PICTURE
    assert not loaded.encoder.training


def test_a_run_folder_stands_for_its_model(tmp_path: Path) -> None:
    bundle = saved(tmp_path / "run" / "model")
    for path in (tmp_path / "run", tmp_path / "run" / "model", str(tmp_path / "run")):
        assert load_bundle(path).fingerprint == bundle.fingerprint
        assert model_folder(path) == tmp_path / "run" / "model"


def test_the_fingerprint_depends_on_what_decides_an_embedding(tmp_path: Path) -> None:
    prints = [
        saved(tmp_path / "a").fingerprint,
        saved(tmp_path / "b", seed=1).fingerprint,
        saved(tmp_path / "c", picture=PICTURE.model_copy(update={"mean": (0.4,)})).fingerprint,
        saved(tmp_path / "d", normalize=False).fingerprint,
    ]
    assert len(set(prints)) == 4
    assert all(len(p) == 16 and set(p) <= set("0123456789abcdef") for p in prints)
    assert saved(tmp_path / "e").fingerprint == prints[0]
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere")
    assert load_bundle(tmp_path / "elsewhere").fingerprint == prints[0]


def test_a_calibration_is_kept_and_changes_no_embedding(tmp_path: Path) -> None:
    bundle = saved(tmp_path / "m")
    weights = (tmp_path / "m" / "model.safetensors").read_bytes()
    assert store_calibration(bundle, {"threshold": 0.25, "text": "ü"}).calibration is not None
    loaded = load_bundle(tmp_path / "m")
    assert loaded.calibration == {"threshold": 0.25, "text": "ü"}
    assert loaded.fingerprint == bundle.fingerprint
    assert loaded.origin == ORIGIN
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == weights
    assert store_calibration(loaded, {"threshold": 0.5}).path == tmp_path / "m"
    assert load_bundle(tmp_path / "m").calibration == {"threshold": 0.5}


def test_saving_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    store_calibration(saved(tmp_path / "m"), {"threshold": 0.25})
    (tmp_path / "m" / "stray").write_text("old")
    again = saved(tmp_path / "m", seed=1)
    assert load_bundle(tmp_path / "m").fingerprint == again.fingerprint
    assert load_bundle(tmp_path / "m").calibration is None
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["model.json", "model.safetensors"]


def test_there_is_no_pickle_in_the_folder(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    for file in (tmp_path / "m").iterdir():
        content = file.read_bytes()
        assert not content.startswith(b"PK")  # torch's own files are zips around a pickle.
        with pytest.raises((ValueError, UnicodeDecodeError)):
            list(pickletools.genops(content))


def test_the_initial_weights_file_is_not_needed_again(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    bundle = saved(folder)
    moved = bundle.encoder
    moved.model_settings = MODEL.model_copy(update={"weights": "gone.pth", "pretrained": True})
    save_bundle(folder, moved, bundle.comparator)
    loaded = load_bundle(folder)
    assert loaded.encoder.model_settings.weights is None
    assert not loaded.encoder.model_settings.pretrained
    assert loaded.origin is None


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_bundle(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    assert "is not a model: nothing is there" in refusal(tmp_path / "absent")
    assert "is not a model: it holds no model.json" in refusal(tmp_path)
    (tmp_path / "file").write_text("x")
    assert "is not a model" in refusal(tmp_path / "file")


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    assert "is not a model: File name too long" in refusal(tmp_path / ("x" * 5000))
    assert "a\\x00b is not a model: nothing is there" in refusal(tmp_path / "a\0b")


def test_damaged_weights(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "is damaged: model.safetensors is missing or is not the file" in refusal(tmp_path / "m")
    weights.write_bytes(content[:40])
    assert "is damaged" in refusal(tmp_path / "m")
    weights.unlink()
    assert "is damaged" in refusal(tmp_path / "m")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"format": "new"}', '{"format": null}', "{}", '{"format": 1}']
)
def test_a_damaged_description(text: str, tmp_path: Path) -> None:
    saved(tmp_path / "m")
    (tmp_path / "m" / "model.json").write_text(text)
    assert "is damaged" in refusal(tmp_path / "m")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    (tmp_path / "m" / "model.json").write_bytes(b"\xff\xfe\x00")
    assert "is damaged" in refusal(tmp_path / "m")


def rewrite(folder: Path, refresh: bool = True, **changes: object) -> None:
    """Change the description; `refresh` makes its fingerprint fit again."""
    file = folder / "model.json"
    description = json.loads(file.read_text()) | changes
    if refresh:
        parts = {key: description.get(key) for key in ("picture", "model", "weights")}
        text = json.dumps(parts, sort_keys=True)
        description["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    file.write_text(json.dumps(description))


def test_a_newer_format_needs_an_upgrade(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    rewrite(tmp_path / "m", format=FORMAT + 1)
    assert f"has format {FORMAT + 1}" in refusal(tmp_path / "m")
    assert "upgrade twinlens" in refusal(tmp_path / "m")


def test_preprocessing_that_was_edited_is_noticed(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    edited = PICTURE.model_dump(mode="json") | {"mean": [0.9]}
    rewrite(tmp_path / "m", refresh=False, picture=edited)
    assert "was changed after it was written" in refusal(tmp_path / "m")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": MODEL.model_dump(mode="json") | {"channels": [3, 5]}},
        {"model": MODEL.model_dump(mode="json") | {"embedding": -1}},
        {"model": MODEL.model_dump(mode="json") | {"backbone": "never_was"}},
        {"model": None},
        {"picture": {"size": 3}},
        {"origin": {"source": "x"}},
        {"origin": [1]},
    ],
)
def test_a_description_that_does_not_fit_the_weights(
    changes: dict[str, object], tmp_path: Path
) -> None:
    saved(tmp_path / "m")
    rewrite(tmp_path / "m", **changes)
    assert "is damaged" in refusal(tmp_path / "m")


def test_all_problems_of_a_description_are_in_one_message(tmp_path: Path) -> None:
    saved(tmp_path / "m")
    wrong = MODEL.model_dump(mode="json") | {"embedding": -1, "colour": 3}
    rewrite(tmp_path / "m", model=wrong, origin={"source": "x"}, calibration=7)
    message = refusal(tmp_path / "m")
    for problem in (
        "model.embedding: input should be greater than or equal to 1, found -1",
        "model.colour is unknown", "origin.seed is missing",
        "calibration: input should be a valid dictionary, found 7",
        "Copy the whole folder again",
    ):  # fmt: skip
        assert problem in message


def test_a_calibration_leaves_the_rest_of_an_old_file_as_it_was(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "model", tmp_path / "m")
    before = (tmp_path / "m" / "model.json").read_bytes()
    store_calibration(load_bundle(tmp_path / "m"), {"threshold": 0.5})
    assert (tmp_path / "m" / "model.json").read_bytes() == before
    assert load_bundle(tmp_path / "m").fingerprint == "aa87a697f5450b5c"


def test_the_description_holds_no_hash_of_a_name(tmp_path: Path) -> None:
    """Format 1 did, without a key, so that a list of names could be tried."""
    saved(tmp_path / "m")
    origin = json.loads((tmp_path / "m" / "model.json").read_text())["origin"]
    assert set(origin) == {"source", "fingerprint", "seed", "data", "record"}
    assert origin["record"] == ORIGIN.record
