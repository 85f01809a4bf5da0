"""Pages that look at a model, and the distances that they show."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browsing import axe_violations, chromium, complaints_of, serving, wait_until
from conftest import TinyRun

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from fastapi.testclient import TestClient

from twinlens.match.matcher import Matcher
from twinlens.service.app import create_app
from twinlens.service.job_folder import Job
from twinlens.service.jobs import Jobs
from twinlens.service.pair_views import PairView
from twinlens.service.picture_sets import PictureSets
from twinlens.service.settings import ServiceSettings
from twinlens.service.state import ServiceState

PART = {"HX-Request": "true"}
QUERY = {"model": "run", "set": "Things"}


@pytest.fixture(scope="module")
def client(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    data = tmp_path_factory.mktemp("look") / "data"
    settings = ServiceSettings(model=tiny_run.run, data=data)
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        fill(state_of(client).picture_sets, tiny_run)
        yield client


def fill(sets: PictureSets, tiny_run: TinyRun) -> None:
    for path in sorted(tiny_run.data.glob("*/*.png")):
        sets.add("Things", path.parent.name, path.name, path.read_bytes())


def state_of(client: TestClient) -> ServiceState:
    state: ServiceState = client.app.state.service  # type: ignore[attr-defined]
    return state


@pytest.fixture(scope="module")
def pairs(client: TestClient) -> PairView:
    return state_of(client).pair_views.get("run", "Things")


def test_only_pictures_that_were_kept_for_testing_are_compared(
    pairs: PairView, tiny_run: TinyRun
) -> None:
    assert pairs.split == "test"
    assert pairs.unseen is True
    assert 0 < len(pairs.keys) < 60
    matcher = Matcher.load(tiny_run.run)
    for row in (0, -1):
        a, b = (tiny_run.data / re.sub("~[0-9a-f]+", "", pairs.keys[rows[row]])
                for rows in (pairs.pairs.a, pairs.pairs.b))  # fmt: skip
        assert pairs.distance[row] == pytest.approx(matcher.distance(a, b), abs=1e-6)


def test_counts_at_a_threshold_are_those_of_a_plain_count(pairs: PairView) -> None:
    threshold = float(np.quantile(pairs.distance, 0.3))
    at = pairs.at(threshold)
    accepted = [distance <= threshold for distance in pairs.distance]
    wrong = sum(one and not same for one, same in zip(accepted, pairs.pairs.same, strict=True))
    missed = sum(same and not one for one, same in zip(accepted, pairs.pairs.same, strict=True))
    assert (at.false_accepts, at.false_rejects) == (wrong, missed)
    assert (at.far, at.frr) == (wrong / at.num_impostor, missed / at.num_genuine)
    assert all(one.distance <= threshold and one.match for one in at.accepted)
    assert all(one.distance > threshold and not one.match for one in at.rejected)
    border = sorted(np.abs(pairs.distance - threshold))[0]
    names = Counter(frozenset({one.identity_a, one.identity_b}) for one in at.rejected)
    assert max(names.values()) <= 2
    assert min(abs(at.accepted[0].distance - threshold),
               abs(at.rejected[0].distance - threshold)) == border  # fmt: skip


def test_worst_pairs_and_nearest_pictures(pairs: PairView) -> None:
    closest, farthest = pairs.worst("impostor")[0], pairs.worst("genuine")[0]
    assert closest.distance == pairs.distance[~pairs.pairs.same].min()
    assert farthest.distance == pairs.distance[pairs.pairs.same].max()
    assert not closest.same
    assert farthest.same
    emb_1D = pairs.embedding_of(pairs.keys[3])
    assert emb_1D is not None
    assert pairs.nearest(emb_1D, 2)[0].picture == pairs.keys[3]
    assert pairs.keys[3] not in [one.picture for one in pairs.nearest(emb_1D, 99, pairs.keys[3])]


def test_page_and_its_parts(client: TestClient, pairs: PairView, tiny_run: TinyRun) -> None:
    page = client.get("/look").text
    assert 'hx-get="/look/pairs?model=run&amp;set=Things"' in page
    part = client.get("/look/pairs", params=QUERY, headers=PART).text
    assert "<html" not in part
    assert 'type="range"' in part
    assert part.count('hx-post="/pictures/Things/move"') >= 4
    calibration = Matcher.load(tiny_run.run).calibration
    assert calibration is not None
    border = client.get("/look/border", params=QUERY | {"threshold": calibration.threshold}).text
    assert "<html" in border
    assert f"{calibration.threshold:.4f}" in border
    assert client.get("/look/border", params=QUERY | {"threshold": "nan"}).status_code == 422
    picture = (tiny_run.data / "thing 0" / "0.png").read_bytes()
    hits = client.post("/look/nearest", params=QUERY, files={"picture": ("a.png", picture)})
    assert hits.text.count("/thumbnail?") == min(12, len(pairs.keys))
    again = client.get("/look/nearest", params=QUERY | {"picture": pairs.keys[0]}, headers=PART)
    assert again.text.count("/thumbnail?") == 1 + min(12, len(pairs.keys) - 1)


def test_wrong_names_are_listed_until_they_are_mended(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = state_of(client).picture_sets
    key = sets.pictures("Things", "thing 1", limit=1)[0].picture
    found = {"finding": "wrong_label", "path": key, "identity": "thing 1", "suggestion": "thing 2",
             "score": 0.93}  # fmt: skip
    result = {"findings": [found], "judged": 60, "wrong_share": 0.02}
    id = "20261126T120000000000-abcdef"
    job = Job(id, "audit", "done", "2026-11-26T12:00:00+00:00", None, None,
              {"pictures": "Things", "model": "run", "seed": 0}, "local", None, result)  # fmt: skip
    monkeypatch.setattr(Jobs, "get", lambda self, id: job)
    page = client.get(f"/look/audit/{id}").text
    assert "named thing 1, looks like thing 2" in page
    assert 'value="thing 2"' in page
    move = {"picture": key, "identity": "thing 2", "back": f"/look/audit/{id}"}
    answer = client.post("/pictures/Things/move", data=move, follow_redirects=False)
    assert answer.headers["location"] == f"/look/audit/{id}"
    assert "named thing 1" not in client.get(f"/look/audit/{id}").text
    assert sets.identities("Things")["thing 2"] == 7


def test_model_is_calibrated_for_another_rate(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = "20261126T120000000000-abcdef"
    values = {"threshold": 0.25, "target_far": 0.05, "low": 0.2, "high": None}
    job = Job(id, "calibrate", "running", "2026-11-26T12:00:00+00:00", None, None,
              {"pictures": "Things", "model": "run", "far": 0.05}, "local")  # fmt: skip
    started = []

    def start(self: Jobs, kind: str, arguments: dict[str, object], by: str) -> Job:
        started.append((kind, arguments))
        return job

    monkeypatch.setattr(Jobs, "start", start)
    monkeypatch.setattr(Jobs, "get", lambda self, id: job)
    page = client.post("/look/calibrate", params=QUERY, data={"far": "0.05"})
    assert page.url.path == f"/look/calibrate/{id}"
    assert started == [("calibrate", {"pictures": "Things", "model": "run", "far": 0.05})]
    assert f'data-events="/v1/jobs/{id}/events"' in page.text
    done = replace(job, state="done", result={"model": "run", "calibration": values})
    monkeypatch.setattr(Jobs, "get", lambda self, id: done)
    assert "at most 5 in 100 pairs" in client.get(f"/look/calibrate/{id}").text


@pytest.mark.slow
def test_slider_and_mending_in_a_browser(tiny_run: TinyRun, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    data = tmp_path / "data"
    fill(PictureSets(ServiceSettings(data=data)), tiny_run)
    with (
        serving("--data", data, "--model", tiny_run.run) as address,
        chromium() as browser,
    ):
        by = lambda selector: browser.find_element("css selector", selector)  # noqa: E731
        has = lambda selector: browser.find_elements("css selector", selector)  # noqa: E731
        browser.get(f"{address}/look")
        wait_until(browser, lambda _: has("#threshold"))
        before = by("#counts").text
        by("#threshold").send_keys(Keys.HOME)
        wait_until(browser, lambda _: by("#counts").text != before)
        assert by("#counts").text.startswith("It accepts 0 of")
        # The slider keeps the focus, and a screen reader hears the counts.
        assert browser.switch_to.active_element.get_attribute("id") == "threshold"
        said = browser.execute_script("return document.querySelector('[data-said]').textContent")
        assert said == by("#counts").text
        by(".pairs:not(.small-pairs) summary").click()
        suggested = by(".pairs:not(.small-pairs) input[name=identity]")
        suggested.clear()
        suggested.send_keys("thing 9")
        assert axe_violations(browser) == []
        suggested.send_keys(Keys.ENTER)
        wait_until(browser, lambda _: has(".done"))
        assert browser.switch_to.active_element.text == "Moved to thing 9."
        assert complaints_of(browser, address) == []
