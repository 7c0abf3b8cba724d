"""Measures how long the dashboard takes to show 50 runs of 5,000 points in a real browser.

    OMP_NUM_THREADS=1 python -m tests.bench.dashboard_load [--runs 50] [--points 5000] [--repeats 5]

Each repetition starts a server that has read nothing yet and headless Chromium with an empty cache.
Times are measured in the page, from the start of navigation to the table of runs, the first curve,
and the last chart of the tab. `all` selects every run instead of the initial four; `empty` is a
dashboard without runs, which shows the browser's own share.
"""

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.bench.serving_process import serving, wait_ready
from tests.support.dashboard.home import write_run
from tests.support.serving.browser import FLAGS, NAMES

SECONDS = 120
MARKS = {
    "table": "#runs tbody tr",
    "first curve": "#plot-performance-charts-loss canvas",
    "every chart": "#plot-performance-charts-rank_step_seconds canvas",
}
# Checks on every frame, and records when each element appears.
WATCH = """(marks) => {
  window.seen = {};
  const look = () => {
    for (const [name, selector] of Object.entries(marks)) {
      if (!(name in seen) && document.querySelector(selector)) seen[name] = performance.now();
    }
    requestAnimationFrame(look);
  };
  look();
}"""


def load(browser: Browser, home: Path, select_all: bool) -> dict[str, float]:
    """Seconds to each mark; with `select_all`, from the selection to the last curve."""
    with serving("dashboard", f"--home={home}") as server:
        wait_ready(server.url)
        context = browser.new_context(bypass_csp=True)  # to wait for conditions
        context.set_default_timeout(SECONDS * 1000)
        page = context.new_page()
        page.add_init_script(f"({WATCH})({MARKS!r})")
        page.goto(f"{server.url}/#performance?rows=100", wait_until="commit")
        if any((home / "runs").iterdir()):
            page.wait_for_function("Object.keys(window.seen ?? {}).length === 3")
        else:
            page.wait_for_function("!document.getElementById('no-runs').hidden")
            page.evaluate("seen.table = performance.now()")
        seen = {name: value / 1000 for name, value in page.evaluate("window.seen").items()}
        if select_all:
            began = page.evaluate(
                """() => {
                  const before = performance.now();
                  for (const box of document.querySelectorAll('#runs input')) {
                    if (!box.checked) box.click();
                  }
                  return before;
                }"""
            )
            count = len(list((home / "runs").iterdir()))
            series = (
                "document.getElementById('plot-performance-charts-rank_step_seconds').uplot.series"
            )
            page.wait_for_function(f"{series}.length === 1 + 2 * {count}")  # x, and two ranks each
            seen = {"all drawn": (page.evaluate("performance.now()") - began) / 1000}
        context.close()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--points", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    program = next(path for name in NAMES if (path := shutil.which(name)))
    taken: dict[str, dict[str, list[float]]] = {"empty": {}, "runs": {}, "all": {}}
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        homes = {name: Path(directory) / name for name in ("empty", "runs")}
        (homes["empty"] / "runs").mkdir(parents=True)
        for number in range(args.runs):
            write_run(homes["runs"], f"run-{number:02}", points=args.points)
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        for _ in range(args.repeats):
            for case, home in (
                ("empty", homes["empty"]),
                ("runs", homes["runs"]),
                ("all", homes["runs"]),
            ):
                for mark, seconds in load(browser, home, case == "all").items():
                    taken[case].setdefault(mark, []).append(seconds)
        browser.close()
    print(f"{args.runs} runs of {args.points} points, {args.repeats} repetitions, seconds:")
    for case, marks in taken.items():
        for mark, values in marks.items():
            spread = f"({min(values):.2f} to {max(values):.2f})"
            print(f"  {case:6} {mark:12} median {statistics.median(values):.2f} {spread}")
    curve = statistics.median(taken["runs"]["first curve"])
    print(f"first curve / target of 2 s: {curve / 2:.2f}")


if __name__ == "__main__":
    main()
