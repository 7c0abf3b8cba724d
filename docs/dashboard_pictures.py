"""Takes the pictures of docs/dashboard.md from a dashboard that shows real runs.

trainyard dashboard --no-browser --demo-url http://127.0.0.1:8000 &
python docs/dashboard_pictures.py http://127.0.0.1:8050
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICTURES = Path(__file__).with_name("pictures")
DESKTOP = (1280, 800)
PHONE = (390, 844)
# Picture: tab, colours, size, the last chart to appear, and what is typed first.
WANTED: dict[str, tuple[str, str, tuple[int, int], str, dict[str, str]]] = {
    "performance": ("performance", "light", DESKTOP, "ranks", {}),
    "scaling": ("scaling", "light", DESKTOP, "speedup", {}),
    "training": ("training", "light", DESKTOP, "grad_norm", {}),
    "cost": ("cost", "light", DESKTOP, "costs", {}),
    "phone": ("performance", "dark", PHONE, "loss", {}),
}
MILLISECONDS = 60_000


def settled(page: Page, chart: str) -> None:
    """Wait until the chart is drawn, and the page is at rest."""
    page.locator(f"#plot-{chart} svg").first.wait_for()
    page.wait_for_load_state("networkidle")


def main() -> None:
    url = sys.argv[1]
    PICTURES.mkdir(exist_ok=True)
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, (tab, colours, (width, height), chart, typed) in WANTED.items():
            context = browser.new_context(
                color_scheme="dark" if colours == "dark" else "light",
                viewport={"width": width, "height": height},
                bypass_csp=True,
            )
            context.set_default_timeout(MILLISECONDS)
            page = context.new_page()
            page.goto(f"{url}/#{tab}")
            for field, value in typed.items():
                page.locator(f"#{tab} [name={field}]").fill(value)
            settled(page, chart)
            path = PICTURES / f"dashboard-{name}.png"
            page.screenshot(path=path, full_page=name not in ("phone",))
            print(f"{path.name}: {path.stat().st_size >> 10} KiB")
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
