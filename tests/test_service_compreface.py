"""CompreFace's routes: the field names of its answers, and the verdicts of the others."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from conftest import TinyRun
from fastapi.testclient import TestClient
from service_answers import answered

from twinlens.gallery.gallery import Gallery
from twinlens.gallery.sources import digest
from twinlens.match.matcher import Matcher
from twinlens.service import compreface_schemas as schemas
from twinlens.service.app import create_app
from twinlens.service.routes.compreface_answers import similarity
from twinlens.service.settings import ServiceSettings

BASE = "/api/v1/recognition"


@pytest.fixture
def client(tiny_run: TinyRun, tmp_path: Path) -> Iterator[TestClient]:
    Gallery.create(tmp_path / "people", tiny_run.model)
    settings = ServiceSettings(model=tiny_run.run, galleries=(str(tmp_path / "people"),))
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        yield client


def picture(run: TinyRun, thing: int, number: int = 0) -> bytes:
    return (run.data / f"thing {thing}" / f"{number}.png").read_bytes()


def test_half_is_the_threshold() -> None:
    assert similarity(0.0, 0.4) == 1
    assert similarity(0.4, 0.4) == 0.5
    assert similarity(1.2, 0.4) == pytest.approx(0.25)
    assert similarity(float("inf"), 0.4) == 0
    for threshold in np.random.default_rng(0).uniform(1e-6, 2, 300):
        assert similarity(float(np.nextafter(threshold, 9)), threshold) < 0.5
        assert similarity(float(np.nextafter(threshold, 0)), threshold) >= 0.5
    assert (similarity(0.0, 0.0), similarity(0.1, 0.0), similarity(0.1, -1.0)) == (1, 0, 0)


def test_subjects_and_their_pictures(client: TestClient, tiny_run: TinyRun) -> None:
    added = client.post(f"{BASE}/subjects", json={"subject": "a/b"})
    assert answered(added, schemas.Subject, 201) == {"subject": "a/b"}
    assert answered(client.get(f"{BASE}/subjects/"), schemas.Subjects) == {"subjects": []}
    for thing, name in enumerate(("a/b", "a/b", "c")):
        files = {"file": ("x.png", picture(tiny_run, thing))}
        query = {"subject": name, "det_prob_threshold": "0.8", "keep_thumbnails": thing == 2}
        face = answered(client.post(f"{BASE}/faces", params=query, files=files), schemas.Face, 201)
        assert UUID(face["image_id"]).hex == digest(picture(tiny_run, thing))
    refused = client.post(f"{BASE}/faces?subject=d", files=files)
    assert "'c'" in answered(refused, None, 409)["error"]["message"]
    again = {"file": base64.b64encode(picture(tiny_run, 2)).decode()}
    assert answered(client.post(f"{BASE}/faces?subject=c", json=again), None, 201) == face
    page = answered(client.get(f"{BASE}/faces?page=1&size=2"), schemas.FacePage)
    assert page == {"faces": [face], "page_number": 1, "page_size": 2, "total_pages": 2,
                    "total_elements": 3}  # fmt: skip
    small = client.get(f"{BASE}/faces/{face['image_id']}/img")
    assert small.headers["content-type"] == "image/jpeg"

    assert answered(client.put(f"{BASE}/subjects/c", json={"subject": "e"}), schemas.Updated) == {
        "updated": True
    }
    assert answered(client.get(f"{BASE}/subjects"))["subjects"] == ["a/b", "e"]
    assert answered(client.delete(f"{BASE}/faces/{face['image_id']}"), schemas.Face) == {
        **face, "subject": "e",
    }  # fmt: skip
    for gone in (face["image_id"], "no uuid"):
        assert answered(client.delete(f"{BASE}/faces/{gone}"), None, 404)
    first = answered(client.get(f"{BASE}/faces?subject=a/b"))["faces"][0]
    assert answered(client.post(f"{BASE}/faces/delete", json=[first["image_id"]])) == [first]
    assert answered(client.delete(f"{BASE}/subjects/a/b"), schemas.Subject) == {"subject": "a/b"}
    assert answered(client.delete(f"{BASE}/subjects/a/b"), None, 404)
    for thing, name in enumerate(("a", "a", "c")):
        files = {"file": ("x.png", picture(tiny_run, thing))}
        answered(client.post(f"{BASE}/faces?subject={name}", files=files), None, 201)
    assert answered(client.delete(f"{BASE}/faces?subject=a"), schemas.Deleted) == {"deleted": 2}
    assert answered(client.delete(f"{BASE}/subjects"), schemas.Deleted) == {"deleted": 1}
    assert answered(client.delete(f"{BASE}/faces"), schemas.Deleted) == {"deleted": 0}


def test_recognition_and_verification(client: TestClient, tiny_run: TinyRun) -> None:
    ids = []
    for thing in range(3):
        url = f"{BASE}/faces?subject=thing {thing}"
        face = client.post(url, files={"file": picture(tiny_run, thing)})
        ids.append(answered(face, None, 201)["image_id"])
    matcher = Matcher.load(tiny_run.model)
    probe = picture(tiny_run, 1, 2)
    query = {"limit": 0, "prediction_count": 2, "face_plugins": "calculator", "status": "true"}
    answer = answered(
        client.post(f"{BASE}/recognize", params=query, files={"file": probe}), schemas.Recognized
    )
    [result] = answer["result"]
    assert answer["plugins_versions"] == {"calculator": matcher.fingerprint}
    assert result["box"] == {"probability": 1.0, "x_min": 0, "y_min": 0, "x_max": 16, "y_max": 16}
    np.testing.assert_allclose(result["embedding"], matcher.embed([probe])[0], rtol=1e-5)
    identified = answered(client.post("/v1/identify?k=2", files={"picture": probe}))["answers"][0]
    assert [row["subject"] for row in result["subjects"]] == [
        row["identity"] for row in identified["candidates"]
    ]
    for row, candidate in zip(result["subjects"], identified["candidates"], strict=True):
        assert (row["similarity"] >= 0.5) == (candidate["distance"] <= identified["threshold"])

    for thing, image_id in enumerate(ids):
        url = f"{BASE}/faces/{image_id}/verify"
        one = answered(client.post(url, files={"file": probe}), schemas.VerifiedFaces)
        pair = {"source_image": picture(tiny_run, thing), "target_image": probe}
        two = answered(client.post("/api/v1/verification/verify", files=pair), schemas.Verified)
        expected = matcher.verify(pair["source_image"], probe)
        [match] = two["result"][0]["face_matches"]
        assert match["similarity"] == similarity(expected.distance, expected.threshold)
        assert (match["similarity"] >= 0.5) == expected.match
        assert one["result"][0]["similarity"] == pytest.approx(match["similarity"], rel=1e-4)
    refused = client.post(f"{BASE}/recognize?face_plugins=age", files={"file": probe})
    assert "'age' is not supported" in answered(refused, None, 422)["error"]["message"]
    refused = client.post(f"{BASE}/recognize", files={"file": ("x.png", b"no picture")})
    assert "x.png" in answered(refused, None, 422)["error"]["message"]
    answered(client.post(f"{BASE}/faces/{UUID(int=0)}/verify", files={"file": probe}), None, 404)
