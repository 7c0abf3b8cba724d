"""The colours of lines: visible on their background, and different to colour-blind people."""

import re
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from trainyard_dashboard.app import STATIC

Colour = NDArray[np.float64]
LEAST_CONTRAST = 3.0  # WCAG 2.2, 1.4.11: of what must be seen against its surroundings
LEAST_DISTANCE = 0.12  # in Oklab, where black and white are 1 apart
# Linear RGB as people with each kind of colour blindness see it: Machado et al. 2009, severity 1.
SEEN_BY = {
    "most people": np.eye(3),
    "protanopes": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopes": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopes": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}
# Björn Ottosson's Oklab: from linear RGB to cones, from their cube roots to lightness and hue.
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def linear(colour: str) -> Colour:
    """Linear RGB of #rrggbb."""
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(colour: Colour) -> Colour:
    return np.asarray(TO_LAB @ np.cbrt(TO_CONES @ np.clip(colour, 0, 1)))


def contrast(one: Colour, other: Colour) -> float:
    weights = np.array([0.2126, 0.7152, 0.0722])
    low, high = sorted(float(weights @ each) + 0.05 for each in (one, other))
    return high / low


@pytest.mark.parametrize(("scheme", "place"), [("light", 0), ("dark", 1)])
def test_lines_differ_for_everybody(scheme: str, place: int) -> None:
    style = (STATIC / "charts.css").read_text()
    palettes = re.findall(r"--line-(\d): (#[0-9a-f]{6});", style)
    palette = [linear(colour) for _, colour in palettes[place * 8 : place * 8 + 8]]
    assert [index for index, _ in palettes] == [str(i) for i in range(8)] * 2
    paper = re.findall(r"--card: (#[0-9a-f]{6});", (STATIC / "dashboard.css").read_text())[place]
    assert min(contrast(colour, linear(paper)) for colour in palette) >= LEAST_CONTRAST
    for people, seen in SEEN_BY.items():
        found = [lab(seen @ colour) for colour in palette]
        least = min(float(np.linalg.norm(a - b)) for a, b in combinations(found, 2))
        assert least >= LEAST_DISTANCE, (scheme, people)
