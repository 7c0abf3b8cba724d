"""`make lowest` tests with the very versions that pyproject.toml names as the lowest.

A bound below what is installed promises a version that no installation can have, because another
package needs a newer one.
"""

import tomllib
from importlib.metadata import version

from packaging.requirements import Requirement
from packaging.version import Version

from dev.images.builder import REPO

EXTRAS = ("operator", "trainer", "checkpoint", "serving")


def test_what_is_installed_are_the_lower_bounds() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][e] for e in EXTRAS)]
    wrong = set()
    for line in (line for lines in lists for line in lines):
        required = Requirement(line)
        if required.marker and not required.marker.evaluate():
            continue
        # Without the local part, such as +cpu: torch's build is chosen by the machine.
        installed = Version(Version(version(required.name)).public)
        lowest = [Version(each.version) for each in required.specifier if each.operator == ">="]
        if lowest != [installed]:
            wrong.add(f"{line}: {installed} is installed")
    assert wrong == set()
