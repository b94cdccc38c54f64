"""The gateway: an application that stands where the box stood, and answers with certificates. Needs `certibox[serve]`.

Batches across requests: `engine`; the protocol: `protocol`, `signature`, `terms`; money and safety: `accounts`,
`audit`, `health`; all of it without HTTP: `gateway`; with HTTP: `asgi` and `page`.
"""

from typing import Any

import lazy_loader

from certibox.errors import InvalidInput

_loaded, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # see __init__.pyi


def __getattr__(name: str) -> Any:
    try:
        return _loaded(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("certibox"):
            raise
        raise InvalidInput(f"the gateway needs {error.name}; run pip install 'certibox[serve]'") from error
