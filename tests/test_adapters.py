"""Each kind of data gives the same pictures and identities; real libraries, no stand-ins."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twinlens.config import PictureSettings
from twinlens.data.adapters import table_of
from twinlens.data.contents import content_digests
from twinlens.data.folders import read_table
from twinlens.data.pixel_cache import decode_table
from twinlens.data.table import ImageTable, require_identities
from twinlens.errors import DataError

SIDE = 12
PIXELS = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE + 2, 3), dtype=np.uint8)
UNIT = PIXELS.transpose(0, 3, 1, 2).astype(np.float32) / 255
NAMES = ["x", "x", "y", "y", "z", "z"]
LABELS = [0, 0, 1, 1, 2, 2]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for row, name in enumerate(NAMES):
        file = tmp_path / name / f"{row}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(PIXELS[row]).save(file)
    return [str(tmp_path / name / f"{row}.png") for row, name in enumerate(NAMES)]


def png(row: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS[row]).save(stream, "PNG")
    return stream.getvalue()


def check(table: ImageTable, identities: list[Any] = NAMES) -> None:
    """The six pictures in their order, decoded alike."""
    assert table.identity.tolist() == [str(name) for name in identities]
    spec = PictureSettings(size=(SIDE, SIDE + 2), color="rgb")
    decoded = decode_table(table, spec, max_pixels=10**6, max_broken=0)
    np.testing.assert_array_equal(decoded.pixels, PIXELS.transpose(0, 3, 1, 2))


# --- pictures -----------------------------------------------------------------------------------


KINDS: dict[str, Callable[[str, int], Any]] = {
    "path": lambda file, _: file,
    "Path": lambda file, _: Path(file),
    "bytes": lambda _, row: png(row),
    "open file": lambda _, row: io.BytesIO(png(row)),
    "Pillow": lambda file, _: Image.open(file),
    "uint8": lambda _, row: PIXELS[row],
    "float, channels first": lambda _, row: UNIT[row],
    "Hugging Face": lambda _, row: {"bytes": png(row), "path": None},
    "function": lambda _, row: lambda: png(row),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_each_kind(kind: str, files: list[str]) -> None:
    pictures = [KINDS[kind](file, row) for row, file in enumerate(files)]
    check(table_of(list(zip(pictures, NAMES, strict=True))))


def test_pictures_of_several_kinds_and_sizes(files: list[str]) -> None:
    big = np.zeros((30, 40), bool)
    table = table_of({"x": [files[0], png(1)], "y": [PIXELS[2], Image.open(files[3])], "z": [big]})
    spec = PictureSettings(size=(SIDE, SIDE + 2), color="rgb")
    pixels = decode_table(table, spec, max_pixels=10**6, max_broken=0).pixels
    np.testing.assert_array_equal(pixels[:4], PIXELS[:4].transpose(0, 3, 1, 2))
    assert not pixels[4].any()
    # A path and the bytes of its file are one picture.
    assert content_digests(table)[0] == content_digests(table_of([files[0]]))[0]
    assert table.fingerprint() == table.fingerprint()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (UNIT * 255, r"in \[0, 1\], found 0 to 255"),
        (np.full((2, 4, 4), np.nan), "found NaN"),
        (np.zeros((2, 4, 4), int), "found int64"),
        (np.zeros((2, 2, 4, 6), np.uint8), r"1, 3 or 4 channels.*\(2, 2, 4, 6\)"),
        (np.zeros((2, 0, 4), np.uint8), "needs pixels"),
        (np.zeros(7, np.uint8), r"found \(7,\)"),
    ],
)
def test_arrays_that_are_no_pictures(pixels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        table_of(pixels)
    if pixels.ndim > 2 and len(pixels) == 2:
        with pytest.raises(DataError, match="picture 0: "):
            table_of(list(pixels))


def test_an_unreadable_picture_is_named(files: list[str]) -> None:
    table = table_of(([png(0), b"no picture", *files[2:]], NAMES))
    decoded = decode_table(table, PictureSettings(size=(8, 8)), max_pixels=10**6, max_broken=0.5)
    assert [(one.path, one.reason) for one in decoded.broken] == [
        ("1", "not a picture that Pillow can read")
    ]


# --- containers ---------------------------------------------------------------------------------


def test_arrays_with_labels() -> None:
    for pictures in (PIXELS, UNIT, PIXELS / 255):
        check(table_of((pictures, np.array(LABELS))), LABELS)
    check(table_of((list(PIXELS), NAMES)))


def test_pairs_in_a_generator_and_rows(files: list[str]) -> None:
    check(table_of(pair for pair in zip(files, NAMES, strict=True)))
    rows = [{"image": png(row), "label": name} for row, name in enumerate(NAMES)]
    check(table_of(rows))


def test_pictures_without_identities(files: list[str]) -> None:
    for data in (PIXELS, files, UNIT):
        check(table_of(data), [""] * 6)
    with pytest.raises(DataError, match=r"without identities.*\(pictures, labels\)"):
        require_identities(table_of(PIXELS))


def test_frames(files: list[str]) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    import pyarrow as pa

    columns = {"path": files, "Label": NAMES, "camera": [1, 2] * 3, "split": ["train"] * 6}
    cells = {"image": [{"bytes": png(row), "path": None} for row in range(6)], "identity": NAMES}
    for frame in (pandas.DataFrame, polars.DataFrame, pa.table):
        table = table_of(frame(columns))
        check(table)
        assert table.metadata is not None
        assert table.metadata[1] == {"camera": 2}
        assert set(table.split) == {"train"}
        check(table_of(frame(cells)))
    check(table_of(pandas.DataFrame({"picture": list(PIXELS), "label": NAMES})))
    check(table_of((pandas.Series(files), pandas.Series(NAMES))))
    top = Path(files[0]).parents[1]
    below = [Path(file).relative_to(top).as_posix() for file in files]
    check(read_table(pandas.DataFrame({"path": below, "identity": NAMES}), root=top))
    numbers = pandas.DataFrame({"path": files, "label": [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]})
    check(table_of(numbers), [1, 1, 2, 2, 3, 3])
    with pytest.raises(DataError, match=r"LazyFrame of Polars: pass `frame.collect\(\)`"):
        table_of(polars.LazyFrame(columns))


def test_torch_datasets(files: list[str]) -> None:
    torch, vision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    data = torch.utils.data
    folder = vision.datasets.ImageFolder(Path(files[0]).parents[1])
    table = table_of(folder)
    check(table)
    assert table.path.tolist() == files
    folder.transform = vision.transforms.ToTensor()
    check(table_of(data.Subset(folder, range(6))))
    tensors = data.TensorDataset(torch.from_numpy(UNIT), torch.tensor(LABELS))
    check(table_of(tensors), LABELS)
    check(table_of((torch.from_numpy(UNIT), torch.tensor(LABELS))), LABELS)
    with pytest.raises(DataError, match="pass its `dataset`"):
        table_of(data.DataLoader(tensors))
    with pytest.raises(DataError, match="needed are a picture and its label"):
        table_of(data.TensorDataset(torch.from_numpy(UNIT)))


def test_hugging_face_datasets(files: list[str]) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({
        "image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"]),
        "camera": datasets.Value("int64"),
    })  # fmt: skip
    columns = {"label": LABELS, "camera": [1, 2] * 3}
    of_files = datasets.Dataset.from_dict({"image": files, **columns}, features=features)
    pictures = [Image.fromarray(picture) for picture in PIXELS]
    of_bytes = datasets.Dataset.from_dict({"image": pictures, **columns}, features=features)
    for data in (of_files, of_bytes, of_files.to_iterable_dataset()):
        table = table_of(data)
        check(table)
        assert table.metadata is not None
        assert table.metadata[1] == {"camera": 2}
    parts = {"train": of_files.select(range(4)), "validation": of_bytes.select([4, 5])}
    table = table_of(datasets.DatasetDict(parts))
    check(table)
    assert table.split.tolist() == ["train"] * 4 + ["val"] * 2
    with pytest.raises(DataError, match=r"splits all; known are train.*data\['all'\]"):
        table_of(datasets.DatasetDict({"all": of_files}))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, r"cannot read pictures from int: accepted are \{identity"),
        (b"PNG", "cannot read pictures from bytes"),
        ([], "an empty list"),
        ([("a.png", "x", 1, 2)], "item 0 of the list is a tuple of 4.*a pair"),
        ([("a.png", "x"), "b.png"], "item 1 of the list is of type str"),
        ((PIXELS, NAMES[:3]), "found 6 pictures and 3 labels"),
        ({"x": 3}, "one int for x"),
        ({"x": "a.png"}, "one str for x, and needed is a list"),
        ([("a.png", "x"), ("a.png", "y")], "a.png has two identities, x and y"),
        ([("a.png", "x"), ("b.png", None)], "1 of 2 pictures have no identity, such as picture 1"),
        ([{"image": b"", "name": "x"}], "columns image, name; exactly one column of identities"),
        ([{"image": "a", "path": "b", "label": "x"}], "both image and path; exactly one"),
        ([{"path": "a", "label": "x", "split": "dev"}], "row 0: split is train.*found 'dev'"),
        ([(object(), "x")], "picture 0: a picture is a path, bytes.*found object"),
        ([(io.StringIO("x"), "x")], r"picture 0: .*open\(path, 'rb'\)"),
    ],
)
def test_other_data(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        table_of(data)
