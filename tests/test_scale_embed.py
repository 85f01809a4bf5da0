"""`embed` in parts: resumed after errors and kills, and the same with any number of workers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PictureFolder, TinyRun

import twinlens
from twinlens.cli.main import main
from twinlens.commands import embed as embed_module
from twinlens.data.folders import read_table
from twinlens.data.table import ImageTable
from twinlens.errors import ConfigError, DataError, GalleryError, MissingExtraError
from twinlens.gallery.gallery import Gallery
from twinlens.scale import ray_engine
from twinlens.scale.parts import Part, PartFolder, make_parts
from twinlens.scale.workers import in_processes

PATIENCE = 240.0
EMBED_ROWS: Callable[..., pa.Table] = embed_module.embed_rows


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four parts of the 60 pictures of a tiny run."""
    monkeypatch.setattr("twinlens.scale.parts.SMALLEST", 16)


def test_a_stopped_embed_goes_on_and_gives_the_same_file(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = shutil.copytree(tiny_run.data, tmp_path / "data")
    (broken := data / "thing 9" / "5.png").write_bytes(b"no picture")
    assert twinlens.embed(tiny_run.run, data, out=tmp_path / "one.parquet", quiet=True) == 59
    done, limit = list[ImageTable](), 3

    def embed_rows(matcher: object, table: ImageTable, *rest: object) -> pa.Table:
        if len(done) == limit:
            raise KeyboardInterrupt
        done.append(table)
        return EMBED_ROWS(matcher, table, *rest)

    monkeypatch.setattr(embed_module, "embed_rows", embed_rows)
    monkeypatch.setattr("twinlens.scale.parts.SMALLEST", 16)
    out, parts = tmp_path / "e.parquet", tmp_path / "e.parquet.parts"
    with pytest.raises(KeyboardInterrupt):
        twinlens.embed(tiny_run.run, data, out=out)
    assert "3 of 4 parts are kept" in capsys.readouterr().err
    assert not out.exists()
    second = sorted(parts.glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)[1]
    second.write_bytes(second.read_bytes()[:100])  # Truncated by a loss of power.
    os.utime(done[2].path[0], ns=(0, 0))  # Another file.
    limit = 9
    assert twinlens.embed(tiny_run.run, data, out=out) == 59
    assert [table.path[0] for table in done[3:]] == [table.path[0] for table in done[1:3]] + [
        str(data / "thing 8" / "0.png")
    ]
    assert f"warning: skipped {broken}" in capsys.readouterr().err
    assert not parts.exists()
    one, several = pq.read_table(tmp_path / "one.parquet"), pq.read_table(out)
    assert several.equals(one, check_metadata=True)


@pytest.mark.usefixtures("small_parts")
def test_parts_of_a_changed_file_of_pictures_are_others(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    rows = pa.table({"image": [b"x", b"y"] * 10, "identity": ["a", "b"] * 10})
    names = list[str]()
    for time_ns in (1, 1, 2):
        pq.write_table(rows, file)
        os.utime(file, ns=(time_ns, time_ns))
        names += [part.name for part in make_parts(read_table(str(file)), "a")]
    assert len(names) == 6
    assert len(set(names)) == 4


def test_parts_of_another_calibration_are_others(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, keys = twinlens.load(tiny_run.run), list[object]()

    def make_parts(_: ImageTable, *key: object) -> None:
        keys.append(key)
        raise DataError("enough")

    monkeypatch.setattr(embed_module, "make_parts", make_parts)
    for domain in (model.stored.description.domain, None):
        description = model.stored.description.model_copy(update={"domain": domain})
        model.stored = replace(model.stored, description=description)
        with pytest.raises(DataError, match="enough"):
            twinlens.embed(model, tiny_run.data, out=tmp_path / "e.parquet", quiet=True)
    assert keys[0] != keys[1]


@pytest.mark.usefixtures("small_parts")
def test_parts_are_of_one_writer_and_of_one_content(tiny_run: TinyRun, tmp_path: Path) -> None:
    model, out = twinlens.load(tiny_run.run), tmp_path / "e.parquet"
    table = read_table(tiny_run.data)
    parts = make_parts(table, "a")
    assert [(part.rows.start, part.rows.stop) for part in parts] == [
        (0, 16), (16, 32), (32, 48), (48, 60),
    ]  # fmt: skip
    assert [part.name for part in parts] == [part.name for part in make_parts(table, "a")]
    assert not {part.name for part in parts} & {part.name for part in make_parts(table, "b")}
    with (
        PartFolder.opened(tmp_path / "e.parquet.parts", parts),
        pytest.raises(DataError, match="another process writes"),
    ):
        twinlens.embed(model, tiny_run.data, out=out, quiet=True)


@pytest.mark.usefixtures("small_parts")
def test_a_full_disk_keeps_the_parts(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, real = tmp_path / "e.parquet", PartFolder.write

    def write(folder: PartFolder, part: Part, result: pa.Table) -> None:
        if part == folder.parts[2]:
            monkeypatch.setattr("twinlens.scale.parts.pq.write_table", full)
        real(folder, part, result)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PartFolder, "write", write)
    assert main(["embed", str(tiny_run.run), str(tiny_run.data), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "2 of 4 parts are kept" in said
    assert "error: cannot write" in said
    assert "No space left on device; free some space" in said
    assert not out.exists()


@pytest.mark.usefixtures("small_parts")
def test_a_lance_table_becomes_a_gallery(tiny_run: TinyRun, tmp_path: Path) -> None:
    for name in ("e.lance", "e.parquet", "e.lance"):  # The last replaces the first.
        assert twinlens.embed(tiny_run.run, tiny_run.data, out=tmp_path / name, quiet=True) == 60
    table = lance.dataset(str(tmp_path / "e.lance")).to_table()
    other = pq.read_table(tmp_path / "e.parquet")
    assert table.to_pylist() == other.to_pylist()
    assert table.schema.metadata == other.schema.metadata
    gallery = Gallery.create(tmp_path / "people", tiny_run.run)
    assert gallery.import_file(tmp_path / "e.lance").num_new == 60
    assert gallery.import_file(tmp_path / "e.parquet").num_new == 0
    lance.write_dataset(table.drop_columns("path"), str(tmp_path / "other.lance"))
    with pytest.raises(GalleryError, match=r"other\.lance has no column path"):
        gallery.import_file(tmp_path / "other.lance")
    (file,) = (tmp_path / "other.lance" / "data").iterdir()
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(GalleryError, match=r"cannot read .*other\.lance: .* is cut off"):
        gallery.import_file(tmp_path / "other.lance")
    (tmp_path / "full.lance").mkdir()
    (tmp_path / "full.lance" / "mine").touch()
    with pytest.raises(DataError, match=r"full\.lance is not empty"):
        twinlens.embed(tiny_run.run, tiny_run.data, out=tmp_path / "full.lance")


def test_wrong_options_are_refused_before_any_work(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "e.parquet"
    with pytest.raises(ConfigError, match="workers must be at least 1, found 0"):
        twinlens.embed(tiny_run.run, "no such folder", out=out, workers=0)
    with pytest.raises(ConfigError, match="unknown engine 'rai': did you mean ray"):
        twinlens.embed(tiny_run.run, "no such folder", out=out, engine="rai")
    with pytest.raises(ConfigError, match="needs the engine ray"):
        twinlens.embed(tiny_run.run, "no such folder", out=out, ray_address="127.0.0.1:6379")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"ray.*pip install 'twinlens\[scale\]'"):
        twinlens.embed(tiny_run.run, tiny_run.data, out=out, engine="ray", quiet=True)


def test_the_start_of_ray_keeps_the_handler_of_sigterm() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ray_engine._same_signals():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before


# --- real processes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Numbers:
    """Work that kills its process at a row, once or always, or takes long there."""

    flag: Path
    row: int
    always: bool = False
    seconds: float = 0

    def __call__(self, table: ImageTable) -> pa.Table:
        if f"{self.row:06d}" in table.path:
            time.sleep(self.seconds)
            if self.always or not self.flag.exists():
                self.flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return pa.table({"path": table.path.tolist()})


def table_of_numbers() -> ImageTable:
    rows = [(f"{row:06d}", "", False, "") for row in range(60)]
    return ImageTable.of_rows(rows, "data", None)


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
def test_parts_of_a_killed_worker_are_given_to_another(tmp_path: Path) -> None:
    table = table_of_numbers()
    parts = make_parts(table)
    results = {
        part.rows.start: rows["path"].to_pylist()
        for part, rows in in_processes(Numbers(tmp_path / "flag", 20), table, parts, 2)
    }
    assert [name for start in sorted(results) for name in results[start]] == table.path.tolist()
    begin = time.monotonic()
    unfinished = in_processes(Numbers(tmp_path / "flag", 20, seconds=99), table, parts[1:3], 2)
    assert next(unfinished)[0] == parts[2]
    unfinished.close()
    assert time.monotonic() - begin < 90
    with pytest.raises(DataError, match="worker processes die at pictures 17 to 32 of data"):
        list(in_processes(Numbers(tmp_path / "flag", 20, always=True), table, parts[1:2], 2))


def children_of(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    return [int(number) for number in text.split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
def test_a_killed_embed_leaves_no_process_and_goes_on(
    tiny_run: TinyRun, picture_folder: PictureFolder, tmp_path: Path
) -> None:
    data, out = picture_folder({"x": 700, "y": 600}), tmp_path / "e.parquet"
    words = ["embed", str(tiny_run.run), str(data), "--out", str(out), "--workers", "2"]
    command = [sys.executable, "-m", "twinlens", *words]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        give_up = time.monotonic() + PATIENCE
        parts = tmp_path / "e.parquet.parts"
        while not list(parts.glob("*.parquet")) and time.monotonic() < give_up:
            time.sleep(0.002)
        workers = children_of(process.pid)
        process.kill()
    assert len(workers) >= 2
    while any(Path(f"/proc/{number}/stat").exists() for number in workers):
        assert time.monotonic() < give_up, "a worker lives on"
        time.sleep(0.01)
    assert not out.exists()
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert "pictures are embedded already" in run.stderr
    assert run.stdout == f"1300 embeddings in {out}\n"
    twinlens.embed(tiny_run.run, data, out=tmp_path / "one.parquet", quiet=True)
    assert out.read_bytes() == (tmp_path / "one.parquet").read_bytes()


RAY = """
import sys
from functools import partial
from pathlib import Path
import ray
from test_scale_embed import Numbers, table_of_numbers
from twinlens.cli.main import main
from twinlens.scale import parts, ray_engine

parts.SMALLEST = 16
if __name__ == "__main__":
    table = table_of_numbers()
    work = Numbers(Path(sys.argv[1]) / "flag", 20)
    ray.init = partial(ray.init, num_cpus=1)
    ray_engine._start(ray, None)  # Once, since it takes long.
    results = {part.rows.start: rows for part, rows in  # By more actors than it has room for.
               ray_engine.on_ray(work, table, parts.make_parts(table), 3, None)}
    assert work.flag.exists()
    names = [name for start in sorted(results) for name in results[start]["path"].to_pylist()]
    assert names == table.path.tolist(), names
    sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_ray_gives_the_same_file_and_replaces_a_killed_actor(
    tiny_run: TinyRun, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    twinlens.embed(tiny_run.run, tiny_run.data, out=tmp_path / "one.parquet", quiet=True)
    out, script = tmp_path / "e.parquet", tmp_path / "script.py"
    script.write_text(RAY)
    words = ["embed", str(tiny_run.run), str(tiny_run.data), "--out", str(out), "--engine", "ray"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.run(
        [sys.executable, script, tmp_path, *words, "--workers", "1"], env=environment,
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert run.stdout.endswith(f"60 embeddings in {out}\n"), run.stderr
    one = pq.read_table(tmp_path / "one.parquet")
    assert pq.read_table(out).equals(one, check_metadata=True)
    run = subprocess.run(
        [sys.executable, "-m", "twinlens", *words, "--ray-address", "127.0.0.1:9"],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert run.returncode == 2
    assert "error: cannot reach the Ray cluster 127.0.0.1:9: [Errno 111]" in run.stderr
