"""Takes pictures of every page, on a phone and a desktop, light and dark; finds faults.

    make screenshots
    python docs/screenshots.py [--pages docs/_build/html] [--out FOLDER]

It needs the built pages (make docs), Chromium and its driver (Debian's packages
chromium and chromium-driver) and Selenium (pip install '.[screenshots]'). The pages are
served on this machine; Chromium gets no other network.

A fault is a page that is wider than the screen, an image that does not load, a formula
that is not drawn, an error in the console, or anything from another server. The program
prints each and then fails.
"""

import argparse
import base64
import contextlib
import functools
import http.server
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from selenium import webdriver

BUILD = Path(__file__).parent / "_build"
WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
HIGHEST = 20_000  # pixels; Chromium draws no higher picture

# Each returns a list of strings, one for each fault.
CHECKS = {
    "wider than the screen": """
        const width = arguments[0];
        if (document.documentElement.scrollWidth <= width) return [];
        const scrolls = (e) => e && (getComputedStyle(e).overflowX !== "visible" ||
                                     scrolls(e.parentElement));
        return [...document.querySelectorAll("article *")]
            .filter((e) => e.getBoundingClientRect().right > width + 1 &&
                           !scrolls(e.parentElement))
            .map((e) => e.outerHTML.slice(0, 80)).slice(0, 3)
            .concat([document.documentElement.scrollWidth + " pixels"]);
    """,
    "image not loaded": """
        return [...document.images].filter((i) => !(i.complete && i.naturalWidth))
            .map((i) => i.getAttribute("src"));
    """,
    "formula not drawn": r"""
        const drawn = (e) =>
            e.querySelector("math")?.getBoundingClientRect().width > 0 &&
            !e.querySelector("merror") && !e.textContent.includes("\\");
        return [...document.querySelectorAll(".math")].filter((e) => !drawn(e))
            .map((e) => e.textContent);
    """,
    "from another server": """
        return performance.getEntriesByType("resource").map((r) => r.name)
            .filter((name) => !name.startsWith("data:") &&
                              !name.startsWith(location.origin));
    """,
}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line on the terminal for each."""

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which the folder is served."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser without a window, with an empty profile of its own."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        sys.exit("error: chromium and chromedriver are not both on the PATH")
    binary, driver_binary = programs
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for argument in (
            "--headless",
            "--no-sandbox",  # it runs as root in containers
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
        service = webdriver.ChromeService(executable_path=driver_binary)
        driver = webdriver.Chrome(options, service)
        try:
            yield driver
        finally:
            driver.quit()


def show(driver: webdriver.Chrome, address: str, width: int, scheme: str) -> None:
    """Opens a page as on a screen of this width, with this colour scheme."""
    # Windows are never narrower than 500 pixels, so the screen is emulated.
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    driver.get(address)


def faults(driver: webdriver.Chrome, width: int) -> list[str]:
    """What is wrong with the page that is shown."""
    found = [
        f"{name}: {fault}"
        for name, script in CHECKS.items()
        for fault in driver.execute_script(script, width)
    ]
    lines = [line["message"] for line in driver.get_log("browser")]
    # Chromium asks for an icon, and the pages have none.
    return found + [f"console: {x}" for x in lines if "/favicon.ico " not in x]


def take_picture(driver: webdriver.Chrome, width: int, file: Path) -> None:
    """Writes the whole page, from its top to its bottom, as a PNG."""
    height = driver.execute_script("return document.documentElement.scrollHeight")
    area = {"x": 0, "y": 0, "width": width, "height": min(height, HIGHEST), "scale": 1}
    picture = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": area}
    )
    file.write_bytes(base64.b64decode(picture["data"]))


def main() -> int:
    """Returns 1 if any page has a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=Path, default=BUILD / "html")
    parser.add_argument("--out", type=Path, default=BUILD / "screenshots")
    arguments = parser.parse_args()
    pages = sorted(path.name for path in arguments.pages.glob("*.html"))
    if not pages:
        sys.exit(f"error: no pages in {arguments.pages}; make docs builds them")
    arguments.out.mkdir(parents=True, exist_ok=True)
    number = 0
    with served(arguments.pages) as address, chromium() as driver:
        for page in pages:
            for width in WIDTHS:
                for scheme in SCHEMES:
                    show(driver, f"{address}/{page}", width, scheme)
                    for fault in faults(driver, width):
                        number += 1
                        print(f"{page}, {width} pixels, {scheme}: {fault}")
                    name = f"{Path(page).stem}-{width}-{scheme}.png"
                    take_picture(driver, width, arguments.out / name)
    print(f"{len(pages)} pages, {number} faults; pictures in {arguments.out}")
    return int(number > 0)


if __name__ == "__main__":
    sys.exit(main())
