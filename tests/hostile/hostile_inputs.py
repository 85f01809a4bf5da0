"""Hostile inputs by family: each function makes files in the working directory from random bits.

It returns the words of a command that reads them. `make_base` makes what they are mutations of.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import draw_pictures, tiny_words
from mutate_json import TOKENS, mutants
from PIL import Image

Words = list[str]
Make = Callable[[random.Random, Path], Words]

FEW_STEPS = tiny_words(train__steps=2, train__validations=1)


def run_command(*words: object) -> None:
    from twinlens.cli.main import main

    if main([str(word) for word in words]) != 0:
        raise RuntimeError(f"the base is not made: {words}")


def make_base(base: Path) -> None:
    """Pictures, a run, an unfinished run, a gallery and its tables."""
    draw_pictures(base / "pictures", {f"thing {number}": 6 for number in range(10)})
    draw_pictures(base / "photos", {"a": 2}, size=(64, 64))
    run_command("train", base / "pictures", "--out", base / "run", *tiny_words())
    shutil.copytree(base / "run", base / "model", ignore=lambda *_: {"tensorboard"})
    shutil.copytree(base / "model" / "model", base / "bundle")
    gallery = base / "gallery"
    run_command("gallery", "create", gallery, "--model", base / "bundle")
    run_command("gallery", "enrol", gallery, base / "pictures", "--metadata", "room=north")
    run_command("gallery", "export", gallery, base / "all.parquet")
    run_command("embed", base / "bundle", base / "pictures", "--out", base / "embedded.parquet")


# --- bytes --------------------------------------------------------------------------------------

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1)


def mutate(content: bytes, draw: random.Random, other: bytes = b"") -> bytes:
    """A few random changes of bytes."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        # Headers are at the start: every other change is there.
        end = max(1, min(len(data), draw.choice((64, len(data)))))
        at, num = draw.randrange(end), draw.choice((1, 2, 4, 16, 256))
        match draw.randrange(9):
            case 0:
                data[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                data[at : at + 1] = bytes([(data[at] if at < len(data) else 0) ^ 1 << num % 8])
            case 2:
                order: Any = draw.choice(("little", "big"))
                data[at : at + 4] = draw.choice(NUMBERS).to_bytes(4, order)
            case 3:
                order = draw.choice(("little", "big"))
                data[at : at + 2] = (draw.choice(NUMBERS) & 0xFFFF).to_bytes(2, order)
            case 4:
                del data[at:]
            case 5:
                del data[at : at + num]
            case 6:
                data[at:at] = draw.randbytes(num)
            case 7:
                data[at:at] = data[draw.randrange(end) :][: 4 * num]
            case 8:
                data[at:] = other[draw.randrange(len(other) + 1) :]
    return bytes(data)


# --- pictures -----------------------------------------------------------------------------------

SAVED: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]] = {
    "png": [(m, {}) for m in ("L", "RGB", "RGBA", "P", "1", "I;16", "LA")] + [("RGB", {"exif": 1})],
    "jpg": [("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True}),
            ("RGB", {"exif": 1})],
    "gif": [("P", {}), ("P", {"save_all": True, "frames": 3}), ("L", {})],
    "bmp": [("RGB", {}), ("P", {}), ("1", {}), ("RGBA", {})],
    "tif": [("RGB", {}), ("L", {"compression": "tiff_lzw"}), ("I;16", {}), ("F", {}),
            ("1", {"compression": "group4"}), ("RGB", {"compression": "jpeg"}),
            ("RGBA", {"save_all": True, "frames": 2}), ("I", {}), ("CMYK", {}), ("LAB", {})],
    "webp": [("RGB", {}), ("RGBA", {"lossless": True}), ("RGB", {"save_all": True, "frames": 3})],
    "ppm": [("RGB", {}), ("L", {}), ("1", {})],
    "tga": [("RGB", {"compression": "tga_rle"}), ("L", {}), ("P", {})],
    "jp2": [("RGB", {}), ("L", {})],
    "avif": [("RGB", {}), ("RGBA", {})],
    "ico": [("RGBA", {})],
    "pcx": [("RGB", {}), ("L", {})],
    "im": [("RGB", {})],
    "dds": [("RGBA", {})],
    "eps": [("RGB", {})],
    "pdf": [("RGB", {})],
}  # fmt: skip


def picture_bytes(draw: random.Random, suffix: str | None = None) -> tuple[str, bytes]:
    """A small picture of a random kind in a file format."""
    suffix = draw.choice(sorted(SAVED)) if suffix is None else suffix
    mode, options = draw.choice(SAVED[suffix])
    side = draw.choice((8, 17, 33))
    rng = np.random.default_rng(draw.randrange(2**32))
    pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    if mode == "I;16":
        picture = Image.fromarray(rng.integers(0, 2**16, (side, side), dtype=np.uint16))
    elif mode in ("LA", "P", "1", "F", "I"):
        picture = picture.convert("L").convert(mode)
    elif mode == "LAB":
        picture = Image.frombytes("LAB", (side, side), pixels.tobytes())
    else:
        picture = picture.convert(mode)
    options = dict(options)
    if options.pop("exif", None):
        exif = Image.Exif()
        exif[0x0112] = draw.choice((3, 6, 8))
        options["exif"] = exif
    if frames := options.pop("frames", None):
        options["append_images"] = [picture.rotate(90 * n) for n in range(1, frames)]
    stream = io.BytesIO()
    picture.save(stream, "JPEG2000" if suffix == "jp2" else suffix_format(suffix), **options)
    return suffix, stream.getvalue()


def suffix_format(suffix: str) -> str:
    return Image.registered_extensions()[f".{suffix}"]


def png(width: int, height: int, *, depth: int = 8, color: int = 0, body: bytes = b"\0") -> bytes:
    """A PNG whose header claims a size, with right checksums."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(body)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def webp(width: int, height: int) -> bytes:
    """Some 34 bytes that decode to a lossless WebP of a size, in one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "WEBP", lossless=True)
    content = bytearray(stream.getvalue())
    at = content.index(b"VP8L") + 9
    bits = int.from_bytes(content[at : at + 4], "little") >> 28 << 28
    content[at : at + 4] = (bits | (width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return bytes(content)


def claim(draw: random.Random) -> tuple[str, bytes]:
    """A file of a few bytes whose header claims a large picture."""
    width, height = (draw.choice((1, 9_999, 16_383, 65_535, 99_999_999)) for _ in range(2))
    match draw.randrange(6):
        case 0:
            color, depth = draw.choice(((0, 1), (0, 16), (2, 8), (6, 16), (3, 8)))
            return "png", png(width, height, color=color, depth=depth, body=b"\0" * 100_000)
        case 1:
            return "webp", webp(min(width, 16_383), min(height, 16_383))
        case 2:
            size = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
            return "gif", b"GIF89a" + size + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0" + size + (
                b"\0\x02\x02D\x01\0;"
            )
        case 3:
            head = struct.pack("<IIIIHHIIIIII", 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
            return "bmp", b"BM" + struct.pack("<IHH", 54, 0, 0) + head
        case 4:
            return "ppm", b"P6 %d %d 255\n" % (width, height)
        case _:
            name, content = picture_bytes(draw, draw.choice(("jpg", "jp2", "tif", "avif")))
            big = struct.pack(">H", 65_500)
            return name, content.replace(struct.pack(">H", content[0] and 17), big)


ODD_CONTENT: Sequence[bytes] = (
    b"", b"\0", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
    b"%PDF-1.4\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html><script>",
    b"\x80\x04\x95\x05\0\0\0\0\0\0\0]\x94.", b"PK\x03\x04" + b"\0" * 40, b"\x1f\x8b\x08\0" * 4,
    b"GIF89a\x01\0\x01\0\0\0\0;", b"8BPS\0\x01" + b"\0" * 20, b"\x00\x00\x00\x18ftypheic" * 3,
    b"\xff\x0a" + b"\xff" * 20, b"II*\0\x08\0\0\0" + b"\xff" * 60,
    b"MM\0+\0\x08\0\0" + b"\xff" * 60,
)  # fmt: skip


def hostile_picture(draw: random.Random) -> tuple[str, bytes]:
    """A suffix, and the bytes of a mutated, claimed or foreign file."""
    suffix, content = picture_bytes(draw)
    match draw.randrange(10):
        case 0:
            suffix, content = claim(draw)
        case 1:
            content = draw.choice(ODD_CONTENT)
        case 2:  # Another format under this suffix, or two files in one.
            content = picture_bytes(draw)[1] + draw.choice((b"", content, draw.randbytes(100)))
        case _:
            content = mutate(content, draw, picture_bytes(draw)[1])
    if draw.random() < 0.1:
        suffix = draw.choice(("png", "jpg", "JPG", "jpeg", "tiff", "heic", "jxl", "psd", "webp"))
    return suffix, content


def pictures(draw: random.Random, base: Path) -> Words:
    folder = Path("d")
    num = draw.choice((1, 1, 3))
    for number in range(num):
        suffix, content = hostile_picture(draw)
        path = folder / "ab"[number % 2] / f"x{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    name = str(path)
    draw_pictures(folder, {"a": 2, "b": 2, "c": 2})
    bundle, gallery = base / "bundle", base / "gallery"
    match draw.randrange(12):
        case 0 | 1 | 2:
            return ["inspect", "d", *draw.choice(([], ["--json"], ["--montage", "m.png"]))]
        case 3 | 4 | 5:
            return [
                "verify",
                str(bundle),
                name,
                "d/c/0.png",
                *draw.choice(([], ["--show", "s.png"])),
            ]
        case 6:
            return ["identify", str(gallery), name, *draw.choice(([], ["--show", "s.png"]))]
        case 7:
            return ["search", str(gallery), name]
        case 8:
            shutil.copytree(gallery, "g")
            words = draw.choice((["d"], ["--identity", "x", name]))
            return ["gallery", "enrol", "g", *words, *draw.choice(([], ["--keep-thumbnails"]))]
        case 9:
            return ["embed", str(bundle), "d", "--out", "e.parquet"]
        case 10:
            return ["cluster", str(bundle), "d", "--out", "c"]
        case _:
            return ["faces", "d", "f", "--detector", "haar"]


# --- folders ------------------------------------------------------------------------------------

NAMES: Sequence[str] = (
    "new\nline", "tab\tname", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\u202egpj.exe", "-rf",
    "--out", "~", "~root", "$HOME", "$(touch x)", "`id`", "a;b", "a|b", "a&b", "*", "?", "[a]",
    "CON", "NUL.png", "dot.", " space ", "x" * 250, "é" * 120, "e\u0301", "\u00e9", "\udcff\udc80",
    "名前", "👩‍👩‍👧", "=cmd|'/c calc'!A0", "+1", "@SUM(A1)", "a,b", 'a"b', "a'b", "<b>x",
    "{{7*7}}", "%s%n", "\\", "a\\b", ".hidden", "...", "@eaDir", "#recycle", "__MACOSX",
    ".thumbnails", "$RECYCLE.BIN", "System Volume Information", "lost+found", "train", "test",
    "val", "genuine", "forged", "\u200b", "\ufeff", "null", "nan", "1e5", "s3:", "digits",
    "a.csv", "a.parquet", "\x7f", "\x85", "\u2028",
)  # fmt: skip


def place_odd_file(path: Path, draw: random.Random) -> None:
    """Something at a path that is no picture, or one that is hard to read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match draw.randrange(12):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(path.name)
        case 2:
            path.symlink_to("..", target_is_directory=True)
        case 3:
            path.symlink_to("/dev/zero")
        case 4:
            path.symlink_to("/nonexistent")
        case 5:
            path.symlink_to("/dev", target_is_directory=True)
        case 6:
            path.touch()
        case 7:
            path.mkdir()
        case 8:
            path.symlink_to(path.parent.parent.absolute(), target_is_directory=True)
        case 9:
            path.write_text("text")
        case 10:
            with path.open("wb") as file:
                file.truncate(2**40)  # Sparse.
        case _:
            path.write_bytes(draw.choice(ODD_CONTENT))


def folders(draw: random.Random, base: Path) -> Words:
    top = draw.choice(("d", "d", draw.choice(NAMES)))
    folder = Path(f"./{top}")
    for _ in range(draw.choice((2, 4, 8))):
        depth = draw.choice((1, 1, 1, 2, 3))
        inner = "/".join(draw.choice((*NAMES, "a", "b", "c")) for _ in range(depth))
        try:
            draw_pictures(folder, {inner: draw.choice((0, 1, 3))}, seed=draw.randrange(3))
            picture = next((folder / inner).glob("*.png"), None)
            if picture is not None and draw.random() < 0.3:
                picture.rename(picture.parent / (draw.choice(NAMES)[:50].replace("/", "") + ".png"))
        except OSError:  # A name that this file system has not.
            continue
    for number in range(draw.choice((0, 1, 2))):
        place_odd_file(folder / draw.choice("abc") / f"odd{number}.png", draw)
    if draw.random() < 0.2:  # Every folder links to every other.
        inside = [p for p in folder.iterdir() if p.is_dir() and not p.is_symlink()]
        for one in inside:
            for number, other in enumerate(inside):
                (one / f"link{number}").symlink_to(other.absolute(), target_is_directory=True)
    where = draw.choice((str(folder), top, str(folder.absolute())))
    bundle = base / "bundle"
    match draw.randrange(9):
        case 0 | 1 | 2:
            return ["inspect", where, *draw.choice(([], ["--json"]))]
        case 3:
            return ["train", where, "--out", "r", *FEW_STEPS]
        case 4:
            return ["embed", str(bundle), where, "--out", "e.parquet"]
        case 5:
            shutil.copytree(base / "gallery", "g")
            return ["gallery", "enrol", "g", where]
        case 6:
            return ["cluster", str(bundle), where, "--out", "c", *draw.choice(([], ["--copy"]))]
        case 7:
            return ["evaluate", str(bundle), where, "--on", "all"]
        case _:
            return ["faces", where, "f", "--detector", "haar"]


# --- tables -------------------------------------------------------------------------------------

CELLS: Sequence[str] = (
    "", " ", "\0", "\n", '"', '""', "'", ",", ";", "\t", "a" * 200_000, "1e999", "nan", "-1", "0",
    "true", "=cmd|'/c calc'!A0", "\x1b[2J", "\u202e", "\ufeff", "/dev/zero", "/dev/stdin", "/",
    ".", "..", "../" * 50 + "etc/passwd", "C:\\a\\b.png", "a\\b.png", "file:///etc/passwd",
    "http://localhost/x.png", "s3://x/y", "~/x.png", "[0,0,1]", "{}", "train", "TEST ", "held out",
    "forged", "must", "cannot", "same", "\udcff", "é", "e\u0301", "pictures/thing 0/0.png",
    "pictures/thing 1/0.png", "fifo.png", "10" * 3000,
)  # fmt: skip


def manifest_rows(base: Path, draw: random.Random) -> list[list[str]]:
    """A header and rows of a valid manifest."""
    columns = [
        "path",
        "identity",
        *draw.choice(([], ["split"], ["role"], ["role", "split", "room"])),
    ]
    values = {
        "split": ("train", "val", "test", ""),
        "role": ("genuine", "", "forged"),
        "room": "ab",
    }
    rows = [columns]
    for file in sorted((base / "pictures").rglob("*.png"))[: draw.choice((8, 30, 60))]:
        more = [draw.choice(values[name]) for name in columns[2:]]
        rows.append([f"pictures/{file.relative_to(base / 'pictures')}", file.parent.name, *more])
    return rows


def pair_rows(base: Path, draw: random.Random, last: str, values: Sequence[str]) -> list[list[str]]:
    """A header and rows of pairs of pictures."""
    files = [str(f.relative_to(base)) for f in sorted((base / "pictures").rglob("*.png"))]
    rows = [["a", "b", last]]
    return rows + [[draw.choice(files), draw.choice(files), draw.choice(values)] for _ in range(30)]


def hostile_csv(rows: list[list[str]], draw: random.Random) -> bytes:
    """A table with odd cells, columns, separators, quotes, encodings and bytes."""
    for _ in range(draw.choice((0, 1, 1, 3))):
        row = draw.choice((0, draw.randrange(len(rows))))
        match draw.randrange(7):
            case 0 | 1 | 2:
                rows[row][draw.randrange(len(rows[row]))] = draw.choice(CELLS)
            case 3:
                rows[row].append(draw.choice(CELLS))
            case 4:
                del rows[row][draw.randrange(len(rows[row])) :]
                rows[row] = rows[row] or [""]
            case 5:
                rows[0][draw.randrange(len(rows[0]))] = draw.choice(rows[0]).upper()
            case 6:
                rows.insert(row, rows[draw.randrange(len(rows))] * draw.choice((1, 2, 50)))
    text = io.StringIO(newline="")
    mark = draw.choice((",", ",", ",", ";", "\t", "|", " "))
    csv.writer(text, delimiter=mark, lineterminator=draw.choice(("\n", "\r\n", "\r"))).writerows(
        rows
    )
    encoding = draw.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-32"))
    errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
    content = text.getvalue().encode(encoding, errors)
    return mutate(content, draw, content) if draw.random() < 0.3 else content


ODD_COLUMNS: Sequence[Callable[[int], Any]] = (
    lambda n: pa.nulls(n),
    lambda n: pa.array([[1.0]] * n),
    lambda n: pa.array([{"a": 1}] * n),
    lambda n: pa.array([1e308, float("nan"), float("inf")] * n)[:n],
    lambda n: pa.array([2**63 - 1] * n),
    lambda n: pa.array([b"\xff\xfe"] * n),
    lambda n: pa.array(["x"] * n).dictionary_encode(),
    lambda n: pa.array([""] * n),
    lambda n: pa.array(["a\0b"] * n),
    lambda n: pa.array(["x" * 100_000] * n),
    lambda n: pa.array([True] * n),
    lambda n: pa.array([10**17] * n, pa.timestamp("us")),
    lambda n: pa.array([[0.0] * 16] * n, pa.list_(pa.float32(), 16)),
    lambda n: pa.array([[float("nan")] * 16] * n, pa.list_(pa.float32(), 16)),
    lambda n: pa.array([[1e38] * 16] * n, pa.list_(pa.float64(), 16)),
    lambda n: pa.array([[1.0] * 3] * n, pa.list_(pa.float32(), 3)),
    lambda n: pa.array([None, *[[1.0] * 16] * (n - 1)], pa.list_(pa.float32(), 16)),
    lambda n: pa.array([[1.0] * (k % 5) for k in range(n)], pa.list_(pa.float32())),
    lambda n: pa.array([b"\x89PNG\r\n\x1a\n"] * n),
    lambda n: pa.array(["{" * 5000] * n),
    lambda n: pa.array(['{"a": 1e999}'] * n),
)


def hostile_parquet(table: pa.Table, draw: random.Random) -> bytes:
    """A Parquet file with odd columns, rows, metadata, compression and bytes."""
    for _ in range(draw.choice((0, 1, 1, 2))):
        name = draw.choice(table.column_names)
        at = table.column_names.index(name)
        match draw.randrange(7):
            case 0 | 1 | 2:
                table = table.set_column(at, name, draw.choice(ODD_COLUMNS)(len(table)))
            case 3:
                table = table.drop_columns([name])
            case 4:
                table = table.append_column(draw.choice((name, "x", "thumbnail", "time")),
                                            draw.choice(ODD_COLUMNS)(len(table)))  # fmt: skip
            case 5:
                table = table.slice(0, draw.choice((0, 1, 3)))
            case 6:
                key = draw.choice([*(table.schema.metadata or {b"x": b""})])
                more = {key: draw.choice(list(TOKENS.values())).encode()[:10_000]}
                table = table.replace_schema_metadata({**(table.schema.metadata or {}), **more})
        if not table.column_names:
            break
        if len(table) == 0:
            break
    stream = io.BytesIO()
    pq.write_table(table, stream, compression=draw.choice(("snappy", "zstd", "none")))
    content = stream.getvalue()
    return mutate_ends(content, draw) if draw.random() < 0.4 else content


def mutate_ends(content: bytes, draw: random.Random) -> bytes:
    """Changes of the footer, where Parquet and Lance have their numbers, or anywhere."""
    if draw.random() < 0.5:
        return mutate(content, draw, content)
    keep = max(0, len(content) - draw.choice((8, 64, 1000)))
    return content[:keep] + mutate(content[keep:], draw, content)


def tables(draw: random.Random, base: Path) -> Words:
    Path("pictures").symlink_to(base / "pictures")
    os.mkfifo("fifo.png")
    bundle = str(base / "bundle")
    match draw.randrange(8):
        case 0 | 1 | 2:
            file = manifest(draw, base)
            return draw.choice(
                (
                    ["inspect", file],
                    ["inspect", file, "--json"],
                    ["embed", bundle, file, "--out", "e.parquet"],
                    ["evaluate", bundle, file],
                    ["cluster", bundle, file, "--out", "c"],
                    ["calibrate", shutil.copytree(bundle, "m"), file],
                    ["gallery", "enrol", shutil.copytree(base / "gallery", "g"), file],
                    ["faces", file, "f", "--detector", "haar"],
                    ["train", file, "--out", "r", *FEW_STEPS],
                )
            )
        case 3 | 4:
            rows = pair_rows(base, draw, "same", ("0", "1", "true", "No"))
            if draw.random() < 0.4:
                rows = [["trial", "probe", "candidate", "same"]] + [
                    [str(number // 3), *row[:2], str(int(number % 3 == 0))]
                    for number, row in enumerate(rows[1:])
                ]
            Path("t.csv").write_bytes(hostile_csv(rows, draw))
            return ["evaluate", bundle, "--trials", "t.csv"]
        case 5:
            rows = pair_rows(base, draw, "link", ("must", "cannot"))
            Path("t.csv").write_bytes(hostile_csv(rows, draw))
            return ["cluster", bundle, "pictures", "--out", "c", "--constraints", "t.csv"]
        case _:
            shutil.copytree(base / "gallery", "g")
            table = pq.read_table(base / draw.choice(("all.parquet", "embedded.parquet")))
            Path("t.parquet").write_bytes(hostile_parquet(table, draw))
            return ["gallery", "import", "g", "t.parquet"]


def manifest(draw: random.Random, base: Path) -> str:
    rows = manifest_rows(base, draw)
    if draw.random() < 0.6:
        Path("t.csv").write_bytes(hostile_csv(rows, draw))
        return "t.csv"
    table = pa.table(dict(zip(rows[0], map(list, zip(*rows[1:], strict=True)), strict=True)))
    Path("t.parquet").write_bytes(hostile_parquet(table, draw))
    return "t.parquet"


# --- models and runs ----------------------------------------------------------------------------


def hostile_json(text: str, draw: random.Random) -> str:
    """A mutant of a JSON text."""
    every = list(mutants(json.loads(text)))
    return draw.choice(every).text


def hostile_tensors(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file with a mutated header or body."""
    length = int.from_bytes(content[:8], "little")
    if draw.random() < 0.5:
        header = hostile_json(content[8 : 8 + length].decode(), draw).encode()
        return len(header).to_bytes(8, "little") + header + content[8 + length :]
    if draw.random() < 0.3:
        numbers = np.frombuffer(
            content[8 + length :][: (len(content) - 8 - length) // 4 * 4], "<f4"
        )
        odd = draw.choice((np.nan, np.inf, 3e38, 1e-40, 0.0))
        return (
            content[: 8 + length]
            + np.where(np.arange(len(numbers)) % 7, numbers, odd).astype("<f4").tobytes()
        )
    return mutate(content, draw, content)


def mutate_file(path: Path, draw: random.Random) -> None:
    """Change a file by its kind, or put something else into its place."""
    if draw.random() < 0.15:
        path.unlink()
        if draw.random() < 0.8:
            place_odd_file(path, draw)
        return
    content = path.read_bytes()
    if path.suffix == ".json" and draw.random() < 0.8:
        path.write_text(hostile_json(content.decode(), draw), errors="surrogatepass")
    elif path.suffix == ".safetensors":
        path.write_bytes(hostile_tensors(content, draw))
    elif path.suffix == ".csv" and draw.random() < 0.8:
        rows = list(csv.reader(io.StringIO(content.decode())))
        path.write_bytes(hostile_csv(rows, draw))
    else:
        path.write_bytes(mutate_ends(content, draw))


def sign(bundle: Path) -> None:
    """Make the checksums of weights and graphs and the fingerprint right, where possible."""
    import hashlib

    from twinlens.model.stored import fingerprint_of

    try:
        values = json.loads((bundle / "model.json").read_text())
        weights = (bundle / "model.safetensors").read_bytes()
        values["weights"] = hashlib.sha256(weights).hexdigest()
        for name in values["graphs"]:
            values["graphs"][name] = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
        values["fingerprint"] = fingerprint_of(values)
        (bundle / "model.json").write_text(json.dumps(values))
    except Exception:  # Too odd for a fingerprint.
        return


def models(draw: random.Random, base: Path) -> Words:
    bundle = Path(shutil.copytree(base / "bundle", "m"))
    names = ("model.json", "model.json", "model.safetensors", "model.onnx", "model.onnx")
    mutate_file(bundle / draw.choice(names), draw)
    if draw.random() < 0.7 and all(p.is_file() and not p.is_symlink() for p in bundle.iterdir()):
        sign(bundle)
    Path("d").symlink_to(base / "pictures")
    picture, other = "d/thing 0/0.png", "d/thing 1/0.png"
    match draw.randrange(8):
        case 0 | 1 | 2:
            return ["verify", "m", picture, other]
        case 3:
            return ["embed", "m", "d", "--out", "e.parquet"]
        case 4:
            return ["evaluate", "m", "d", "--on", "all", "--json"]
        case 5:
            return ["calibrate", "m", "d", "--on", "all", "--far", "0.1"]
        case 6:
            return ["gallery", "create", "g", "--model", "m"]
        case _:
            return ["cluster", "m", "d", "--out", "c"]


def runs(draw: random.Random, base: Path) -> Words:
    run = Path(shutil.copytree(base / "model", "r"))
    if unfinished := draw.random() < 0.5:
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | {"finished": False}))
    files = [p for p in sorted(run.rglob("*")) if p.is_file() and p.parent.name != "tensorboard"]
    mutate_file(draw.choice(files), draw)
    Path("d").symlink_to(base / "pictures")
    match draw.randrange(8) if not unfinished else 0:
        case 0:
            return ["train", str(base / "pictures"), "--out", "r", "--resume"]
        case 1 | 2 | 3:
            return ["evaluate", "r", *draw.choice(([], ["d"], ["d", "--on", "test"], ["--json"]))]
        case 4:
            return ["evaluate", "r", "--protocol", draw.choice(("nearest", "open-set"))]
        case 5 | 6:
            return ["calibrate", "r", *draw.choice(([], ["d"])), "--far", "0.1"]
        case _:
            return ["verify", "r", "d/thing 0/0.png", "d/thing 1/0.png"]


# --- galleries ----------------------------------------------------------------------------------


def galleries(draw: random.Random, base: Path) -> Words:
    gallery = Path(shutil.copytree(base / "gallery", "g"))
    files = [p for p in sorted(gallery.rglob("*")) if p.is_file()]
    match draw.randrange(8):
        case 0 | 1 | 2:
            tamper_settings(gallery, draw)
        case 3:
            folder = draw.choice([p for p in sorted(gallery.rglob("*")) if p.is_dir()])
            shutil.rmtree(folder)
            if draw.random() < 0.7:
                place_odd_file(folder, draw)
        case _:
            for file in draw.sample(files, draw.choice((1, 1, 3))):
                mutate_file(file, draw)
    picture = str(base / "pictures" / "thing 0" / "0.png")
    where = ["--where", draw.choice(("identity = 'thing 1'", "metadata.room = 'north'"))]
    return draw.choice(
        (
            ["gallery", "info", "g"],
            ["gallery", "info", "g", "--json"],
            ["gallery", "list", "g"],
            ["gallery", "list", "g", "--templates"],
            ["search", "g", picture],
            ["search", "g", picture, *where],
            ["identify", "g", picture],
            ["gallery", "enrol", "g", "--identity", "new", picture],
            ["gallery", "enrol", "g", str(base / "photos")],
            ["gallery", "erase", "g", "thing 3"],
            ["gallery", "rename", "g", "thing 3", "thing 4", "--merge"],
            ["gallery", "optimize", "g"],
            ["gallery", "export", "g", "e.parquet"],
            ["gallery", "import", "g", str(base / "all.parquet")],
            ["gallery", "calibrate", "g", "--fpir", "0.2"],
            ["gallery", "rebuild", "g", "--model", str(base / "bundle")],
            ["cluster", "g", "--out", "c"],
        )
    )


def tamper_settings(gallery: Path, draw: random.Random) -> None:
    """Mutate the settings that the schema of the templates carries."""
    import lance

    data = lance.dataset(str(gallery / "templates.lance"))
    metadata = {k.decode(): v.decode() for k, v in data.schema.metadata.items()}
    key = draw.choice(sorted(metadata))
    metadata[key] = hostile_json(metadata[key], draw)
    if len(metadata[key]) < 50_000:
        data.replace_schema_metadata(metadata)


# --- texts --------------------------------------------------------------------------------------

PARTS = (
    "identity", "path", "time", "hash", "vector", "metadata.room", 'metadata."my key"', "metadata",
    "forged", "x", "=", "==", "!=", "<>", "<", ">=", "AND", "or", "NOT", "IN", "LIKE", "IS", "NULL",
    "BETWEEN", "(", ")", ",", ";", "--", "/*", "*/", "'a'", "'thing 1'", "''", "'", '"', "'%'",
    "'a''b'", "1", "-1", "1e999", "0x1", "9" * 400, "1.5.2", "true", "DROP TABLE x", "SELECT 1",
    "UNION", "LIMIT 1", "ORDER BY identity", "repeat('a',1000000000)",
    "regexp_like(path, '(a+)+b')",
    "CAST(path AS INT)", "CASE WHEN 1 THEN 2 END", "||", "+", "/ 0", "%", "\\", "\0", "é", "\udcff",
    "\n", "timestamp '2020-01-01'", "'2020-13-45'", "time > '2020-01-01T00:00:00Z'", "1=1",
)  # fmt: skip


def conditions(draw: random.Random, base: Path) -> Words:
    match draw.randrange(6):
        case 0:
            many = " OR ".join(["identity = 'a'"] * 3000)
            deep = "NOT " * 5000 + "identity = 'a'"
            where = draw.choice(("(" * 2000, deep, "x" * 10**5, "'" * 9999, many))
        case 1 | 2:
            where = " AND ".join(
                f"{draw.choice(('identity', 'path', 'metadata.room', 'time'))} "
                f"{draw.choice(('=', '<', 'LIKE', 'IN', 'IS NOT'))} {draw.choice(PARTS)}"
                for _ in range(draw.choice((1, 2, 3)))
            )
        case _:
            where = " ".join(draw.choice(PARTS) for _ in range(draw.choice((1, 3, 5, 9))))
    picture = str(base / "pictures" / "thing 0" / "0.png")
    # The system has no argument with NUL; that of Python may.
    return ["search", str(base / "gallery"), picture, f"--where={where}"]


def recipes(draw: random.Random, base: Path) -> Words:
    from twinlens.config import setting_fields

    keys = [key for key, _ in setting_fields()]
    odd = (
        *TOKENS.values(),
        "inf",
        "nan",
        "auto",
        "''",
        "[1e308]",
        "1979-05-27",
        "{a = {}}",
        "99999",
    )
    data = str(base / "pictures")
    chosen = [(draw.choice(keys), draw.choice(odd)) for _ in range(draw.choice((1, 1, 2)))]
    if draw.random() < 0.5:
        words = [word for key, value in chosen for word in ("--set", f"{key}={value[:100_000]}")]
    else:
        text = "".join(f"{key} = {value}\n" for key, value in chosen).encode(errors="replace")
        text = mutate(text, draw, text) if draw.random() < 0.5 else text
        Path("r.toml").write_bytes(text)
        words = ["--recipe", "r.toml"]
    match draw.randrange(8):
        case 0:
            Path("r.toml").touch()
            return ["recipes", "r.toml"]
        case 1 | 2:
            tiny = list(FEW_STEPS) if words[0] == "--set" else ["--steps", "2"]
            return ["train", data, "--out", "r", *tiny, *words]
        case _:
            return ["inspect", data, *words]


VALUES = (
    "-1", "0", "1", "nan", "inf", "-inf", "1e-320", "1e308", "1e999", "0.5", "x", "", " ", "1_0",
    "٣", "9" * 30, "9" * 5000, "1000000000", "2147483648", "\x1b[1m", "\udcff", "-k", "1e400",
)  # fmt: skip
OPTIONS: Sequence[tuple[Words, Words]] = (
    (["evaluate", "BUNDLE", "DATA", "--on", "all"],
     ["--pairs", "--way", "--shot", "--episodes", "--seed", "--on", "--protocol", "--rule"]),
    (["evaluate", "RUN"], ["--pairs", "--way", "--shot", "--episodes", "--seed", "--on"]),
    (["calibrate", "COPY", "DATA", "--on", "all"], ["--far", "--on"]),
    (["cluster", "BUNDLE", "DATA", "--out", "c"],
     ["--far", "--threshold", "--min-size", "--neighbours"]),
    (["identify", "GALLERY", "PICTURE"], ["-k", "--far", "--show"]),
    (["search", "GALLERY", "PICTURE"], ["-k", "--show"]),
    (["gallery", "optimize", "G"], ["--partitions", "--recall"]),
    (["gallery", "calibrate", "G"], ["--fpir", "--seed", "--rule"]),
    (["gallery", "rename", "G", "thing 1"], [""]),
    (["gallery", "erase", "G"], [""]),
    (["gallery", "list", "GALLERY"], [""]),
    (["gallery", "enrol", "G", "DATA"], ["--identity", "--metadata", "--root"]),
    (["faces", "PHOTOS", "f", "--detector", "haar"],
     ["--score", "--keep", "--size", "--margin", "--pad", "--workers", "--detector"]),
    (["inspect", "DATA"], ["--seed", "--epochs", "--steps", "--time-budget", "--backbone", "--loss",
                           "--recipe", "--weights", "--split", "--root"]),
    (["train", "DATA", "--out", "r", *FEW_STEPS], ["--seed", "--backbone", "--loss", "--weights"]),
    (["verify", "BUNDLE", "PICTURE"], [""]),
    (["inspect"], [""]), (["recipes"], [""]), ([], [""]), (["gallery"], [""]),
)  # fmt: skip


def options(draw: random.Random, base: Path) -> Words:
    command, names = draw.choice(OPTIONS)
    places = {
        "BUNDLE": base / "bundle", "RUN": base / "run", "DATA": base / "pictures",
        "GALLERY": base / "gallery", "PHOTOS": base / "photos",
        "PICTURE": base / "pictures" / "thing 0" / "0.png",
    }  # fmt: skip
    if "G" in command:
        shutil.copytree(base / "gallery", "g")
    if "COPY" in command:
        shutil.copytree(base / "bundle", "m")
    words = [str(places.get(w, {"G": "g", "COPY": "m"}.get(w, w))) for w in command]
    for _ in range(draw.choice((1, 1, 2))):
        name, value = draw.choice(names), draw.choice((*VALUES, draw.choice(NAMES)))
        words += [f"{name}={value}"] if name.startswith("--") else [*name.split(), value]
    return words


def weights(draw: random.Random, base: Path) -> Words:
    """Files for `--weights`, and models of detectors."""
    suffix = draw.choice((".safetensors", ".pth", ".pt", ".h5", ".onnx", ".bin", ""))
    file = Path(f"w{suffix}")
    content = (base / "bundle" / "model.safetensors").read_bytes()
    match draw.randrange(4):
        case 0:
            file.write_bytes(hostile_tensors(content, draw))
        case 1:
            file.write_bytes(mutate(pickled(), draw, content))
        case 2:
            file.write_bytes(
                draw.choice((*ODD_CONTENT, b"\x08\x07\x12\x04test" + draw.randbytes(99)))
            )
        case _:
            place_odd_file(file, draw)
    if draw.random() < 0.3:
        return ["faces", str(base / "photos"), "f", "--detector", "yunet", "--model", str(file)]
    return ["train", str(base / "pictures"), "--out", "r", *FEW_STEPS, "--weights", str(file)]


def pickled() -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save({"state_dict": {"module.0.weight": torch.ones(3)}, "epoch": 3}, stream)
    return stream.getvalue()


FAMILIES: Mapping[str, Make] = {
    "pictures": pictures,
    "folders": folders,
    "tables": tables,
    "models": models,
    "runs": runs,
    "galleries": galleries,
    "conditions": conditions,
    "recipes": recipes,
    "options": options,
    "weights": weights,
}
