"""What stands in front of the box: the white part, the defense that training returns, and autoencoders on disk.

- `pipeline`: denoise → encode → decode; `saved`: the defense, saved and loaded;
- `autoencoders`: autoencoders on disk; `released`: those that the paper's authors released.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # see __init__.pyi
