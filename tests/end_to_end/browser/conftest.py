"""The page in a real, headless Chromium, against the three programs of this folder's `house`.

Every page a test opens is watched: a request to another origin, an error in the console (a violated content policy is
one) or an uncaught exception fails the test that caused it.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

WITHIN_MS = 30_000
GROWS_WITHIN_S = 90  # the runner may still be importing when the first job comes
expect.set_options(timeout=WITHIN_MS)
_NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
_QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Ends with this folder's tests: Playwright's loop would be in the way of asynchronous ones."""
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        message = f"No Chromium ({', '.join(_NAMES)}) is on the PATH; Debian's package is `chromium`."
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_QUIET)
        yield browser
        browser.close()


class Watch:
    """What a page must not do: talk to another origin, or complain."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.foreign: list[str] = []
        self.complaints: list[str] = []
        self.expected: list[str] = []

    def page(self, page: Page) -> Page:
        page.set_default_timeout(WITHIN_MS)
        page.on("request", lambda request: self._request(request.url))
        page.on("websocket", lambda socket: self._request(socket.url.replace("ws", "http", 1)))
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("console", lambda line: self._console(line.type, line.text))
        return page

    def expect(self, words: str) -> None:
        """The test provokes complaints with these words, as a browser makes of every failed request."""
        self.expected.append(words)

    def check(self) -> None:
        unexpected = [line for line in self.complaints if not any(words in line for words in self.expected)]
        assert not self.foreign, f"requests left the origin: {self.foreign}"
        assert not unexpected, f"the console complains: {unexpected}"

    def _request(self, url: str) -> None:
        if not url.startswith((f"{self.origin}/", "data:", "blob:")):
            self.foreign.append(url)

    def _console(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(f"{kind}: {text}")


@pytest.fixture
def watch(house: Any) -> Iterator[Watch]:
    watching = Watch(house.settings.address)
    yield watching
    watching.check()


@pytest.fixture
def open_context(chromium: Browser, house: Any) -> Iterator[Callable[..., BrowserContext]]:
    """Opens a browser profile of its own: another device."""
    opened: list[BrowserContext] = []

    def new(**options: Any) -> BrowserContext:
        settings = {"base_url": house.settings.address, "viewport": {"width": 1280, "height": 900}, **options}
        opened.append(chromium.new_context(**settings))
        return opened[-1]

    yield new
    for context in opened:
        context.close()


@pytest.fixture
def page(open_context: Callable[..., BrowserContext], watch: Watch) -> Page:
    """A watched page in a fresh profile."""
    return watch.page(open_context().new_page())


class Plot:
    """The plot of a training's loss on a page."""

    def __init__(self, page: Page, house: Any) -> None:
        self._page = page
        self._house = house
        self._chart = page.locator('line-chart[label="Loss"]')

    def grows(self, beyond: int) -> int:
        """Wait until more points stand in it; how many those are."""
        deadline = time.monotonic() + GROWS_WITHIN_S
        while time.monotonic() < deadline:
            points = int(self._chart.get_attribute("data-points") or 0)
            if points > beyond:
                return points
            self._page.wait_for_timeout(100)
        raise AssertionError(f"the plot did not grow beyond {beyond} points")

    def has_every_point_of(self, job_id: str) -> None:
        """Wait until as many points stand in it as the service has values: none is missing, none doubled."""
        history = self._house.client.get(f"/api/experiments/{job_id}/metrics")["metrics"]
        values = sum(value is not None for name in ("train_loss", "eval_loss") for value in history[name])
        expect(self._chart).to_have_attribute("data-points", str(values))


@pytest.fixture
def plot_of(house: Any) -> Callable[[Page], Plot]:
    return lambda page: Plot(page, house)
