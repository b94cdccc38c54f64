"""Training: six methods from one loop, and networks that train without queries.

- `schedules`: how long and how fast; `methods`: the six methods; `settings`: a run as one frozen value;
- `losses`, `stability`: what a box's answers are worth, and that by queries;
- `steps`, `run_directory`, `loop`: the one loop, its steps and where it keeps them;
- `objective`: eq. 2 at one batch; `surrogate`, `replay_memory`: a network that learns the box from its answers;
- `supervised`: classifiers and autoencoders, without queries; `defenses`: `train`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # see __init__.pyi
