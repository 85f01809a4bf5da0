"""A model on disk: its weights come back to the last bit, or the error says what is wrong.

The models in tests/golden were written by formats 1 to 3 and must be read by every later version.
Each holds a tiny network, some with the embeddings that it gave (`golden_model` writes them).
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
from PIL import Image

from twinlens.config import DataSettings, ModelSettings, PictureSettings
from twinlens.data.contents import digest_of_pixels
from twinlens.errors import ModelError
from twinlens.gallery.gallery import Gallery
from twinlens.match.matcher import Matcher
from twinlens.measure.calibration import Calibration
from twinlens.measure.probability import Platt
from twinlens.model.comparators import make_comparator
from twinlens.model.encoder import Encoder, embed_pixels
from twinlens.model.networks import Networks, load_networks, save_model
from twinlens.model.stored import (
    FORMAT,
    MODEL_FILES,
    Origin,
    hash_identities,
    model_folder,
    read_stored_model,
    store_calibration,
)
from twinlens.model.training_record import find_record

GOLDEN = Path(__file__).parent / "golden" / "bundle_1"
PICTURE = PictureSettings(size=(8, 8), color="grey", mean=(0.3,), std=(0.25,))
MODEL = ModelSettings(
    backbone="conv", channels=(3, 4), embedding=4, head=(5,), dropout=0.1, comparator="sigmoid"
)
ORIGIN = Origin("digits", "ab" * 32, 3, DataSettings(split="images"), "cd" * 16)


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)


def networks(seed: int = 0, picture: PictureSettings = PICTURE, **kinds: object) -> Networks:
    torch.manual_seed(seed)
    model = MODEL.model_copy(update=kinds)
    encoder = Encoder(model, picture)
    for module in encoder.modules():  # Statistics that are not where they begin.
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
    comparator = make_comparator(model.comparator, model.embedding)
    for parameter in comparator.parameters():
        parameter.data.uniform_(0.5, 1.5)
    return Networks(encoder.eval(), comparator)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder to copy: graphs take a second to make."""
    return save_model(tmp_path_factory.mktemp("original") / "m", networks(), ORIGIN).path


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A model folder of this test."""
    return Path(shutil.copytree(original, tmp_path / "m"))


CALIBRATION = Calibration(0.5, 0.4, 0.6, 0.1, 9, 9, 3, Platt(1.0, 0.0), None, None)


def golden_model(folder: Path) -> None:
    """Write a golden model and its answers, as tests/golden/bundle_1 and bundle_3."""
    stored = save_model(folder / "model", networks(), ORIGIN)
    matcher = Matcher(store_calibration(stored, CALIBRATION.as_json()))
    emb_ND = matcher.embed_pixels(pixels())
    dist_NN = matcher.comparison.matrix(emb_ND, emb_ND)
    answer = {"embeddings": emb_ND.tolist(), "distances": dist_NN.tolist()}
    (folder / "answer.json").write_text(json.dumps(answer))


def test_a_model_of_format_1_is_completed_and_still_gives_its_embeddings(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "old")
    rewrite(tmp_path / "old" / "model", refresh=False, calibration=None)
    before = json.loads((tmp_path / "old" / "model" / "model.json").read_text())
    assert before["format"] == 1
    answer = json.loads((GOLDEN / "answer.json").read_text())
    for name in ("made", "read again"):
        matcher = Matcher.load(tmp_path / "old")
        emb_ND = matcher.embed_pixels(pixels())
        np.testing.assert_allclose(emb_ND, answer["embeddings"], atol=1e-5, err_msg=name)
        left_ND, right_ND = np.repeat(emb_ND, 5, axis=0), np.tile(emb_ND, (5, 1))
        dist_N = matcher.comparison.pairwise(left_ND, right_ND)
        np.testing.assert_allclose(dist_N, np.ravel(answer["distances"]), atol=1e-3)
        # Galleries know the model by it.
        assert matcher.fingerprint == before["fingerprint"]
    assert np.max(answer["distances"]) > 0.1
    description = matcher.stored.description
    assert description.origin == replace(
        ORIGIN, record=None, identities=hash_identities(["1", "ü"])
    )
    after = json.loads((tmp_path / "old" / "model" / "model.json").read_text())
    assert after.pop("graphs").keys() == {"model.onnx", "comparator.onnx"}
    assert after == before


def test_a_gallery_of_an_older_version_is_completed(tmp_path: Path) -> None:
    """It holds the weights and no graph."""
    shutil.copytree(GOLDEN / "model", tmp_path / "m")
    rewrite(tmp_path / "m", refresh=False, calibration=None)
    old = json.loads((tmp_path / "m" / "model.json").read_text())
    gallery = Gallery.create(tmp_path / "g", tmp_path / "m")
    picture = tmp_path / "a.png"
    Image.fromarray(pixels()[0, 0]).save(picture)
    gallery.enrol_files("anna", picture)
    folder = tmp_path / "g" / "models" / old["fingerprint"]
    for name in ("model.onnx", "comparator.onnx"):
        (folder / name).unlink()
    shutil.copy(GOLDEN / "model" / "model.safetensors", folder)
    (folder / "model.json").write_text(json.dumps(old))
    opened = Gallery.open(tmp_path / "g")
    assert opened.search(picture)[0].distance == pytest.approx(0, abs=1e-4)
    assert opened.fingerprint == old["fingerprint"]
    assert (folder / "model.onnx").is_file()


def test_the_golden_model_of_format_3_still_gives_its_answers() -> None:
    golden = GOLDEN.with_name("bundle_3")
    answer = json.loads((golden / "answer.json").read_text())
    matcher = Matcher.load(golden)
    emb_ND = matcher.embed_pixels(pixels())
    np.testing.assert_allclose(emb_ND, answer["embeddings"], atol=1e-6)
    dist_NN = matcher.comparison.matrix(emb_ND, emb_ND)
    np.testing.assert_allclose(dist_NN, answer["distances"], atol=3e-3)
    assert matcher.calibration == CALIBRATION
    assert matcher.stored.description.format == 3
    assert matcher.origin == ORIGIN


def test_the_golden_model_of_format_2_finds_its_training_record() -> None:
    """Recorded: flat pictures of 8 x 8 in memory, of the identities 1 and 2 in turn."""
    stored = read_stored_model(GOLDEN.with_name("bundle_2"))
    origin = stored.description.origin
    assert stored.description.fingerprint == read_stored_model(GOLDEN).description.fingerprint
    assert origin is not None
    assert origin == replace(ORIGIN, record=origin.record)
    record = find_record(stored.path, origin)
    assert record is not None
    pictures = np.arange(0, 240, 60, dtype=np.uint8)[:, None, None] + np.tile(
        np.arange(8, dtype=np.uint8), (8, 1)
    )
    digests = [digest_of_pixels(picture) for picture in pictures]
    assert record.splits_of(digests).tolist() == ["train", "train", "val", "test"]
    assert record.knows_names(["1", "2", "3"], "train").tolist() == [True, True, False]
    assert record.knows_names(["1", "2"], "val").tolist() == [True, False]


@pytest.mark.parametrize("comparator", ["sigmoid", "network", "cosine"])
def test_weights_come_back_to_the_last_bit(comparator: str, tmp_path: Path) -> None:
    """In whatever memory format they were."""
    before = networks(comparator=comparator)
    before.encoder.to(memory_format=torch.channels_last)
    stored = save_model(tmp_path / "m", before, ORIGIN)
    before.encoder.to(memory_format=torch.contiguous_format)
    loaded = load_networks(read_stored_model(tmp_path / "m"))
    for network, saved in zip(loaded, before, strict=True):
        state, saved_state = network.state_dict(), saved.state_dict()
        assert state.keys() == saved_state.keys()
        assert all(torch.equal(state[name], saved_state[name]) for name in state)
    emb_ND = embed_pixels(before.encoder, pixels())
    np.testing.assert_allclose(embed_pixels(loaded.encoder, pixels()), emb_ND, atol=1e-6)
    np.testing.assert_allclose(Matcher(stored).embed_pixels(pixels()), emb_ND, atol=1e-6)
    assert (stored.description.origin, stored.description.calibration) == (ORIGIN, None)
    assert loaded.encoder.picture == PICTURE
    assert not loaded.encoder.training


def test_a_run_folder_stands_for_its_model(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "run" / "model")
    for path in (tmp_path / "run", tmp_path / "run" / "model", str(tmp_path / "run")):
        assert read_stored_model(path).description == read_stored_model(original).description
        assert model_folder(path) == tmp_path / "run" / "model"


def test_the_fingerprint_depends_on_what_decides_an_answer(original: Path, tmp_path: Path) -> None:
    other = PICTURE.model_copy(update={"mean": (0.4,)})
    stored = [
        read_stored_model(original),
        save_model(tmp_path / "b", networks(seed=1), ORIGIN),
        save_model(tmp_path / "c", networks(picture=other), ORIGIN),
        save_model(tmp_path / "d", networks(normalize=False), ORIGIN),
    ]
    prints = [model.description.fingerprint for model in stored]
    assert len(set(prints)) == 4
    assert all(len(p) == 16 and set(p) <= set("0123456789abcdef") for p in prints)
    assert save_model(tmp_path / "e", networks()).description.fingerprint == prints[0]


def test_a_calibration_is_kept_and_changes_no_embedding(folder: Path) -> None:
    before = read_stored_model(folder).description
    weights = (folder / "model.safetensors").read_bytes()
    values = {"threshold": 0.25, "text": "ü"}
    assert store_calibration(read_stored_model(folder), values).description.calibration == values
    loaded = read_stored_model(folder)
    assert loaded.description == before.model_copy(update={"calibration": values})
    assert (folder / "model.safetensors").read_bytes() == weights
    assert store_calibration(loaded, {"threshold": 0.5}).path == folder
    assert read_stored_model(folder).description.calibration == {"threshold": 0.5}


def test_saving_again_replaces_the_whole_folder(folder: Path, tmp_path: Path) -> None:
    store_calibration(read_stored_model(folder), {"threshold": 0.25})
    (folder / "stray").write_text("old")
    again = save_model(folder, networks(comparator="cosine"))
    assert read_stored_model(folder).description == again.description
    assert again.description.calibration is None
    assert [p.name for p in tmp_path.iterdir() if p.name != "own-cache"] == ["m"]
    names = {"model.onnx", "model.json", "model.safetensors"}
    assert {p.name for p in folder.iterdir()} == names < set(MODEL_FILES)


def test_graphs_name_no_file_and_no_folder_of_this_machine(folder: Path) -> None:
    """The exporter of torch describes each operation by lines of source, with their paths."""
    for name in ("model.onnx", "comparator.onnx"):
        content = (folder / name).read_bytes()
        assert b".py" not in content
        assert str(Path(__file__).parents[1]).encode() not in content


def test_there_is_no_pickle_in_the_folder(folder: Path) -> None:
    for file in folder.iterdir():
        content = file.read_bytes()
        assert not content.startswith(b"PK")  # torch's own files are zips around a pickle.
        with pytest.raises((ValueError, UnicodeDecodeError)):
            list(pickletools.genops(content))


def test_the_initial_weights_file_is_not_needed_again(tmp_path: Path) -> None:
    before = networks()
    before.encoder.model_settings = MODEL.model_copy(
        update={"weights": "gone.pth", "pretrained": True}
    )
    stored = save_model(tmp_path / "m", before)
    assert stored.description.model.weights is None
    assert not stored.description.model.pretrained
    assert stored.description.origin is None
    load_networks(stored)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_stored_model(path)
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


def test_damaged_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "is damaged: model.safetensors is missing or is not the file" in refusal(folder)
    weights.write_bytes(content[:40])
    assert "is damaged" in refusal(folder)
    weights.unlink()  # As in a gallery: enough for answers, not to learn on.
    with pytest.raises(ModelError, match=r"is damaged: .*model\.safetensors|missing"):
        load_networks(read_stored_model(folder))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"format": "new"}', '{"format": null}', "{}", '{"format": 1}']
)
def test_a_damaged_description(text: str, folder: Path) -> None:
    (folder / "model.json").write_text(text)
    assert "is damaged" in refusal(folder)


def test_bytes_that_are_no_text(folder: Path) -> None:
    (folder / "model.json").write_bytes(b"\xff\xfe\x00")
    assert "is damaged" in refusal(folder)


def rewrite(folder: Path, refresh: bool = True, **changes: object) -> None:
    """Change the description; `refresh` makes its fingerprint fit again."""
    file = folder / "model.json"
    description = json.loads(file.read_text()) | changes
    if refresh:
        keys = ("picture", "model", "weights", "graphs", "precision", "resize")
        parts = {key: description.get(key) for key in keys}
        text = json.dumps(parts, sort_keys=True)
        description["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    file.write_text(json.dumps(description))


def test_a_newer_format_needs_an_upgrade(folder: Path) -> None:
    rewrite(folder, format=FORMAT + 1)
    assert f"has format {FORMAT + 1}" in refusal(folder)
    assert "upgrade twinlens" in refusal(folder)


def test_preprocessing_that_was_edited_is_noticed(folder: Path) -> None:
    edited = PICTURE.model_dump(mode="json") | {"mean": [0.9]}
    rewrite(folder, refresh=False, picture=edited)
    assert "was changed after it was written" in refusal(folder)


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
    changes: dict[str, object], folder: Path
) -> None:
    rewrite(folder, **changes)
    assert "is damaged" in refusal(folder)


def test_all_problems_of_a_description_are_in_one_message(folder: Path) -> None:
    wrong = MODEL.model_dump(mode="json") | {"embedding": -1, "colour": 3}
    rewrite(folder, model=wrong, origin={"source": "x"}, calibration=7)
    message = refusal(folder)
    for problem in (
        "model.embedding: input should be greater than or equal to 1, found -1",
        "model.colour is unknown", "origin.seed is missing",
        "calibration: input should be a valid dictionary, found 7",
        "Copy the whole folder again",
    ):  # fmt: skip
        assert problem in message


def test_a_calibration_leaves_the_rest_of_an_old_file_as_it_was(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "model", tmp_path / "m")
    before = (folder / "model.json").read_bytes()
    store_calibration(read_stored_model(folder), {"threshold": 0.5})
    assert (folder / "model.json").read_bytes() == before
    assert read_stored_model(folder).description.fingerprint == "aa87a697f5450b5c"


def test_the_description_holds_no_hash_of_a_name(folder: Path) -> None:
    """Format 1 did, without a key, so that a list of names could be tried."""
    origin = json.loads((folder / "model.json").read_text())["origin"]
    assert set(origin) == {"source", "fingerprint", "seed", "data", "record", "refitted"}
    assert origin["record"] == ORIGIN.record
