"""The gateway: an application that stands where the box stood, and answers with certificates. Needs `certibox[serve]`.

Batches across requests: `engine`; the protocol: `protocol`, `signature`, `terms`; money and safety: `accounts`,
`audit`, `health`; all of it without HTTP: `gateway`; with HTTP: `asgi` and `page`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # see __init__.pyi
