"""Settings of the process and the thread that certibox's own work wants changed for a while, and then as they were."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_SET_BACK: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
)
AUTOCAST = ("cpu", "cuda")  # kinds of device whose autocast is switched off inside `settled`


def default_device() -> torch.device:
    """The device of tensors that name none. torch 2.6 cannot say it after `set_default_device(None)`, a tensor can."""
    return torch.empty(0).device


class Switch:
    """A setting of the process that one or more threads want changed for a while.

    The first thread in changes the setting and the last thread out changes it back. Threads that each saved the setting
    and restored what they had saved would leave it changed: the second to enter saves what the first has changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: dict[object, int] = {}  # one entry a user inside: the thread that came in
        self._change_back: Callable[[], object] = lambda: None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._left_by_threads
            )

    @contextmanager
    def changed(self, change: Callable[[], Callable[[], object]]) -> Iterator[None]:
        """Keep the setting changed inside the block.

        Args:
            change: Function that changes the setting and returns the function that changes it back. Only the first
                user inside has its function called.
        """
        user = object()
        with self._lock:
            if not self._inside:
                self._change_back = change()
            self._inside[user] = threading.get_ident()
        try:
            yield
        finally:
            with self._lock:
                self._leave(user)

    def _leave(self, *users: object) -> None:
        if self._inside:
            for user in users:
                self._inside.pop(user, None)
            if not self._inside:
                self._change_back()

    def _left_by_threads(self) -> None:
        """In a forked process: only the thread that forked is there, so no other will ever change the setting back."""
        here = threading.get_ident()
        self._leave(*[user for user, thread in self._inside.items() if thread != here])
        self._lock.release()


_FLOAT32 = Switch()
_dtype_found: torch.dtype = torch.float32  # the default type of the process while `_FLOAT32` is changed
_device_found: ContextVar[torch.device | None] = ContextVar("device_found", default=None)  # None outside `settled`


@contextmanager
def settled() -> Iterator[None]:
    """Compute inside as in a fresh process, whatever a model file or a caller has set; afterwards it is set again.

    Gradients are recorded, autocast is off, and tensors that name no type or device are float32 on the CPU. Threads
    that start inside have the type alone. Code that wants what was set before, such as a box, is run in `as_found`.
    """
    with ExitStack() as stack:
        stack.enter_context(_FLOAT32.changed(_to_float32))
        if (dtype := torch.get_default_dtype()) != torch.float32:  # inside `as_found`
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if _device_found.get() is None:
            device = default_device()
            stack.enter_context(_value(_device_found, device))
            if device.type != "cpu":
                stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def as_found() -> Iterator[None]:
    """Inside `settled`, the default type and device that were set before it; elsewhere nothing changes.

    What the code inside, such as a box that is asked, sets itself of type, gradients and threads is set back.
    """
    device, dtype = _device_found.get(), _dtype_found
    outside = torch.get_default_dtype() if device is None else torch.float32
    before = [read() for read, _ in _SET_BACK]
    try:
        if device is None or (device.type == "cpu" and dtype == torch.float32):
            yield
        else:
            with _value(_device_found, None), device:
                torch.set_default_dtype(dtype)
                yield
    finally:
        if torch.get_default_dtype() != outside:
            torch.set_default_dtype(outside)
        for (read, write), value in zip(_SET_BACK, before, strict=True):
            if read() != value:
                write(value)


def _to_float32() -> Callable[[], object]:
    """Makes float32 the type of tensors that name none; returns what changes back."""
    global _dtype_found
    before = _dtype_found = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    return lambda: torch.set_default_dtype(before)


@contextmanager
def _value(variable: ContextVar[torch.device | None], value: torch.device | None) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
