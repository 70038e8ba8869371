"""A report in a real browser: it draws, is read by ear, and asks nobody for anything."""

import contextlib
import json

import pytest
from browser import browser
from commands import command
from reported_runs import EVIL, PIXEL, config, environment, metrics, result, write, write_events

from tfgpu.report import __main__ as report

pytestmark = pytest.mark.slow

CONTRAST = """
function channel(c) { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; }
function luminance(text) {
  const [r, g, b] = text.match(/[\\d.]+/g).map(Number);
  return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
}
const paper = luminance(getComputedStyle(document.body).backgroundColor);
const least = {};
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  const drawn = element.matches('polyline, circle');
  if ((!own && !drawn) || element.matches('title, desc')) continue;
  const style = getComputedStyle(element);
  const svg = element.namespaceURI.endsWith('svg');
  const ink = drawn && element.matches('polyline') ? style.stroke : svg ? style.fill : style.color;
  if (!ink.startsWith('rgb')) continue;
  const l = luminance(ink);
  const ratio = (Math.max(l, paper) + 0.05) / (Math.min(l, paper) + 0.05);
  const kind = drawn ? 'drawn' : 'text';
  least[kind] = Math.min(least[kind] ?? 99, ratio);
}
return least;
"""


@contextlib.contextmanager
def in_scheme(*, dark=False):
    """A browser that logs what a page says and asks for, and prefers a light or a dark scheme."""
    with browser(logging={"browser": "ALL", "performance": "ALL"}) as opened:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield opened


@pytest.fixture
def pages(tmp_path):
    """Reports of one run with names that attack, and of three runs."""
    runs = []
    for seed, best in enumerate((0.9, 0.92, 0.94)):
        path = write(
            tmp_path / "runs" / f"seed{seed}",
            config=config(seed=seed, model=EVIL),
            environment=environment(EVIL, license=EVIL),
            metrics=metrics(best=best),
            result=result(best=best),
        )
        write_events(
            path / "tensorboard" / "validation", pictures=[("confusion_matrix", PIXEL, EVIL)]
        )
        runs.append(path)
    assert command(report.main, f"--run_dir={runs[0]}") == 0
    assert command(report.main, *(f"--run_dir={path}" for path in runs)) == 0
    return [runs[0] / "report.html", tmp_path / "runs" / "comparison.html"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_shown_and_can_be_read(pages, dark):
    with in_scheme(dark=dark) as driver:
        for page in pages:
            driver.get("about:blank")
            driver.get_log("performance")
            driver.get(page.as_uri())
            # Nothing was run, refused or asked for.
            assert driver.get_log("browser") == []
            asked = [
                json.loads(entry["message"])["message"] for entry in driver.get_log("performance")
            ]
            urls = {
                each["params"]["request"]["url"]
                for each in asked
                if each["method"] == "Network.requestWillBeSent"
            }
            urls = {url for url in urls if not url.startswith("data:image/png;base64,")}
            assert urls == {page.as_uri()}
            # Drawn, within the window, with enough contrast (WCAG 2.2: 4.5 for text, 3 for lines).
            sizes = driver.execute_script(
                "return [...document.querySelectorAll('figure > svg, img')].map("
                "e => [e.getBoundingClientRect().width, e.naturalWidth ?? 1])"
            )
            assert sizes and all(width > 0 and natural > 0 for width, natural in sizes)
            assert driver.execute_script(
                "return document.documentElement.scrollWidth <= innerWidth"
            )
            least = driver.execute_script(CONTRAST)
            assert least["text"] >= 4.5 and least["drawn"] >= 3, least


def test_the_accessibility_tree_has_names_for_everything(pages):
    with in_scheme() as driver:
        driver.execute_cdp_cmd("Accessibility.enable", {})
        for page in pages:
            driver.get(page.as_uri())
            nodes = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
            found = {}
            for node in nodes:
                if not node["ignored"]:
                    name = node.get("name", {}).get("value", "")
                    found.setdefault(node["role"]["value"], []).append(name)
            for role in ("banner", "navigation", "main", "contentinfo"):
                assert len(found[role]) == 1, role
            # An svg with role=img, or a picture.
            drawn = found.get("image", []) + found.get("img", [])
            assert len(drawn) >= 3 and all(drawn)
            assert any("lowest" in name for name in drawn)
            assert len(found["table"]) > 3 and all(found["table"])
            assert found["columnheader"] and found["rowheader"]
            assert all(found["link"]) and all(found["region"])


def test_it_fits_a_telephone(pages):
    with in_scheme() as driver:
        narrow = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
        for page in pages:
            driver.get(page.as_uri())
            assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
