"""Models and autoencoders that the command line names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from certibox import seeds
from certibox.defense.autoencoders import load_autoencoder
from certibox.errors import CertiboxError, InvalidInput, UnreadableFile, one_of
from certibox.networks import AUTOENCODERS, Autoencoder, fitting_autoencoder, suitable_autoencoder
from certibox.networks.autoencoder import Latent


def is_saved(name: str) -> bool:
    """Whether `name` is a directory and no network's name (./NAME is a directory all the same)."""
    return name != "suitable" and name not in AUTOENCODERS and Path(name).is_dir()


def saved_autoencoder(name: str, d_z: int | None) -> Autoencoder | None:
    """The autoencoder in the directory `name`; None if `name` is a network's."""
    if not is_saved(name):
        return None
    if d_z is not None:
        raise InvalidInput(
            f"d_z is {d_z}, but the autoencoder saved in {name} has its own; wanted one without the other"
        )
    return load_autoencoder(name)


def untrained_autoencoder(
    name: str, image_shape: tuple[int, int, int], d_z: int | None, seed: int, latent: Latent = "relu"
) -> Autoencoder:
    """An autoencoder by name; `suitable` is one of d_z dimensions where d_z is given, else the paper's for the size."""
    with seeds.initialisation(seed, "autoencoder"):
        if name == "suitable":
            if d_z is None:
                return suitable_autoencoder(image_shape, latent)
            return fitting_autoencoder(image_shape, d_z, latent=latent)
        if name not in AUTOENCODERS:
            known = ("suitable", *AUTOENCODERS)
            raise InvalidInput(
                f"autoencoder is {name!r}; wanted the directory of a saved one, or {one_of(name, known)}"
            )
        if d_z is not None:
            raise InvalidInput(f"d_z is {d_z}, but {name} has its own; wanted --d-z or --autoencoder by name, not both")
        return AUTOENCODERS[name](latent=latent)


def load_model(model: str) -> Any:
    """What `file.py:name`, `package.module:name` or `model.onnx` stands for. No pickle is ever loaded.

    A module is looked for in the working directory too, as `python -m` does.
    """
    if model.endswith(".onnx"):
        return model
    place, _, name = model.rpartition(":")
    if not place or not name.isidentifier():
        raise InvalidInput(f"model is {model!r}; wanted file.py:function, package.module:function or model.onnx")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    if not hasattr(module, name):
        raise InvalidInput(f"{place} has no {name!r}; wanted the name of a function or model that it defines")
    return getattr(module, name)


def _import_module(name: str) -> Any:
    _search(Path.cwd())
    return _import(lambda: importlib.import_module(name), name)


def _import_file(path: Path) -> Any:
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


def _import(load: Any, place: str) -> Any:
    try:
        return load()
    except CertiboxError:
        raise
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        raise InvalidInput(f"{place} cannot be imported: {type(error).__name__}: {text}") from error
