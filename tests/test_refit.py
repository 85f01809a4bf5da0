"""A model that was fitted to training and validation pictures: what it then may be judged on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, PictureFolder, TinyRun, draw_pictures
from PIL import Image
from safetensors.numpy import load_file

import twinlens
from twinlens.commands import fit_model
from twinlens.errors import DataError
from twinlens.learn.features import FrozenPart
from twinlens.model.networks import load_networks
from twinlens.model.training_record import find_record
from twinlens.progress import Progress

REFIT = TINY | {"train.refit": True}


@pytest.fixture(scope="module")
def refitted(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A small model that learned from its validation pictures too. Do not change its files."""
    top = tmp_path_factory.mktemp("refitted")
    draw_pictures(top / "pictures", {f"thing {number}": 6 for number in range(12)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWINLENS_CACHE", str(top / "cache"))
        twinlens.train(top / "pictures", out=top / "run", settings=REFIT, quiet=True)
    return TinyRun(top / "run", top / "pictures", "")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def weights(run: Path) -> dict[str, bytes]:
    file = run / "model" / "model.safetensors"
    return {name: tensor.tobytes() for name, tensor in load_file(file).items()}


def splits_of(run: Path) -> dict[str, str]:
    lines = (run / "split.csv").read_text(encoding="utf-8").splitlines()[1:]
    return {line.split(",")[0]: line.split(",")[-1] for line in lines}


def test_a_run_with_test_pictures_is_refitted_by_default(
    tiny_run: TinyRun, refitted: TinyRun, tmp_path: Path
) -> None:
    settings = {key: value for key, value in TINY.items() if key != "train.refit"}
    twinlens.train(tiny_run.data, out=tmp_path / "a", settings=settings, quiet=True)
    assert read(tmp_path / "a" / "settings.json")["train"]["refit"] is True
    without_test = settings | {"data.fractions": (0.7, 0.3, 0.0)}
    twinlens.train(tiny_run.data, out=tmp_path / "b", settings=without_test, quiet=True)
    assert read(tmp_path / "b" / "settings.json")["train"]["refit"] is False
    assert read(tmp_path / "b" / "results.json")["split"] == "val"
    assert not twinlens.load(tmp_path / "b").stored.description.origin.refitted


def test_the_validation_pictures_count_as_trained_on(refitted: TinyRun) -> None:
    stored = twinlens.load(refitted.run).stored
    assert stored.description.origin is not None
    assert stored.description.origin.refitted
    record = find_record(refitted.model, stored.description.origin)
    assert record is not None
    assert record.num_identities("train") == 12 - record.num_identities("test")
    assert record.num_identities("val") == 0


def test_it_is_evaluated_on_the_test_pictures_alone(refitted: TinyRun) -> None:
    results = read(refitted.run / "results.json")
    assert results["split"] == "test"
    assert results["identity_disjoint"] is True
    again = twinlens.evaluate(refitted.run, refitted.data, quiet=True)
    assert again.as_json() == results
    with pytest.raises(DataError, match="has no val pictures"):
        twinlens.evaluate(refitted.run, refitted.data, split="val", quiet=True)


def test_calibrating_on_the_training_data_takes_the_test_pictures(
    refitted: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(refitted.run, tmp_path / "run")
    capsys.readouterr()
    model = twinlens.calibrate(run, refitted.data, far=0.2)
    said = capsys.readouterr().err
    assert "warning: no val pictures: the test pictures are used\n" in said
    assert "trained on" not in said
    assert model.calibration is not None
    tested = {Path(n).parent for n, split in splits_of(run).items() if split == "test"}
    assert model.calibration.num_identities == len(tested)


def test_copies_of_validation_pictures_are_not_unseen(
    refitted: TinyRun, picture_folder: PictureFolder, tmp_path: Path
) -> None:
    """Under other names, in other data: left out like those of training."""
    strangers = picture_folder({f"stranger {number}": 4 for number in range(5)}, seed=9)
    validation = sorted(n for n, split in splits_of(refitted.run).items() if split == "val")
    assert validation
    for name in validation:
        source = Path(name) if Path(name).is_absolute() else refitted.data / name
        target = strangers / f"renamed {source.parent.name}"
        target.mkdir(exist_ok=True)
        shutil.copy(source, target / f"copy {source.name}")
    result = twinlens.evaluate(refitted.run, strangers, quiet=True).as_json()
    assert result["split"] == "unseen"
    assert result["verification"]["num_identities"] == 5
    assert result["identity_disjoint"] is True


def test_resuming_a_refitted_run_comes_to_the_same(refitted: TinyRun, tmp_path: Path) -> None:
    """Killed after the training, or while it was fitted to all pictures."""
    run = shutil.copytree(refitted.run, tmp_path / "run")
    facts = read(run / "run.json")
    del facts["finished"]
    (run / "run.json").write_text(json.dumps(facts))
    shutil.rmtree(run / "model")
    twinlens.train(refitted.data, out=run, resume=True, quiet=True)
    assert weights(run) == weights(refitted.run)
    assert read(run / "results.json") == read(refitted.run / "results.json")
    ours, theirs = (read(one / "model" / "model.json") for one in (run, refitted.run))
    assert ours["calibration"] == theirs["calibration"]


class Impatient(Progress):
    """Ctrl-C at step 13 of 20."""

    def __call__(self, done: int, total: int) -> None:
        if self.task == "training" and done == 13:
            raise KeyboardInterrupt


def test_interrupting_ends_with_a_calibrated_model(
    refitted: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(fit_model, "Progress", Impatient)
        model = twinlens.train(refitted.data, out=run, settings=REFIT, quiet=True)
    assert model.calibration is not None
    assert read(run / "results.json")["split"] == "test"
    twinlens.train(refitted.data, out=run, resume=True, quiet=True)
    assert weights(run) == weights(refitted.run)


def test_interrupting_the_last_fit_leaves_the_model_before_it(
    refitted: TinyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(fit_model, "train_network", interrupt)
        model = twinlens.train(refitted.data, out=run, settings=REFIT, quiet=True)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "warning: interrupted in the last fit: the model before it is kept"
    assert "resume it with: twinlens train" in last
    assert model.calibration is not None
    assert weights(run) != weights(refitted.run)
    twinlens.train(refitted.data, out=run, resume=True, quiet=True)
    assert weights(run) == weights(refitted.run)


# --- candidates ---------------------------------------------------------------------------------

CANDIDATES = {
    "train.candidates": True,
    "train.refit": True,
    "train.steps": 20,
    "train.validations": 2,
    "train.precision": "float32",
    "picture.size": (16, 16),
}


def colored(top: Path) -> Path:
    """Identities are told apart by their colours; shapes vary."""
    rng = np.random.default_rng(0)
    for number in range(16):
        color = rng.integers(40, 216, 3)
        (top / f"thing {number}").mkdir(parents=True)
        for picture in range(5):
            shape = (rng.random((4, 4, 1)) > 0.5).repeat(4, 0).repeat(4, 1)
            pixels = np.where(shape, color + rng.integers(-12, 13, (16, 16, 3)), 255)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(top / f"thing {number}" / f"{picture}.png")
    return top


@pytest.mark.slow
def test_a_run_with_candidates_from_end_to_end(tmp_path: Path) -> None:
    """Fused, evaluated, and resumed to the same weights from a kill at two moments."""
    data, run = colored(tmp_path / "pictures"), tmp_path / "run"
    model = twinlens.train(data, out=run, settings=CANDIDATES, quiet=True)
    table = read(run / "candidates.json")
    assert model.calibration is not None
    encoder = load_networks(model.stored).encoder
    assert any(one.model.backbone == "histogram" for one in encoder.members)
    assert table
    assert "histogram" in (run / "report.html").read_text(encoding="utf-8")

    class InSelection(Progress):
        def __call__(self, done: int, total: int) -> None:
            if self.task == "computing features":
                raise KeyboardInterrupt

    for moment, impatient in (("training", Impatient), ("features", InSelection)):
        broken = tmp_path / moment
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fit_model, "Progress", impatient)
            if moment == "training":
                assert twinlens.train(data, out=broken, settings=CANDIDATES, quiet=True)
            else:
                with pytest.raises(KeyboardInterrupt, match="resume the run with"):
                    twinlens.train(data, out=broken, settings=CANDIDATES, quiet=True)
        twinlens.train(data, out=broken, resume=True, quiet=True)
        assert weights(broken) == weights(run), moment
        assert read(broken / "results.json") == read(run / "results.json")
        assert read(broken / "candidates.json")["curve"] == table["curve"]


def test_the_last_fit_computes_no_feature_again(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[set[int]]()
    compute_all = FrozenPart.compute_all

    def counted(self: FrozenPart, pixels: Any, rows: Any, *args: Any, **more: Any) -> Any:
        seen.append(set(rows.tolist()))
        return compute_all(self, pixels, rows, *args, **more)

    monkeypatch.setattr(FrozenPart, "compute_all", counted)
    settings = {key: value for key, value in REFIT.items() if key != "model.channels"}
    frozen = settings | {"model.backbone": "gradients", "model.freeze": "all"}
    twinlens.train(tiny_run.data, out=tmp_path / "run", settings=frozen, quiet=True)
    train, validated, last = seen
    assert not train & last
    assert validated == last
