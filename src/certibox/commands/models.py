"""Models and autoencoders that the command line names."""

from __future__ import annotations

from dataclasses import fields, replace
from inspect import getattr_static
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import yaml

from certibox import seeds
from certibox.blackbox import MODEL_FILES, Connection, Endpoint, advice_on, is_address
from certibox.commands.identity import identity, watched
from certibox.commands.loading import load_module, unchanged
from certibox.commands.settings_files import check_file
from certibox.defense.autoencoders import load_autoencoder
from certibox.defense.hub import TENSORS, pull
from certibox.defense.hub import is_address as is_on_hub
from certibox.errors import CertiboxError, InvalidInput, UnreadableFile, described, one_of
from certibox.networks import AUTOENCODERS, Autoencoder, suitable_autoencoder
from certibox.networks.autoencoder import Latent

_WANTED = "file.py:function, package.module:function, model.onnx, model.tflite or the address of a model"


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
    if name == "suitable":
        return suitable_autoencoder(image_shape, latent, d_z, seed=seed)
    if name not in AUTOENCODERS:
        known = ("suitable", *AUTOENCODERS)
        raise InvalidInput(f"autoencoder is {name!r}; wanted the directory of a saved one, or {one_of(name, known)}")
    if d_z is not None:
        raise InvalidInput(f"d_z is {d_z}, but {name} has its own; wanted --d-z or --autoencoder by name, not both")
    with seeds.initialisation(seed, "autoencoder"):
        return AUTOENCODERS[name](latent=latent)


def defense_folder(name: str) -> Path:
    """The folder of a saved defense: `name` itself, or the one called `defense` in it, where `train` puts it.

    Args:
        name: Folder that --defense gives, or an address on the Hugging Face Hub.

    Raises:
        UnreadableFile: There is no defense in either; the text names what there is.
    """
    if is_on_hub(name):
        return pull(name)
    folder = Path(name)
    for place in (folder, folder / "defense"):
        if (place / TENSORS).is_file():
            return place
    try:
        held = sorted(path.name for path in folder.iterdir())
    except OSError:
        held = []
    holds = f"which holds {', '.join(held[:6])}{', ...' if len(held) > 6 else ''}" if held else "which holds nothing"
    came = f"there is no {folder / TENSORS} in {name!r}, {holds if folder.is_dir() else 'no directory'}"
    raise UnreadableFile(f"{came}; wanted the directory of a saved defense, such as runs/mine/defense")


def load_model(model: str) -> tuple[Any, str | None]:
    """What `file.py:name`, `package.module:name`, a file or an address of a model stands for, and its identity.

    The name may have dots, as `object.method` and `Class.method` have. A class is built by a call without arguments.
    No pickle is loaded.

    Args:
        model: Name of the model, as --model gives it.

    Returns:
        The model, and a digest of the files that it was made from; None for a file or an address, which has its own.

    Raises:
        InvalidInput: There is no such object, or it cannot be imported or built.
        UnreadableFile: There is no such file.
    """
    if is_address(model) or Path(model).suffix.lower() in MODEL_FILES:
        return model, None
    place, _, name = model.rpartition(":")
    if not place or not all(part.isidentifier() for part in name.split(".")):
        raise InvalidInput(advice_on(model) or f"model is {model!r}; wanted {_WANTED}")
    with watched() as read:
        module, folder = load_module(place)
        found: Any = module
        for part in name.split("."):
            if isinstance(getattr_static(found, part, None), FunctionType):  # a method wants an object of its class
                found = _built(found, model)
            try:
                found = getattr(found, part)
            except AttributeError as error:
                raise InvalidInput(f"{place} has no {name!r}; wanted {_defined(module, name)}") from error
        built = _built(found, model)
    return built, identity(module, folder, read)


def load_endpoint(file: str, url: str, connection: Connection) -> Endpoint:
    """The endpoint that a YAML file describes, at an address.

    Args:
        file: YAML file of the fields of `Endpoint`.
        url: Address of the requests, which wins over one in the file.
        connection: Limits and secrets that the command line gives; those of the file win.

    Raises:
        UnreadableFile: The file is missing or none of YAML.
        InvalidInput: A field is unknown or cannot hold.
    """
    if not is_address(url):
        raise InvalidInput(
            f"model is {url!r} beside --endpoint {file}; wanted the address of the endpoint, http or https"
        )
    check_file(file)
    given = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    known = [item.name for item in fields(Endpoint)]
    for name in given:
        if name not in known:
            raise InvalidInput(f"{file} has the field {name!r}; wanted {one_of(name, known)}")
    own = given.pop("connection", None) or {}
    names = [item.name for item in fields(Connection)]
    for name in own if isinstance(own, dict) else ["connection"]:
        if name not in names:
            raise InvalidInput(f"{file} has {name!r} in connection; wanted {one_of(name, names)}")
    try:
        return Endpoint(**{**given, "url": url, "connection": replace(connection, **own)})
    except TypeError as error:
        raise InvalidInput(f"{file} describes no endpoint ({described(error)})") from error


def _built(found: Any, model: str) -> Any:
    """An object of a class; what is no class comes back as it is."""
    if not issubclass(type(found), type):  # what an object says of its class is its own code
        return found
    try:
        with unchanged():
            return found()
    except (CertiboxError, KeyboardInterrupt):
        raise
    except BaseException as error:
        text = f"model is the class {found.__name__} of {model}, which a call without arguments does not build"
        raise InvalidInput(f"{text} ({described(error)}); wanted an object of it that the file defines") from error


def _defined(module: ModuleType, name: str) -> str:
    """What a module defines that could be meant, in words."""
    known = [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    known += [key for key, value in vars(module).items() if hasattr(type(value), "predict") and not key.startswith("_")]
    if not known:
        return "the name of a function or model that it defines"
    return f"the name of a function or model that it defines, such as {one_of(name, dict.fromkeys(known[:10]))[7:]}"
