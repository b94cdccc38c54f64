"""Answers paid for since the last checkpoint, in the order in which they were asked for."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from certibox.queries.ledger import Ledger


class Journal:
    """Answers kept between two checkpoints of one piece of work, in the order in which they were asked for."""

    def __init__(self, ledger: Ledger, scope: str, position: int) -> None:
        self._ledger, self.scope, self.position = ledger, scope, position

    def recall(self, inputs: str) -> np.ndarray | None:
        """The answers already paid for at this position, moving on; None when they must be asked for."""
        answers = self._ledger.recall(self.scope, self.position, inputs)
        if answers is not None:
            self.position += 1
        return answers

    def entry(self, inputs: str, answers: np.ndarray) -> tuple[str, int, str, np.ndarray]:
        """What the ledger stores for answers just bought, moving on."""
        self.position += 1
        return self.scope, self.position - 1, inputs, answers

    def trim(self) -> None:
        """Forget what a checkpoint now covers."""
        self._ledger.forget(self.scope, self.position)


def inputs_digest(batch: Tensor) -> str:
    """128 bits of SHA-256 over type, shape and pixels; processors have instructions for it, so it beats BLAKE2."""
    total = hashlib.sha256(f"{batch.dtype}/{tuple(batch.shape)}".encode())
    flat = batch.detach().cpu().reshape(-1)
    flat = flat if flat.stride(0) == 1 else flat.clone()  # a single pixel may keep an odd stride
    total.update(flat.view(torch.uint8).numpy().data)
    return total.hexdigest()[:32]
