"""Tools for developers: a cluster on this machine, image builds, generated files."""
