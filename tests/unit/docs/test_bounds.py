"""The versions that pages ask for are the bounds in pyproject.toml, which `make lowest` tests."""

import re

from dev.images.lock import required
from tests.unit.docs.test_links import ROOT, markdown_files

PACKAGES = {"PyTorch": "torch", "torch": "torch", "transformers": "transformers"}
NAMED = re.compile(rf"\b({'|'.join(PACKAGES)})(?:>=([\d.]*\d)| ([\d.]*\d) or newer)")
# Asked of a script that brings its own: since this version its Trainer reports progress.
OTHERS = {("docs/guides/your-script.md", "transformers>=5.4")}


def test_pages_name_the_bounds_of_pyproject() -> None:
    named = set()
    for page in markdown_files():
        for name, exact, newer in NAMED.findall(" ".join(page.read_text().split())):
            bound = f"{PACKAGES[name]}>={exact or newer}"
            named.add((str(page.relative_to(ROOT)), bound))
    assert named >= OTHERS
    bounds = {bound for _, bound in named - OTHERS}
    assert bounds == {required("torch"), required("transformers")}, sorted(named)
