"""Takes the pictures of docs/guides/dashboard.md from a dashboard that shows real runs.

trainyard dashboard --no-browser --demo-url http://127.0.0.1:8000 &
python docs/generate/dashboard_pictures.py http://127.0.0.1:8050
"""

import shutil
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).parents[1] / "pictures"
DESKTOP = (1280, 800)
PHONE = (390, 844)
# Picture: tab, dark or not, size, and the last chart to appear.
WANTED: dict[str, tuple[str, bool, tuple[int, int], str]] = {
    "performance": ("performance", False, DESKTOP, "performance-charts-rank_step_seconds"),
    "scaling": ("scaling", False, DESKTOP, "speedup"),
    "training": ("training", False, DESKTOP, "training-charts-grad_norm"),
    "cost": ("cost", False, DESKTOP, "costs"),
    "phone": ("performance", True, PHONE, "performance-charts-loss"),
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
                is_mobile=name == "phone",  # without room for a scroll bar
            )
            context.set_default_timeout(MILLISECONDS)
            page = context.new_page()
            page.goto(f"{url}/#{tab}")
            page.locator(f"#plot-{chart}").locator("canvas, svg").first.wait_for()
            if name == "cost":  # a size for which the study gives single figures
                page.locator("#cost-form [name=processes]").fill("4")
                page.get_by_text("4 × 1 process").first.wait_for()
                page.evaluate("document.activeElement.blur()")
            path = PICTURES / f"dashboard-{name}.png"
            picture = page.screenshot(full_page=name != "phone")
            _with_palette(Image.open(BytesIO(picture)).convert("RGB")).save(path, optimize=True)
            print(f"{path.name}: {path.stat().st_size >> 10} KiB")
            context.close()
        browser.close()


def _with_palette(picture: Image.Image) -> Image.Image:
    """The picture in 256 colours: a third of the bytes.

    Half of them are the most frequent ones, unchanged, and half those that differ most from the
    others: the colours of thin lines. Pillow's own palettes change large areas, or thin lines.
    """
    pixels = np.asarray(picture).reshape(-1, 3)
    colours, index, counts = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
    chosen = list(np.argsort(counts)[::-1][:128])
    values = colours.astype(int)
    nearest = np.min([np.abs(values - values[one]).sum(axis=1) for one in chosen], axis=0)
    while len(chosen) < min(256, len(colours)):
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.abs(values - values[chosen[-1]]).sum(axis=1))
    distances = np.abs(values[:, None] - values[chosen][None]).sum(axis=2)
    numbers = np.argmin(distances, axis=1).astype(np.uint8)[index.reshape(-1)]
    reduced = Image.frombytes("P", picture.size, numbers.tobytes())
    reduced.putpalette(colours[chosen].reshape(-1).tolist())
    return reduced


if __name__ == "__main__":
    main()
