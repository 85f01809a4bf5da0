"""Single templates: enrolled from bytes, listed in parts, read, and erased."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import TinyRun
from gallery_traces import found_in, traces_of_texts, traces_of_vectors
from PIL import Image

from twinlens.errors import GalleryError
from twinlens.gallery.gallery import Gallery


@pytest.fixture
def gallery(tiny_run: TinyRun, tmp_path: Path) -> Gallery:
    return Gallery.create(tmp_path / "gallery", tiny_run.model)


def contents(run: TinyRun, thing: int, num: int = 2) -> list[tuple[str, bytes]]:
    folder = run.data / f"thing {thing}"
    return [(f"{thing}-{n}.png", (folder / f"{n}.png").read_bytes()) for n in range(num)]


def test_bytes_and_file_of_one_picture_are_one_template(
    gallery: Gallery, tiny_run: TinyRun, tmp_path: Path
) -> None:
    pictures = contents(tiny_run, 0)
    result = gallery.enrol_files("anna", pictures, keep_thumbnails=True)
    assert (result.num_new, list(result.hashes)) == (2, ["0-0.png", "0-1.png"])
    files = [tiny_run.data / "thing 0" / f"{n}.png" for n in range(3)]
    again = gallery.enrol_files("anna", files)
    assert (again.num_new, again.num_known) == (1, 2)
    assert again.hashes[str(files[0])] == result.hashes["0-0.png"]
    by_file = Gallery.create(tmp_path / "other", tiny_run.model)
    by_file.enrol_files("anna", files[0])
    np.testing.assert_array_equal(
        by_file.embedding(result.hashes["0-0.png"]), gallery.embedding(result.hashes["0-0.png"])
    )
    broken = gallery.enrol_files("bert", ("broken.jpg", b"no picture"))
    assert [one.path for one in broken.skipped] == ["broken.jpg"]
    assert not broken.hashes


def test_templates_in_parts_are_the_list(gallery: Gallery, tiny_run: TinyRun) -> None:
    for thing in (2, 0, 1):
        gallery.enrol_files(f"p{thing}", contents(tiny_run, thing, 3), metadata={"n": thing},
                            keep_thumbnails=thing == 1)  # fmt: skip
    whole = gallery.templates()
    assert whole.total == len(whole.templates) == 9
    parts = [gallery.templates(offset=start, limit=4) for start in (0, 4, 8, 12)]
    assert [row for part in parts for row in part.templates] == list(whole.templates)
    assert {part.total for part in parts} == {9}
    assert gallery.templates(offset=7).templates == whole.templates[7:]
    assert [row.has_thumbnail for row in whole.templates] == [False] * 3 + [True] * 3 + [False] * 3
    some = gallery.templates(where="metadata.n >= 1", limit=2)
    assert ([row.identity for row in some.templates], some.total) == (["p1", "p1"], 6)
    assert gallery.templates("p0", where="metadata.n = 1").total == 0
    with pytest.raises(GalleryError, match="colour"):
        gallery.templates(where="colour = 1")
    shown, hidden = whole.templates[3].hash, whole.templates[0].hash
    thumbnail = gallery.thumbnail(shown)
    assert thumbnail is not None
    assert Image.open(io.BytesIO(thumbnail)).format == "JPEG"
    assert gallery.thumbnail(hidden) is None
    for read in (gallery.thumbnail, gallery.embedding):
        with pytest.raises(GalleryError, match="no template has the hash nothing"):
            read("nothing")


def test_erased_templates_leave_no_byte(gallery: Gallery, tiny_run: TinyRun) -> None:
    """Nor their corrections; the name goes with the last template."""
    for thing in range(3):
        gallery.enrol_files(f"somebody {thing}", contents(tiny_run, thing, 3),
                            metadata={"note": f"note {thing}"}, keep_thumbnails=True)  # fmt: skip
    [stray] = contents(tiny_run, 4, 1)
    gallery.feedback([stray], is_not="somebody 1")
    gallery.feedback([contents(tiny_run, 5, 1)[0]], is_not="somebody 0")
    of_1 = [row.hash for row in gallery.templates("somebody 1").templates]
    one = gallery.templates("somebody 0").templates[0]

    def traces(hashes: list[str]) -> list[bytes]:
        vectors = traces_of_vectors(np.stack([gallery.embedding(name) for name in hashes]))
        return [*vectors, *traces_of_texts(hashes), *map(gallery.thumbnail, hashes)]  # type: ignore[list-item]

    kept = traces([gallery.templates("somebody 2").templates[0].hash])
    gone = [*traces([*of_1, one.hash]), b"somebody 1", b"note 1", b"1-0.png", stray[0].encode()]
    receipt = gallery.erase_templates([*of_1, one.hash])
    assert (receipt.num_identities, receipt.num_templates, receipt.num_thumbnails) == (1, 4, 4)
    assert (receipt.num_left, gallery.identities()) == (5, {"somebody 0": 2, "somebody 2": 3})
    assert "erased 1 identity: 4 templates, 4 thumbnails" in receipt.as_text()
    assert found_in(Path(gallery.place), gone) == {}
    assert len(found_in(Path(gallery.place), kept)) == len(set(kept))
    assert [one.identity for one in gallery.corrections().corrections] == ["somebody 0"]
    with pytest.raises(GalleryError, match=f"no template has the hash {one.hash}"):
        gallery.erase_templates([one.hash])


def test_a_deleted_gallery_is_gone_for_all(gallery: Gallery, tiny_run: TinyRun) -> None:
    gallery.enrol_files("anna", contents(tiny_run, 0))
    other = Gallery.open(gallery.place)
    gallery.delete()
    assert list(Path(gallery.place).parent.iterdir()) == []
    with pytest.raises(GalleryError):
        other.enrol_files("bert", contents(tiny_run, 1))
    with pytest.raises(GalleryError):
        other.identities()
    Gallery.create(gallery.place, tiny_run.model)
