"""Pages in a real browser, Chromium without a window, driven by Playwright; and what cannot be read on them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
          "disable-component-update", "disable-sync")  # fmt: skip

# Text beyond the sides of the page, or of a box that hides what is beyond it, and labels of one drawing that touch.
_FAULTS = """() => {
  const faults = [], wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) faults.push(`the page is ${wide} pixels wide, the screen ${innerWidth}`);
  const shown = (box) => box.width > 0 && box.height > 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, range = document.createRange();
    if (!node.data.trim() || node.parentElement.closest("script, style, title, .wide")) continue;
    range.selectNodeContents(node);
    for (const box of range.getClientRects())
      if (shown(box) && (box.left < -0.5 || box.right > innerWidth + 0.5)) faults.push(`cut: ${node.data.trim()}`);
  }
  const labels = [...document.querySelectorAll("svg text, .label i, .told, .rank, .iou, .presence, .query h3")]
    .map((e) => [e.textContent.trim(), e.getBoundingClientRect()]).filter(([, box]) => shown(box));
  labels.forEach(([text, a], i) => labels.slice(i + 1).forEach(([other, b]) => {
    const over = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const under = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (over > 0.5 && under > 2) faults.push(`collide: ${text} and ${other}`);
  }));
  return faults;
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window. Skips the test where Playwright or Chromium is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(_NAMES)} is on PATH")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=[f"--{option}" for option in _QUIET])
        try:
            yield started
        finally:
            started.close()


def opened(browser: Browser, page: Path, width: int = 1280, **options: Any) -> AbstractContextManager[Page]:
    """A page from its file, as `visited`."""
    return visited(browser, page.as_uri(), width, **options)


@contextmanager
def visited(browser: Browser, address: str, width: int = 1280, **options: Any) -> Iterator[Page]:
    """A page at its address, at a width in pixels, for a visitor who was never here before."""
    visitor = browser.new_context(viewport={"width": width, "height": 844}, **options)
    try:
        tab = visitor.new_page()
        tab.goto(address)
        yield tab
    finally:
        visitor.close()


def faults(tab: Page) -> list[str]:
    """What cannot be read as it stands: text that is cut, labels that collide, a page wider than the screen."""
    return tab.evaluate(_FAULTS)
