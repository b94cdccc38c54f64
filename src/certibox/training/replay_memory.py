"""A ring of the box's answers, from which its surrogate learns."""

from __future__ import annotations

import torch
from torch import Tensor

MEMORY_BYTES = 1 << 28  # of remembered inputs; older ones give way
MEMORY_ANSWERS = 1 << 16
NEWEST = 1024


class Memory:
    """A ring of answers: inputs (n, ...), answers (n, ...), and steps and changes where a query was a perturbed one."""

    def __init__(self) -> None:
        self.seen = 0
        self._held: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.seen, len(self._held["inputs"])) if self._held else 0

    def add(self, inputs: Tensor, answers: Tensor, steps: Tensor | None = None, changes: Tensor | None = None) -> None:
        """Remember answers.

        Args:
            inputs: Inputs (n, ...) that were asked about.
            answers: Answers (n, ...) of the box.
            steps: Steps (n, ...) from the inputs to perturbed ones, where these were asked about too.
            changes: Changes (n, ...) of the answers along the steps.
        """
        parts = {"inputs": inputs, "answers": answers}
        if steps is not None and changes is not None:
            parts |= {"steps": steps, "changes": changes}
        with torch.inference_mode(False):  # what comes from queries may not be trained on, what is kept may
            for name, values in parts.items():
                if name not in self._held:
                    self._held[name] = self._room(name, inputs, values)
        capacity, count = len(self._held["inputs"]), len(inputs)
        rows = torch.arange(self.seen, self.seen + count, device=inputs.device)[-capacity:] % capacity  # each row once
        for name, room in self._held.items():
            room[rows] = parts[name][-capacity:].to(room.dtype) if name in parts else torch.zeros_like(room[:1])
        self.seen += count

    def sample(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Remembered answers, half of them among the newest.

        Args:
            count: Number of answers.
            generator: Source of the draw.
        """
        newest = min(NEWEST, len(self))
        back = torch.randint(0, newest, (count // 2,), generator=generator)
        any_ = torch.randint(0, len(self), (count - count // 2,), generator=generator)
        rows = torch.cat([(self.seen - 1 - back) % len(self._held["inputs"]), any_])
        return {name: as_float(room[rows.to(room.device)]) for name, room in self._held.items()}

    def tensors(self) -> dict[str, Tensor]:
        """What is remembered, for a checkpoint."""
        return {name: room[: len(self)] for name, room in self._held.items()} | {"seen": torch.tensor(self.seen)}

    def load(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """The inverse of `tensors`."""
        self.seen = int(tensors["seen"])
        for name, values in tensors.items():
            if name != "seen":
                self._held[name] = self._room(name, tensors["inputs"], values).to(device)
                self._held[name][: len(values)] = values.to(device)

    def _room(self, name: str, inputs: Tensor, values: Tensor) -> Tensor:
        """Zeros for as many rows of `values` as the memory holds inputs; images in half precision, 2^-11 of a pixel."""
        capacity = max(NEWEST, min(MEMORY_ANSWERS, MEMORY_BYTES // (2 * max(1, inputs[0].numel()))))
        image = name in ("inputs", "steps") and values.ndim == 4  # an answer may be an image too, in units of its own
        dtype = torch.float16 if image and values.is_floating_point() else values.dtype
        return torch.zeros((capacity, *values.shape[1:]), dtype=dtype, device=values.device)


def as_float(values: Tensor) -> Tensor:
    """Values as the network takes them: remembered images are in half precision, a box may answer in double."""
    return values.float() if values.is_floating_point() else values
