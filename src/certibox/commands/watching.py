"""`certibox watch`: whether a model is still the one that a defense was trained for, asked again and again."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from certibox.commands.boxes import BoxOptions
from certibox.commands.durations import seconds_of
from certibox.commands.fields import option
from certibox.commands.models import defense_folder
from certibox.commands.printing import OUT
from certibox.defense.saved import TENSORS
from certibox.errors import InvalidInput, UnreadableFile
from certibox.queries.client import QueryClient
from certibox.queries.fingerprint import Fingerprint
from certibox.storage.tensors import read_tensors


@dataclass(frozen=True)
class Watch(BoxOptions):
    """Ask a defense's canaries again, and end with status 5 when the model has changed.

    Each time costs a query a canary, eight in all by default. A model that cannot be reached ends the watch with
    status 4, a spent budget with status 3; run the same command again to go on.

    example: certibox watch --model http://127.0.0.1:8080/v2/models/digits --outputs probabilities --layout flat \\
                 --input-name predict --output-name predict_proba --defense runs/remote/defense --every 1h
    """

    defense: str = option("directory of a saved defense that was trained with --fingerprint true")
    every: str | None = option("time between two looks, as 30s, 10min, 1h or 1d; by default one look", None)
    times: int | None = option("number of looks after which the watch ends; by default no limit", None, least=1)
    tolerance: float = option(
        "share of the answers' range by which an answer may move; labels must be equal", 1e-3, least=0, advanced=True
    )
    ledger: str | None = option("ledger of queries; by default none is kept", None, advanced=True)


def run_watch(options: Watch) -> None:
    """`certibox watch`."""
    pause = None if options.every is None else seconds_of("every", options.every)
    folder = defense_folder(options.defense)
    _, facts = read_tensors(folder / TENSORS)
    if not facts.get("fingerprint"):
        came = f"the defense in {folder} has no fingerprint"
        raise InvalidInput(f"{came}; wanted one that was trained with --fingerprint true")
    try:
        canaries = Fingerprint.from_dict(facts["fingerprint"])
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableFile(f"the fingerprint in {folder} cannot be read; wanted one that train wrote") from error
    ledger = Path(options.ledger) if options.ledger else None
    looks = 0
    while True:
        # A new client each time: a server that was made anew has other metadata, and answers in any form.
        box = options.box(canaries.image_shape[0])
        with QueryClient(box, options.budget, ledger, rate=options.rate, wait=options.wait) as client:
            canaries.check(client, options.tolerance)
        looks += 1
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        OUT.print(f"{now}: the box answers its {len(canaries.answers)} canaries as when the defense was trained")
        if pause is None or looks == options.times:
            return
        time.sleep(pause)
