"""Takes the pictures of docs/guides/dashboard.md from a dashboard that shows real runs.

trainyard dashboard --no-browser --demo-url http://127.0.0.1:8000 &
python docs/generate/dashboard_pictures.py http://127.0.0.1:8050
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).parents[1] / "pictures"
DESKTOP = (1280, 800)
PHONE = (390, 844)
# Picture: tab, dark or not, size, and the last chart to appear.
WANTED: dict[str, tuple[str, bool, tuple[int, int], str]] = {
    "performance": ("performance", False, DESKTOP, "ranks"),
    "scaling": ("scaling", False, DESKTOP, "speedup"),
    "training": ("training", False, DESKTOP, "grad_norm"),
    "cost": ("cost", False, DESKTOP, "costs"),
    "phone": ("performance", True, PHONE, "loss"),
}
MILLISECONDS = 60_000


def main() -> None:
    url = sys.argv[1]
    PICTURES.mkdir(exist_ok=True)
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, (tab, dark, (width, height), chart) in WANTED.items():
            context = browser.new_context(
                color_scheme="dark" if dark else "light",
                viewport={"width": width, "height": height},
            )
            context.set_default_timeout(MILLISECONDS)
            page = context.new_page()
            page.goto(f"{url}/#{tab}")
            page.locator(f"#plot-{chart} svg").first.wait_for()
            path = PICTURES / f"dashboard-{name}.png"
            picture = page.screenshot(full_page=name != "phone")
            # 128 colours are more than the page has, and a third of the bytes.
            Image.open(BytesIO(picture)).convert("RGB").quantize(128).save(path, optimize=True)
            print(f"{path.name}: {path.stat().st_size >> 10} KiB")
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
