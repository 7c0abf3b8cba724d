"""The `trainyard` command."""

import sys

# The package is installed on older ones for `import trainyard`.
if sys.version_info < (3, 11):  # noqa: UP036
    raise SystemExit("the trainyard command needs Python 3.11 or newer")
