"""The report page in headless Chromium: on a phone and on a desk, by day and by night."""

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Cli
from PIL import Image
from selenium import webdriver
from test_report import attacked, run

from fedsim.app.report.write import report_on
from fedsim.app.rundir.run_dir import RunDir
from fedsim.app.sweeps.sweep_dir import SweepDir

pytestmark = pytest.mark.slow  # the run that the pages tell of takes a minute
LEGIBLE_PX = 9.0
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
VIEWS = [(width, scheme) for width in (360, 1400) for scheme in ("light", "dark")]
TEXT_PX = """
return [...document.querySelectorAll('figure svg')].flatMap(svg => {
  const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return [...svg.querySelectorAll('text')].map(
    t => parseFloat(getComputedStyle(t).fontSize) * scale
  );
});
"""
LINKS = """
return [...document.querySelectorAll("a")]
  .filter(a => !document.getElementById(a.hash.slice(1))).map(a => a.href);
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """A headless Chromium; where CI is set, its absence is a failure."""
    found = shutil.which("chromium")
    driver = shutil.which("chromedriver")
    if not found or not driver:
        if os.environ.get("CI"):
            pytest.fail(
                "chromium and chromedriver are missing: apt-get install chromium chromium-driver"
            )
        pytest.skip("chromium and chromedriver are not here")
    options = webdriver.ChromeOptions()
    options.binary_location = found
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def open_page(browser: webdriver.Chrome, page: Path, width: int, scheme: str) -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
    browser.get(page.resolve().as_uri())


def pixels(browser: webdriver.Chrome, box: dict[str, float]) -> np.ndarray:
    """A screenshot of a part of the page, [height, width, 3]."""
    wanted: dict[str, Any] = {"captureBeyondViewport": True, "clip": box | {"scale": 1}}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", wanted)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB"))


def boxes(browser: webdriver.Chrome) -> list[dict[str, float]]:
    return browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(s => { const r = "
        "s.getBoundingClientRect();return {x: r.x + scrollX, y: r.y + scrollY, width: r.width, "
        "height: r.height}; });"
    )


def check(browser: webdriver.Chrome, page: Path, width: int, scheme: str) -> None:
    """What must hold of every page in every view."""
    open_page(browser, page, width, scheme)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    sent = [
        entry["message"]
        for entry in browser.get_log("performance")
        if "requestWillBeSent" in entry["message"]
    ]
    assert [message for message in sent if '"url":"http' in message] == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script(LINKS) == []
    sizes = browser.execute_script(TEXT_PX)
    assert min(sizes) >= LEGIBLE_PX
    found = boxes(browser)
    assert (
        len(found)
        == browser.execute_script("return document.querySelectorAll('figure').length")
        > 0
    )
    for box in found:
        assert box["width"] > 250
        shot = pixels(browser, box)
        ink = (np.abs(shot.astype(int) - shot[0, 0]).max(-1) > 60).mean()
        assert ink > 0.005, "a figure is blank"
    paper = pixels(browser, {"x": 0, "y": 0, "width": 4, "height": 4}).mean()
    assert (paper > 128) == (scheme == "light")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page about a run with all there can be, one about a plain run, and one about both."""
    folder = tmp_path_factory.mktemp("pages")
    private = {"dp__unit": "device", "selection__cohort": 5, "dp__noise_multiplier": 2.0}
    continual = {"stream__mode": "continual", "stream__periods": 3, "stream__arrivals": "poisson"}
    full = attacked(run(folder / "full", train__centralised=True, **private, **continual))
    plain = run(folder / "plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        both = report_on([full.path, plain.path], 0.05).resolve()
    return {
        "full": report_on([full.path], 0.05),
        "plain": report_on([plain.path], 0.05),
        "both": both,
    }


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
@pytest.mark.parametrize("name", ["full", "plain", "both"])
def test_a_page_is_whole_and_legible(
    browser: webdriver.Chrome, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    check(browser, pages[name], width, scheme)


def test_a_link_leads_to_its_section(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    open_page(browser, pages["full"], 360, "light")
    browser.find_element("link text", "Canaries").click()
    assert browser.current_url.endswith("#c0-canaries")
    top = browser.execute_script(
        "return document.getElementById('c0-canaries').getBoundingClientRect().top"
    )
    assert abs(top) < 5


def test_a_figure_s_ink_is_the_page_s(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    inks = set()
    for scheme in ("light", "dark"):
        open_page(browser, pages["full"], 360, scheme)
        text = "getComputedStyle(document.querySelector('figure svg text')).fill"
        ink = browser.execute_script(f"return [{text}, getComputedStyle(document.body).color]")
        assert ink[0] == ink[1]
        inks.add(ink[0])
    assert len(inks) == 2


def test_a_sweep_s_page_is_whole_too(
    browser: webdriver.Chrome, fedsim: Cli, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(
        "data.devices = 20\ndata.examples = 200\nmodel.embedding = 8\ntrain.rounds = 2\n"
        "selection.cohort = 5\n"
        'dp.unit = "device"\n'
    )
    (tmp_path / "s.sweep.toml").write_text(
        'base = "tiny.toml"\nseeds = [1, 2]\n[grid]\nselection.rule = ["uniform", "activity"]\n'
        "dp.noise_multiplier = [1.0, 4.0]\n"
    )
    fedsim("sweep", "s.sweep.toml")
    folder = SweepDir(tmp_path / "runs/s")
    runs: list[RunDir] = [folder.run_of(row) for row in folder.plan["runs"]]
    for i, each in enumerate(runs):
        attacked(each, 0.1 + i / 20)
    page = tmp_path / fedsim("report", "runs/s").stdout.splitlines()[-1]
    for width, scheme in VIEWS:
        check(browser, page, width, scheme)
