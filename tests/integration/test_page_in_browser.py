"""The HTML pages in a real browser: layout on desktop and phone, light and dark, and no network requests."""

from __future__ import annotations

import html
import json
import re
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.analysis.verdict import compare
from harness.report.page import render_page
from tests.comparisons import CASES
from tests.many_pages import PAGES, many_page
from tests.records import A100, ASCEND, make_records, make_side
from tests.test_page import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DESKTOP, PHONE = (1280, 900), (390, 844)
DARK = "--blink-settings=preferredColorScheme=0"
LIGHT = "--blink-settings=preferredColorScheme=1"
# Requests that bypass the proxy fail; the proxy itself stays reachable.
DEAD_END = "--host-resolver-rules=MAP * 127.0.0.1:9, EXCLUDE 127.0.0.1"


class Browser:
    """Headless Chromium, whose requests go to a proxy that logs them and answers none."""

    def __init__(self, program: str, profile: Path, proxy: int) -> None:
        self._command = [
            program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--disable-background-networking", "--disable-component-update", "--no-first-run",
            f"--user-data-dir={profile}", f"--proxy-server=http://127.0.0.1:{proxy}",
        ]  # fmt: skip

    def run(self, *arguments: str) -> str:
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    def screenshot(self, source: Path, size: tuple[int, int], *flags: str) -> Any:
        """Return a screenshot: [height, width, RGBA], from 0 to 1."""
        from matplotlib.image import imread

        target = source.with_suffix(".png")
        target.unlink(missing_ok=True)
        self.run(*flags, f"--screenshot={target}", f"--window-size={size[0]},{size[1]}", source.as_uri())
        assert target.stat().st_size > 0
        return np.asarray(imread(target))

    def measure(self, source: Path, width: int) -> dict[str, Any]:
        """Return the width of the page in a window of `width`, and the elements that overflow it.

        The page is in a frame, since a window cannot be that narrow. The script is the parent's: the page allows none.
        """
        script = """
          addEventListener("load", () => {
            const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
            const outside = [...page.querySelectorAll("body *")]
              .filter(e => !e.closest(".scroll *") && e.getBoundingClientRect().right > root.clientWidth + 0.5);
            const scrolling = [...page.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth);
            document.title = JSON.stringify({document: root.scrollWidth, window: root.clientWidth,
              outside: outside.map(e => e.tagName + "." + e.className), scrolling: scrolling.length});
          });"""
        frame = f'<iframe width="{width}" height="800" style="border:0" srcdoc="{html.escape(source.read_text())}">'
        wrapper = source.with_suffix(".measure.html")
        wrapper.write_text(f"<!doctype html><title></title><script>{script}</script>{frame}</iframe>")
        dumped = self.run("--dump-dom", wrapper.as_uri())
        return json.loads(html.unescape(re.findall(r"<title>(.*?)</title>", dumped)[0]))


@pytest.fixture
def requests() -> Iterator[tuple[int, list[str]]]:
    """Yield a proxy's port and the first lines of its requests."""
    lines: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            lines.append(self.rfile.readline(1000).decode(errors="replace"))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], lines
        server.shutdown()


@pytest.fixture
def browser(tmp_path: Path, requests: tuple[int, list[str]]) -> Browser:
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is on PATH")
    return Browser(program, tmp_path / "profile", requests[0])


def saved(name: str, folder: Path) -> Path:
    path = folder / f"{name}.html"
    path.write_text(many_page(name) if name in PAGES else page(name), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "size", "scheme"),
    [
        *(("slower", size, scheme) for size in (DESKTOP, PHONE) for scheme in (LIGHT, DARK)),
        *((name, size, scheme) for name in PAGES for size, scheme in ((DESKTOP, LIGHT), (PHONE, DARK))),
    ],
)
def test_shows(name: str, size: tuple[int, int], scheme: str, browser: Browser, tmp_path: Path) -> None:
    screen = browser.screenshot(saved(name, tmp_path), size, scheme)
    assert screen.shape[:2] == (size[1], size[0])
    paper = screen[2, 2, :3].mean()
    assert paper > 0.95 if scheme == LIGHT else paper < 0.15
    # Text, tables and badges; a blank page or an error page has almost none.
    different = np.abs(screen[..., :3] - screen[2, 2, :3]).max(axis=-1) > 0.2
    assert 0.01 < different.mean() < 0.5
    assert different[: size[1] // 4].any()
    colors = {tuple(color) for color in np.round(screen[::3, ::3, :3] * 15).reshape(-1, 3).tolist()}
    assert len(colors) > 15


@pytest.mark.parametrize("name", [*CASES, *PAGES])
def test_nothing_overflows_on_a_phone(name: str, browser: Browser, tmp_path: Path) -> None:
    found = browser.measure(saved(name, tmp_path), PHONE[0])
    assert found["window"] == PHONE[0]
    assert found["document"] <= found["window"]
    assert found["outside"] == []
    # A history has no table.
    assert found["scrolling"] >= (name != "history"), "wide tables scroll inside their box"


def test_a_very_long_word_does_not_overflow(browser: Browser, tmp_path: Path) -> None:
    label = "x" * 150
    sides = [make_side(name, make_records(2, on=on)) for name, on in ((label, A100), ("b", ASCEND))]
    path = tmp_path / "long.html"
    path.write_text(render_page(compare(sides), [label]), encoding="utf-8")
    found = browser.measure(path, PHONE[0])
    assert found["document"] <= found["window"]
    assert found["outside"] == []


def test_measure_finds_what_overflows(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "wide.html"
    path.write_text("<!doctype html><body style='margin:0'><p style='width:500px'>wide</p>")
    assert browser.measure(path, PHONE[0]) == {"document": 500, "window": 390, "outside": ["P."], "scrolling": 0}


@pytest.mark.parametrize("name", ["slower", "hostile", *PAGES])
def test_makes_no_requests(name: str, browser: Browser, requests: tuple[int, list[str]], tmp_path: Path) -> None:
    """Even without the Content-Security-Policy."""
    path = saved(name, tmp_path)
    path.write_text(without_policy(path.read_text()), encoding="utf-8")
    browser.screenshot(path, DESKTOP, DEAD_END)
    assert foreign(requests[1]) == []
    # The proxy does log the request of a page that makes one.
    path.write_text(path.read_text().replace("</body>", "<img src='http://evil.example/a.png'></body>"))
    browser.screenshot(path, DESKTOP, DEAD_END)
    assert foreign(requests[1]) == ["GET http://evil.example/a.png HTTP/1.1"]


def without_policy(text: str) -> str:
    changed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert changed != text
    return changed


def foreign(lines: list[str]) -> list[str]:
    """Return the requests without the browser's own (updates, time, accounts, connections that it never uses)."""
    own = r"\s*$|\w+ (https?://)?[\w.-]+\.(google|googleapis|gvt1)\.com\b"
    return sorted({line.strip() for line in lines if not re.match(own, line)})


@pytest.mark.parametrize("name", ["hostile", *PAGES])
def test_hostile_records_run_nothing(name: str, browser: Browser, tmp_path: Path) -> None:
    """Even without the Content-Security-Policy."""
    path = saved(name, tmp_path)
    path.write_text(
        without_policy(path.read_text()).replace(
            "<head>", "<head><script>alert = () => { document.title = 'ran' }</script>"
        )
    )
    assert "<title>ran" not in browser.run("--dump-dom", path.as_uri())
    path.write_text(path.read_text().replace("</body>", "<script>alert(1)</script></body>"))
    assert "<title>ran" in browser.run("--dump-dom", path.as_uri())
