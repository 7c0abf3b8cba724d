"""The error that a user can do something about: one line, no traceback."""


class ClusterError(Exception):
    """What is wrong and what to do about it, in one line."""
