"""Importing the Python files that the command line names, without letting them change how certibox computes."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from certibox.errors import CertiboxError, InvalidInput, UnreadableFile, described
from certibox.seeds.switches import default_device

# What a model file may set and certibox goes by: how to read it, and how to set it back.
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (os.getcwd, os.chdir),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (lambda: (sys.stdout, sys.stderr), lambda streams: _set_streams(*streams)),
    (random.getstate, random.setstate),
    (np.random.get_state, np.random.set_state),
    (np.geterr, lambda errors: np.seterr(**errors)),
    (torch.get_rng_state, torch.set_rng_state),
    (torch.get_default_dtype, torch.set_default_dtype),
    (default_device, lambda device: torch.set_default_device(None if device.type == "cpu" else device)),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (lambda: (logging.root.level, logging.root.handlers[:], logging.root.manager.disable), lambda was: _set_logs(*was)),
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _set_streams(out: Any, err: Any) -> None:
    sys.stdout, sys.stderr = out, err


def _set_logs(level: int, handlers: list[logging.Handler], disabled: int) -> None:
    logging.root.setLevel(level)
    logging.root.handlers[:] = handlers
    logging.disable(disabled)


@contextmanager
def unchanged() -> Iterator[None]:
    """Inside the block, foreign code may set what it likes for the process; afterwards it is as it was."""
    with ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        for read, write in _SETTINGS:
            with suppress(OSError):  # a working directory that has gone
                undo.callback(write, read())
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if (handler := signal.getsignal(number)) is not None:
                    undo.callback(signal.signal, number, handler)
        yield


def load_module(place: str) -> tuple[ModuleType, Path]:
    """The module of a file or a dotted name, and the folder that it and what it imports are looked for in.

    A module is looked for in the working directory too, as `python -m` does.

    Args:
        place: Path of a `.py` file, or the name of a module.

    Raises:
        UnreadableFile: There is no such file.
        InvalidInput: It cannot be imported.
    """
    if place.endswith(".py"):
        return _import_file(Path(place)), Path(place).resolve().parent
    module = _import_module(place)
    parts = Path(getattr(module, "__file__", None) or Path.cwd() / "none").resolve().parents
    up = place.count(".") + hasattr(module, "__path__")  # from a.b to what holds a
    return module, parts[min(up, len(parts) - 1)]


def _import_module(name: str) -> ModuleType:
    _search(Path.cwd())
    return _import(lambda: importlib.import_module(name), name)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UnreadableFile(f"there is no file {path}; wanted the Python file that defines the model")
    # A name of its own: a file called random.py must not replace the module that others import.
    spec = importlib.util.spec_from_file_location(f"certibox_model_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    sys.modules[module.__name__] = module  # where a dataclass of the file looks its annotations up
    _search(path.resolve().parent)  # so that the file can import its neighbours, as a script can
    _import(lambda: loader.exec_module(module), str(path))
    return module


def _search(directory: Path) -> None:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))


def _import(load: Callable[[], Any], place: str) -> Any:
    try:
        with unchanged():
            return load()
    except (CertiboxError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit and exceptions of its own kind too
        raise InvalidInput(f"{place} cannot be imported: {described(error)}") from error
