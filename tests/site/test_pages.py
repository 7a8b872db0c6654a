"""The built site as a reader sees it, in Chromium, as wide as a desk and as a phone.

Needs the site (`make docs`), Playwright and a Chromium of the system; `make test-site` runs it.
"""

import contextlib
import functools
import http.server
import shutil
import threading
from pathlib import Path

import pytest

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
PAGES = sorted(
    str(page.relative_to(SITE))
    for page in SITE.rglob("*.html")
    if not {"_modules", "_static"} & set(page.relative_to(SITE).parts)
    and page.name not in {"search.html", "genindex.html", "py-modindex.html"}
)
WIDTHS = {1400: 900, 390: 844}
LEGIBLE = 240
"""Pixels across, at least, for a picture on a page: three fifths of a phone."""

if BROWSER is None:
    pytest.skip(f"none of {', '.join(BROWSERS)} is installed", allow_module_level=True)
if not PAGES:
    pytest.skip("the site is not built: make docs", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

PROBLEMS = Path(__file__).with_name("problems.js").read_text()
LINKS = """() => [...document.querySelectorAll("a[href]")].map((a) => a.href)"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    """Of the site, served from this machine."""
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextlib.contextmanager
def opened(browser, url, width):
    """The page, all of it drawn, and what the console and the network complained about."""
    context = browser.new_context(viewport={"width": width, "height": WIDTHS[width]})
    context.set_default_timeout(120_000)  # of a machine that does much else
    page, complaints = context.new_page(), []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"not loaded: {request.url}"))
    # No network: the site has to bring everything that it shows.
    host = url.split("/")[2]
    page.route(
        lambda target: target.startswith("http") and target.split("/")[2] != host,
        lambda route: route.abort(),
    )
    page.goto(url, wait_until="load")
    page.wait_for_function(
        "!document.querySelector('article .math') || window.MathJax?.startup?.promise"
    )
    page.evaluate("async () => { await window.MathJax?.startup?.promise; }")
    page.evaluate("() => document.querySelectorAll('details').forEach((d) => (d.open = true))")
    page.wait_for_timeout(50)
    page.evaluate("() => dispatchEvent(new Event('resize'))")
    yield page, complaints
    context.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole(browser, address, name, width):
    with opened(browser, f"{address}/{name}", width) as (page, complaints):
        problems = page.evaluate(PROBLEMS, {"legible": LEGIBLE})
        assert not problems + complaints


def test_links_lead_somewhere(browser, address):
    """Within the site: to a page that is there, and a place on it that is there."""
    targets, anchors = {}, {}
    for name in PAGES:
        with opened(browser, f"{address}/{name}", 1400) as (page, _):
            targets[name] = page.evaluate(LINKS)
            anchors[name] = set(
                page.evaluate("() => [...document.querySelectorAll('[id]')].map((e) => e.id)")
            )
    broken = []
    for name, links in targets.items():
        for link in links:
            path, _, anchor = link.removeprefix(address).lstrip("/").partition("#")
            if not link.startswith(address):
                continue
            page = path or "index.html"
            if not (SITE / page).exists() or (
                anchor and page in anchors and anchor not in anchors[page]
            ):
                broken.append(f"{name}: {link.removeprefix(address)}")
    assert not sorted(set(broken))


def test_pictures_of_the_gallery_go_side_by_side(browser, address):
    with opened(browser, f"{address}/guides/gallery.html", 1400) as (page, _):
        for name in ("Fira", "GaLore"):
            page.click(f".gallery img[alt='{name}']")
        boxes = [image.bounding_box() for image in page.query_selector_all(".compare img")]
        assert len(boxes) == 2
        assert boxes[0]["y"] == boxes[1]["y"]
        assert min(box["width"] for box in boxes) >= LEGIBLE
        page.click(".gallery img[alt='Fira']")
        assert len(page.query_selector_all(".compare img")) == 1


def test_what_it_looks_for_it_finds(browser, address, tmp_path):
    """A page with each fault: an oversight in this file would let all pages pass."""
    page_with_faults = tmp_path / "faults.html"
    page_with_faults.write_text(
        "<article><div style='width: 100px'><table><tr><td style='min-width: 300px'>wide</table>"
        "</div><img src='none.png'><span class='math'>x</span><p>\\frac{1}{2}</p></article>"
        "<script>console.error('oh')</script>"
    )
    context = browser.new_context()
    page, complaints = context.new_page(), []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.goto(page_with_faults.as_uri())
    problems = "\\n".join(page.evaluate(PROBLEMS, {"legible": LEGIBLE}))
    context.close()
    for fault in ("table too wide", "picture missing", "formula not set", "raw TeX"):
        assert fault in problems
    assert "oh" in complaints
