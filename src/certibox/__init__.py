"""certibox: certified adversarial robustness for models that can only be queried.

A black box and unlabelled images go in; a defended, certified model comes out; every query is counted.
"""

from importlib.metadata import PackageNotFoundError, version

import lazy_loader

try:
    __version__ = version("certibox")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "unknown"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # see __init__.pyi
