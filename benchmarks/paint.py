"""From a child's event to a painted curve, and what drawing costs: in a real, headless Chromium.

Run it with `python -m benchmarks paint`; it takes about a minute. The way is the real one: Redis, SQLite, socket, page.
What is compared: the moment the event arrives in the browser at all, and the page's own plain plot without uPlot.
"""

import asyncio
import gzip
import shutil
import statistics
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, Route, async_playwright

from benchmarks import programs
from benchmarks.live import start_jobs
from benchmarks.programs import Served
from benchmarks.report import Report, at_most
from benchmarks.source import Source
from jobs import redis_server
from jobs.settings import Settings

CLAIM = "What a training says is painted before one could look away."

_EVENTS, _RATE = 400, 20
_RUNS, _POINTS, _REDRAWS = 50, 10_000, 15
_STATIC = Path(__file__).parents[1] / "static"
_PLOTTER = tuple(_STATIC.glob("vendor/uplot/*.js"))
_LIBRARY = "**/vendor/uplot/*"

_WATCH = """path => {
  window.painted = []; window.arrived = [];
  const now = () => performance.timeOrigin + performance.now();
  const socket = new WebSocket(new URL(path, location.origin.replace("http", "ws")));
  socket.onmessage = ({ data }) => {
    for (const { event } of JSON.parse(data).events ?? []) {
      if (event.type === "metrics.logged") window.arrived.push([event.step, Date.parse(event.at), now()]);
    }
  };
  const chart = document.querySelector("line-chart[label=Loss]");
  chart.addEventListener("painted", ({ detail }) => window.painted.push([detail.x, now()]));
}"""
_REDRAW = """async ([runs, points, redraws]) => {
  await import("/ui/elements/line-chart.js");
  const chart = document.createElement("line-chart");
  chart.setAttribute("label", "Redraw");
  document.querySelector("main").prepend(chart);
  const x = Array.from({ length: points }, (_, step) => step);
  const loss = (step, phase) => Math.exp(-step / 3000) + Math.sin(step * phase) / 9;
  const lines = shift => Array.from({ length: runs }, (_, run) => (
    { key: `${run}`, label: `run ${run}`, tone: run % 8, x, y: x.map(step => loss(step, run + 1 + shift)) }
  ));
  const versions = [lines(0), lines(1)]; // made before, so that only the drawing is timed
  const times = [];
  for (let turn = 0; turn <= redraws; turn++) {
    times.push(await new Promise(resolve => {
      let begin;
      requestAnimationFrame(() => (begin = performance.now()));
      chart.addEventListener("painted", () => resolve(performance.now() - begin), { once: true });
      chart.show({ x: "step", lines: versions[turn % 2] });
    }));
  }
  return times.slice(1); // the first one makes the plot
}"""
_FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def run() -> Report:
    late_ms, arrived_ms, redraw_ms, plain_ms, first_ms = asyncio.run(_measure())
    script, first = _weight_kb(_STATIC.rglob("*.js")), _weight_kb(_loaded_by("jobs"))
    heaviest = max(_weight_kb([*_loaded_by(view.stem), *_PLOTTER]) for view in (_STATIC / "views").glob("*.js"))
    rows = (
        ("event → arrived in the browser", *_spread(arrived_ms), ""),
        ("event → painted", *_spread(late_ms), f"{statistics.median(late_ms) / statistics.median(arrived_ms):.2g} ×"),
        (f"redraw {_RUNS} × {_POINTS:,} points, plain SVG", *_spread(plain_ms), ""),
        (
            f"redraw {_RUNS} × {_POINTS:,} points, uPlot",
            *_spread(redraw_ms),
            f"{statistics.median(redraw_ms) / statistics.median(plain_ms):.2g} ×",
        ),
        ("first paint of the list of jobs", *_spread(first_ms), ""),
        ("scripts, all pages, gzip", f"{script:.0f} kB", "", ""),
        ("scripts of the heaviest page, uPlot included, gzip", f"{heaviest:.0f} kB", "", ""),
        ("scripts of the list of jobs, gzip", f"{first:.0f} kB", "", ""),
    )
    return Report(
        claim=CLAIM,
        setup=f"A source logs {_EVENTS} steps of one training at {_RATE} a second; that training's page is open in "
        "headless Chromium without a GPU, on the same machine. The time runs from the event's own `at`. Scripts are "
        "counted as they are written, comments included, each compressed by itself; uPlot is 22 kB of them.",
        columns=("", "p50", "p95", "ratio"),
        rows=rows,
        aims=[
            at_most("event → painted, p95", _p95(late_ms), 250, "ms"),
            at_most("redraw, median", statistics.median(redraw_ms), 33, "ms"),
            at_most("first paint, median", statistics.median(first_ms), 500, "ms"),
            at_most("scripts, gzip", script, 60, "kB"),
        ],
    )


