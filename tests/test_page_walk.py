"""A stranger's walk through all pages in a real browser, on real pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import axe_violations, chromium, complaints_of, serving, show_as, wait_until
from PIL import Image

from twinlens.service.pages import view

pytestmark = pytest.mark.slow

SHARED = Path(__file__).resolve().parents[2] / "shared"
CSS = "css selector"
PHONE = 360


class Walk:
    """A browser in a service; each look at a page checks it.

    Attributes:
        browser: the browser.
        address: address of the service.
        pictures: where pictures of the pages are kept, if anywhere.
    """

    def __init__(self, browser: Any, address: str) -> None:
        self.browser, self.address = browser, address
        self.pictures = os.environ.get("TWINLENS_PAGE_PICTURES")

    def open(self, path: str) -> None:
        self.browser.get(self.address + path)

    def find(self, selector: str) -> Any:
        return self.browser.find_element(CSS, selector)

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def fill(self, selector: str, text: str | Path) -> None:
        field = self.find(selector)
        if field.get_attribute("type") != "file":
            field.clear()
        field.send_keys(str(text))

    def wait_for(self, selector: str, text: str = "", seconds: float = 60) -> Any:
        def shown(browser: Any) -> Any:
            for element in browser.find_elements(CSS, selector):
                if element.is_displayed() and text in element.text:
                    return element
            return None

        return wait_until(self.browser, shown, seconds)

    def look(self, name: str) -> None:
        """Check the page as it is: in light and dark, and on a phone."""
        for dark in (False, True):
            show_as(self.browser, dark=dark)
            assert axe_violations(self.browser) == [], name
            self._keep(f"{name}-dark" if dark else name)
        show_as(self.browser, width=PHONE)
        width = self.browser.execute_script("return document.documentElement.scrollWidth")
        assert width <= PHONE, name
        self._keep(f"{name}-phone")
        show_as(self.browser)
        assert complaints_of(self.browser, self.address) == [], name

    def _keep(self, name: str) -> None:
        if self.pictures is not None:
            script = "return [innerWidth, document.documentElement.scrollHeight]"
            width, height = self.browser.execute_script(script)
            show_as(self.browser, dark=name.endswith("-dark"), width=width, height=height)
            self.browser.save_screenshot(f"{self.pictures}/{name}.png")


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, downloads: Path) -> Iterator[Walk]:
    pytest.importorskip("torch", reason="the walk trains")
    data = tmp_path_factory.mktemp("service") / "data"
    data.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWINLENS_CACHE", str(data.parent / "cache"))
        if (SHARED / "weights").is_dir():
            patch.setenv("TWINLENS_WEIGHTS", str(SHARED / "weights"))
        with serving("--data", data) as address, chromium(downloads) as browser:
            yield Walk(browser, address)


def subset(source: Path, target: Path, names: list[str], count: int) -> Path:
    """A folder of class folders with a few pictures each."""
    for name in names:
        files = sorted((source / name).iterdir())[:count]
        (target / name).mkdir(parents=True)
        for file in files:
            shutil.copy(file, target / name)
    return target


def bring(walk: Walk, name: str, folder: Path, num_pictures: int) -> None:
    walk.open("/pictures")
    walk.fill("#name", name)
    walk.click("main form button.main")
    walk.wait_for("h1", name)
    walk.fill("input[webkitdirectory]", folder)
    walk.wait_for("[data-plan]")
    walk.click("[data-plan] button.main")
    walk.wait_for("[data-status]", str(num_pictures))


def train(walk: Walk, name: str) -> None:
    """Train for a minute, the shortest that the form can send."""
    walk.open(f"/train?set={name}")
    walk.look("train")
    choice = walk.find("[name=minutes]:checked")
    walk.browser.execute_script("arguments[0].value = 1", choice)
    walk.click("form button.main")
    walk.wait_for("#job")
    walk.look("training")
    walk.wait_for("#result", seconds=600)


def train_briefly(walk: Walk, name: str, seconds: int) -> None:
    """Train for less than the form can send."""
    id = walk.browser.execute_async_script(
        """
        const [body, done] = arguments;
        const headers = {"Content-Type": "application/json"};
        fetch("/v1/jobs/train", {method: "POST", headers, body: JSON.stringify(body)})
          .then((answer) => answer.json()).then((job) => done(job.id));
        """,
        {"pictures": name, "time_budget": seconds},
    )
    walk.open(f"/train/{id}")
    walk.wait_for("#result", seconds=600)


def create_gallery(walk: Walk, name: str) -> None:
    walk.open("/galleries")
    walk.fill("#name", name)
    walk.click("main form button.main")
    walk.wait_for("h1", name)


def enrol(walk: Walk, identity: str, files: list[Path]) -> None:
    walk.fill("#identity", identity)
    walk.fill("#enrol-pictures", "\n".join(map(str, files)))
    walk.click("form[data-batches] p > button.main")
    walk.wait_for("[data-results] .notice", f"{len(files)} new picture")


def erase(walk: Walk, gallery: str, identity: str) -> None:
    walk.open(f"/galleries/{gallery}/identity?identity={identity}")
    walk.look("identity")
    walk.click("form[action$='/erase'] [name=sure]")
    walk.click("form[action$='/erase'] button")
    walk.wait_for("h1", view.text("erase.done"))
    walk.look("receipt")


def set_limit(walk: Walk, gallery: str, percent: str) -> None:
    walk.open(f"/galleries/{gallery}")
    walk.find("#fpir").send_keys(percent)
    walk.click("form[action$='/calibrate'] button")
    walk.wait_for(".notice.good", "Distances up to")


def ask(walk: Walk, gallery: str, file: Path) -> str:
    walk.open(f"/galleries/{gallery}/ask")
    walk.fill("#picture", file)
    walk.click("#ask button.main")
    return str(walk.wait_for("#answer h2").text)


@pytest.mark.skipif(not (SHARED / "data/orl_faces").is_dir(), reason="needs the ORL faces")
def test_faces_from_a_folder_to_an_erasure(walk: Walk, tmp_path: Path, downloads: Path) -> None:
    orl = SHARED / "data" / "orl_faces"
    people = [f"s{number}" for number in range(1, 13)]
    folder = subset(orl, tmp_path / "people", people, 8)
    walk.open("/")
    walk.look("start")
    bring(walk, "people", folder, 96)
    walk.wait_for("#summary .key")
    walk.look("set")
    train(walk, "people")
    walk.look("trained")
    walk.open("/look?model=people&set=people")
    walk.look("look")

    create_gallery(walk, "door")
    walk.look("gallery-empty")
    enrolled = [f"s{number}" for number in range(20, 32)]
    for name in enrolled:
        enrol(walk, name, sorted((orl / name).iterdir())[:5])
    walk.look("gallery")
    set_limit(walk, "door", "10")
    num_right = 0
    for name in enrolled[:6]:
        answer = ask(walk, "door", sorted((orl / name).iterdir())[7])
        is_right = answer == view.text("ask.identified", identity=name)
        assert is_right or answer == view.text("ask.nobody")
        num_right += is_right
    assert num_right >= 3
    strangers = [sorted((orl / f"s{number}").iterdir())[0] for number in range(35, 39)]
    answers = [ask(walk, "door", file) for file in strangers]
    assert answers.count(view.text("ask.nobody")) >= 2

    erase(walk, "door", "s21")
    walk.click("a[download]")
    (receipt,) = wait_until(walk.browser, lambda _: list(downloads.glob("receipt-*.txt")))
    text = receipt.read_text()
    assert json.loads(text[text.index("{") :])["num_templates"] == 5
    assert ask(walk, "door", sorted((orl / "s21").iterdir())[0]) != view.text(
        "ask.identified", identity="s21"
    )


FRUIT = ["Banana", "Ginger", "Golden-Delicious", "Kaiser", "Lemon", "Mango", "Orange",
         "Passion-Fruit", "Pink-Lady", "Plum", "Red-Grapefruit", "Watermelon"]  # fmt: skip
VEGETABLES = ["Aubergine", "Cabbage", "Cucumber", "Green-Bell-Pepper", "Red-Bell-Pepper",
              "Vine-Tomato"]  # fmt: skip
STRANGER = "Galia-Melon"


@pytest.mark.skipif(not (SHARED / "data/groceries").is_dir(), reason="needs the groceries")
def test_groceries_from_a_folder_to_other_programs(
    walk: Walk, tmp_path: Path, downloads: Path
) -> None:
    groceries = SHARED / "data" / "groceries"
    bring(walk, "fruit", subset(groceries, tmp_path / "fruit", FRUIT, 8), 96)
    bring(walk, "shelf", subset(groceries, tmp_path / "shelf", VEGETABLES, 6), 36)
    walk.open("/pictures/fruit")
    walk.wait_for("#summary .key")
    walk.look("pictures")
    train_briefly(walk, "fruit", 20 if walk.pictures is None else 150)
    walk.look("fruit")

    create_gallery(walk, "shop")
    walk.find("#set").send_keys("shelf")
    walk.click("form[action$='/import'] button")
    walk.wait_for(".lead", "36 new")
    set_limit(walk, "shop", "10")
    walk.look("shop")
    pepper = sorted((groceries / "Red-Bell-Pepper").iterdir())[12]
    ask(walk, "shop", pepper)
    shown = walk.find("#answer ol li").text
    assert "Red-Bell-Pepper" in shown
    walk.look("pepper")
    run_snippets(walk, {"photo.jpg": pepper}, shown)
    walk.click("#ask button:not(.main)[formaction]")
    walk.wait_for("#answer h2", view.text("ask.hits", count=5))
    walk.look("nearest")

    melon = sorted((groceries / STRANGER).iterdir())[0]
    ask(walk, "shop", melon)
    walk.look("melon")
    walk.fill("#correct-identity", "Cabbage")
    walk.click("#corrected form button")
    walk.wait_for("#corrected .notice", view.text("correct.done_is", identity="Cabbage"))
    walk.click("#corrected form button")
    walk.wait_for(".notice", view.text("corrections.undone"))
    walk.look("corrections")

    walk.open("/compare")
    walk.fill("#a", pepper)
    walk.fill("#b", melon)
    walk.click("#compare")
    walk.wait_for("#answer h2")
    walk.look("compare")
    run_snippets(walk, {"one.jpg": pepper, "other.jpg": melon}, walk.find("#answer").text)
    erase(walk, "shop", "Cabbage")
    walk.open("/share")
    walk.look("share")
    walk.click("a[href='/v1/models/fruit/download']")
    wait_until(walk.browser, lambda _: list(downloads.glob("fruit*.zip")))
    walk.open("/galleries")
    walk.look("galleries")


def run_snippets(walk: Walk, files: dict[str, Path], shown: str) -> None:
    """Run what a page shows for programs: the distance is the same as on the page."""
    distance = re.search(r"distance (?:of )?([0-9.]*[0-9])", shown)
    assert distance is not None
    walk.click(".snippet summary")
    for code, program in zip(
        walk.browser.find_elements(CSS, ".snippet pre"), (["bash", "-c"], [sys.executable, "-c"]),
        strict=True,
    ):  # fmt: skip
        text = code.text
        for name, path in files.items():
            text = text.replace(name, str(path))
        done = subprocess.run([*program, text], capture_output=True, text=True, check=True)
        numbers = [float(number) for number in re.findall(r"distance\W+([0-9.]+)", done.stdout)]
        assert f"{numbers[0]:.4f}" == distance[1]


def test_asking_by_keyboard_paste_and_camera(walk: Walk, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    create_gallery(walk, "colours")
    for name in ("red", "green", "blue"):
        files = []
        for shade in range(3):
            files.append(tmp_path / f"{name} {shade}.png")
            Image.new("RGB", (64, 64), name).rotate(shade).save(files[-1])
        enrol(walk, name, files[:1])
    walk.open("/galleries/colours/ask")

    def focused() -> Any:
        return walk.browser.switch_to.active_element

    def press(key: str) -> None:
        ActionChains(walk.browser).send_keys(key).perform()

    press(Keys.TAB)
    assert focused().text == view.text("page.skip")
    press(Keys.ENTER)
    order: list[str] = []
    while view.text("ask.who") not in order:
        press(Keys.TAB)
        outline = "return getComputedStyle(document.activeElement).outlineStyle"
        assert walk.browser.execute_script(outline) == "solid"
        if focused().get_attribute("id") == "picture":
            focused().send_keys(str(tmp_path / "red 0.png"))
        order.append(focused().text)
        assert len(order) < 10, order
    press(Keys.ENTER)
    walk.wait_for("#answer h2")
    assert focused().tag_name == "h2"

    walk.open("/galleries/colours/ask")
    walk.browser.execute_async_script(
        """
        const done = arguments[0], canvas = document.createElement("canvas");
        canvas.toBlob((blob) => {
          const clipboardData = new DataTransfer();
          clipboardData.items.add(new File([blob], "pasted.png", { type: "image/png" }));
          document.dispatchEvent(new ClipboardEvent("paste", { clipboardData }));
          done();
        });
        """
    )
    walk.wait_for("[data-status]", view.text("pictures_field.pasted"))
    walk.click("#ask button.main")
    walk.wait_for("#answer h2")

    walk.open("/galleries/colours/ask")
    walk.click("[data-open]")
    wait_until(walk.browser, lambda _: walk.find("[data-snap]").is_enabled())
    walk.look("camera")
    walk.click("[data-snap]")
    walk.wait_for("[data-preview] img")
    walk.click("#ask button.main")
    walk.wait_for("#answer h2")
    assert complaints_of(walk.browser, walk.address) == []


def test_pages_work_without_scripts(walk: Walk, tmp_path: Path) -> None:
    file = tmp_path / "red.png"
    Image.new("RGB", (64, 64), "red").save(file)
    switch = "Emulation.setScriptExecutionDisabled"
    walk.browser.execute_cdp_cmd(switch, {"value": True})
    try:
        create_gallery(walk, "plain")
        walk.fill("#identity", "red")
        walk.fill("#enrol-pictures", file)
        walk.click("form[data-batches] p > button.main")
        walk.wait_for(".notice", "1 new")
        ask(walk, "plain", file)
        walk.fill("#nobody-picture", file)
        walk.click("#nobody-picture ~ p button, #corrected form:last-of-type button")
        walk.wait_for(".notice", view.text("correct.done_not", identities="red"))
    finally:
        walk.browser.execute_cdp_cmd(switch, {"value": False})
