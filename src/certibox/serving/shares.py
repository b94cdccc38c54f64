"""Whose samples come next: a batch shared evenly between the requests that want some, max-min fair."""

from __future__ import annotations

import math

from certibox.certification.batches import Part
from certibox.serving.tickets import Vote


def shared(wanting: list[list[Vote]], room: int) -> list[Part]:
    """Pieces of so many samples at most, shared evenly between the tickets whose images want some.

    Args:
        wanting: Images that want samples, by ticket.
        room: Number of samples.
    """
    taken: dict[int, list[Part]] = {}  # by image, so that its pieces stand together
    while room > 0 and wanting:
        share = max(1, math.floor(room / len(wanting)))
        for polls in wanting:
            left = min(share, room)
            for poll in polls:
                while left > 0 and poll.wanted:
                    piece = poll.begin(left)
                    left -= piece.stop - piece.start
                    room -= piece.stop - piece.start
                    _add(taken.setdefault(id(poll), []), (poll, piece))
        wanting = [still for polls in wanting if (still := [poll for poll in polls if poll.wanted])]
    return [part for parts in taken.values() for part in parts]


def _add(parts: list[Part], part: Part) -> None:
    """Append a piece, or make the one before it longer."""
    poll, piece = part
    if parts and (last := parts[-1][1]).name == piece.name and last.stop == piece.start:
        parts[-1] = poll, last._replace(stop=piece.stop)
    else:
        parts.append(part)