async def _measure() -> tuple[list[float], ...]:
    chromium = shutil.which("chromium") or shutil.which("chromium-headless-shell")
    if chromium is None:
        raise SystemExit("No Chromium is on the PATH; Debian's package is `chromium`.")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        with programs.service() as served:
            late_ms, arrived_ms = await _watch(browser, served)
            redraw_ms = await _redraw(browser, served, plain=False)
            plain_ms = await _redraw(browser, served, plain=True)
            first_ms = [await _first_paint(browser, served) for _ in range(7)]
        await browser.close()
    return late_ms, arrived_ms, redraw_ms, plain_ms, first_ms


async def _watch(browser: Browser, served: Served) -> tuple[list[float], list[float]]:
    """For each step, milliseconds until it was painted and until it had arrived."""
    url = redis_server.address(Settings(data_root=str(served.root)))
    async with Source(url, jobs=1) as source:
        (job_id,) = await asyncio.to_thread(start_jobs, served, 1)
        await source.all_started()
        page = await browser.new_page()
        await page.goto(f"{served.address}/ui/#/job/{job_id}")
        await page.wait_for_selector("line-chart[label=Loss] .plot")
        await page.evaluate(_WATCH, f"/api/train/{job_id}/ws?after=now")
        await asyncio.sleep(1)
        await source.log_metrics(source.bus.publish, _EVENTS, _RATE)
        await asyncio.sleep(2)
        arrived = await page.evaluate("window.arrived")
        painted = await page.evaluate("window.painted")
        await page.close()
    if len(arrived) != _EVENTS:
        raise RuntimeError(f"{len(arrived)} of {_EVENTS} events arrived in the browser")
    late = [
        next(at for newest, at in painted if newest is not None and newest >= step) - said for step, said, _ in arrived
    ]
    return late, [at - said for _, said, at in arrived]


async def _redraw(browser: Browser, served: Served, *, plain: bool) -> list[float]:
    page = await browser.new_page(viewport={"width": 1280, "height": 900})
    if plain:
        await page.route(_LIBRARY, _refuse)
    await page.goto(f"{served.address}/ui/#/jobs")
    times: list[float] = await page.evaluate(_REDRAW, [_RUNS, _POINTS, _REDRAWS])
    await page.close()
    return times


async def _refuse(route: Route) -> None:
    await route.fulfill(status=404)


async def _first_paint(browser: Browser, served: Served) -> float:
    """In a fresh profile: nothing is cached."""
    context = await browser.new_context()
    page: Page = await context.new_page()
    await page.goto(f"{served.address}/ui/")
    await page.wait_for_selector("h1")
    first: float = await page.evaluate(_FIRST_PAINT)
    await context.close()
    return first


def _loaded_by(view: str) -> list[Path]:
    """The shell, a view, and what these import."""
    found: dict[Path, None] = {}

    def follow(file: Path) -> None:
        if file in found:
            return
        found[file] = None
        for line in file.read_text().splitlines():
            if line.startswith("import ") and '"./' in line.replace('"../', '"./'):
                follow((file.parent / line.split('"')[-2]).resolve())

    follow(_STATIC / "app.js")
    follow(_STATIC / "views" / f"{view}.js")
    return list(found)


def _weight_kb(files: Any) -> float:
    return sum(len(gzip.compress(file.read_bytes(), 9)) for file in files) / 1000


def _p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]


def _spread(times_ms: list[float]) -> tuple[str, str]:
    return f"{statistics.median(times_ms):.0f} ms", f"{_p95(times_ms):.0f} ms"


if __name__ == "__main__":
    print(run().as_markdown())
