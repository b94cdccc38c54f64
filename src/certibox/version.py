"""The version of certibox, as results record it."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("certibox")
except PackageNotFoundError:  # run from a source tree that was never installed
    VERSION = "unknown"
