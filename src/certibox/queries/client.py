"""QueryClient: the one door to a black box. It counts, bounds, batches, checks and remembers every answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from certibox.blackbox import BlackBox, BoxSpec, check_outputs, differentiable
from certibox.errors import BadOutput, BoxFailed, BudgetExceeded, CertiboxError, InvalidImages, InvalidInput
from certibox.queries.journal import Journal, inputs_digest
from certibox.queries.ledger import Ledger

UNNAMED = "query"  # the phase of what is spent under no name


class QueryClient:
    """A black box with a meter: call it with images (n, c, h, w), pay n queries, get its checked answers.

    box: from `certibox.as_blackbox`. budget: the most queries that may ever be spent, over all runs that share the
    ledger. ledger: an SQLite file that survives the process. batch_size: images sent at a time, default the box's own.
    Nothing is sent unless it is called.
    """

    def __init__(
        self, box: BlackBox, budget: int | None = None, ledger: str | Path | None = None, batch_size: int | None = None
    ) -> None:
        if not isinstance(getattr(box, "spec", None), BoxSpec):
            raise InvalidInput(f"QueryClient got a {type(box).__name__}; wanted a box from certibox.as_blackbox(...)")
        if budget is not None and budget < 0:
            raise InvalidInput(f"budget is {budget}; wanted a number of queries >= 0, or None for no limit")
        wanted = box.spec.batch_size if batch_size is None else batch_size
        if wanted < 1:
            raise InvalidInput(f"batch_size is {wanted}; wanted at least 1")
        self.box, self.budget = box, budget
        self.batch_size = min(wanted, box.spec.max_batch or wanted)
        self.ledger = Ledger(ledger) if ledger is not None else None
        self.queries, self.attempts, self.lost = self.ledger.totals() if self.ledger else (0, 0, 0)
        self.delivered = 0  # answers handed to callers by this client, replayed ones included
        self.white_passes = 0  # forward passes of a differentiable box by first-order methods: not queries
        self._phase, self._spent = UNNAMED, self.ledger.by_phase() if self.ledger else {}
        self._journal: Journal | None = None
        self._answer_shape: tuple[int, ...] | None = None
        self._batches = 0

    @property
    def spec(self) -> BoxSpec:
        """What was declared of the box."""
        return self.box.spec

    @property
    def model_id(self) -> str:
        """The bare box's name in records."""
        return f"bare:{self.spec.model_id}"

    @property
    def left(self) -> int | None:
        """Queries that the budget still allows; None without a budget. Lost ones may have been paid for, and count."""
        if self.budget is None:
            return None
        committed = self.ledger.committed() if self.ledger else self.queries + self.lost
        return max(0, self.budget - committed)

    @property
    def spent(self) -> dict[str, int]:
        """Answers paid for, by phase."""
        return dict(self._spent)

    @property
    def num_outputs(self) -> int | None:
        """K of the answers so far; None before the first answer and for labels."""
        return self._answer_shape[0] if self._answer_shape else None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Book what is spent inside under `name`."""
        previous, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = previous

    def default_phase(self, name: str) -> AbstractContextManager[None]:
        """Book what is spent inside under `name`, unless the caller has named a phase already."""
        return self.phase(name) if self._phase == UNNAMED else nullcontext()

    @contextmanager
    def journal(self, scope: str, position: int) -> Iterator[Journal | None]:
        """Journal answers inside, replaying those that `scope` already paid for from `position` on.

        None without a ledger: then nothing is journalled.
        """
        if self.ledger is None:
            yield None
            return
        previous, self._journal = self._journal, Journal(self.ledger, scope, position)
        try:
            yield self._journal
        finally:
            self._journal = previous

    def __call__(self, x: Tensor) -> Tensor:
        """Answers to x: (n, c, h, w) float on [0, 1] -> (n, K), (n,) labels or (n, ...) values; costs n queries.

        Errors: `BudgetExceeded` before the first query that the budget cannot pay, with the rest of the call unsent;
        `BoxFailed`, `BadOutput`, `InvalidImages`.
        """
        if not isinstance(x, Tensor):
            raise InvalidImages(f"a query is {type(x).__name__}; wanted a float tensor (n, channels, height, width)")
        self.spec.check_images(x)
        if len(x) == 0:
            raise InvalidImages(f"a query has shape {tuple(x.shape)}; wanted at least one image")
        answers = []
        for start in range(0, len(x), self.batch_size):
            answers.append(self._answer(x[start : start + self.batch_size], wanted=len(x) - start))
        self.delivered += len(x)
        return torch.cat(answers) if len(answers) != 1 else answers[0]

    def white(self, x: Tensor) -> Tensor:
        """The box's outputs with gradients, for first-order methods; a white-box pass is not a query.

        Errors: `NotDifferentiable` if the box gives none.
        """
        outputs = differentiable(self.box)(x)
        self.white_passes += len(x)
        return outputs

    def _answer(self, batch: Tensor, wanted: int) -> Tensor:
        """One batch at the transport: replay it, or book, ask and settle it."""
        digest = inputs_digest(batch) if self._journal else ""
        if self._journal and (stored := self._journal.recall(digest)) is not None:
            self._answer_shape = stored.shape[1:]  # a resumed run knows K just as an uninterrupted one does
            return torch.from_numpy(stored).to(batch.device)
        row = self._book(len(batch), wanted)
        answer = self._ask(batch, row).contiguous()  # laid out as the journal will return it: sums round by layout
        self._answer_shape = tuple(answer.shape[1:])
        self._settle(row, len(batch), self._journal.entry(digest, answer.cpu().numpy()) if self._journal else None)
        return answer

    def _book(self, n: int, wanted: int) -> int:
        """Book n of the `wanted` queries of a call, if the budget can pay for all; returns the ledger's row."""
        if self.ledger:
            return self.ledger.send(self._phase, n, wanted, self.budget)
        if self.left is not None and wanted > self.left:
            raise BudgetExceeded(wanted, self.left)
        return 0

    def _ask(self, batch: Tensor, row: int) -> Tensor:
        """The box's checked answer to a batch that is booked in `row`; without one, the row is settled here."""
        n = len(batch)
        name = f"batch {self._batches} ({n} image{'s' if n != 1 else ''})"
        self._batches += 1
        self.attempts += n
        try:
            return check_outputs(self.box(batch), n, self.spec, self._answer_shape, name)
        except BadOutput:
            self._settle(row, n)  # a wrong answer is paid for all the same
            raise
        except CertiboxError:
            self._settle(row, 0)
            raise
        except Exception as error:
            self._settle(row, 0)
            what = f"{type(error).__name__} on {name}: {' '.join(str(error).split())[:300]}"
            raise BoxFailed(f"the box raised {what}; {self.queries} answers so far are kept") from error
        except BaseException:
            self.lost += n  # interrupted: the row stays unsettled, and counts as it will when the ledger is reopened
            raise

    def _settle(self, row: int, answered: int, entry: tuple[str, int, str, np.ndarray] | None = None) -> None:
        if self.ledger:
            self.ledger.settle(row, answered, entry)
        self.queries += answered
        if answered:
            self._spent[self._phase] = self._spent.get(self._phase, 0) + answered
