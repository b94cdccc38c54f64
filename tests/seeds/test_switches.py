"""Settings of the process under threads and forks: changed while anybody wants it, and then as they were."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import ThreadpoolController, threadpool_limits

from certibox import seeds
from certibox.blackbox import as_blackbox
from certibox.seeds.switches import Switch, as_found, default_device, settled


class Setting:
    """A setting with a history."""

    def __init__(self, value: str = "as it was") -> None:
        self.value, self.changes = value, 0

    def change(self) -> Callable[[], None]:
        before, self.value = self.value, "changed"
        self.changes += 1

        def back() -> None:
            self.value = before

        return back


def test_the_first_in_changes_and_the_last_out_changes_back_in_any_order() -> None:
    for leaving in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        setting, switch = Setting(), Switch()
        users = [switch.changed(setting.change) for _ in range(3)]
        for user in users:
            user.__enter__()
            assert setting.value == "changed"
        for place in leaving:
            assert setting.value == "changed"
            users[place].__exit__(None, None, None)
        assert (setting.value, setting.changes) == ("as it was", 1)


def test_it_is_changed_back_after_an_error() -> None:
    setting, switch = Setting(), Switch()
    with pytest.raises(ZeroDivisionError), switch.changed(setting.change):
        raise ZeroDivisionError
    assert setting.value == "as it was"

    def broken() -> Callable[[], None]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), switch.changed(broken):
        pass
    with switch.changed(setting.change):  # nobody was inside
        assert setting.value == "changed"


def test_threads_never_see_it_unchanged_inside() -> None:
    setting, switch = Setting(), Switch()

    def work(_: int) -> bool:
        seen = []
        for _ in range(300):
            with switch.changed(setting.change):
                seen.append(setting.value)
        return set(seen) == {"changed"}

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert setting.value == "as it was"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("too", [False, True], ids=["another thread inside", "the forking thread too"])
def test_a_fork_forgets_the_threads_that_it_does_not_have(too: bool) -> None:
    setting, switch, inside, leave = Setting(), Switch(), threading.Event(), threading.Event()

    def other() -> None:
        with switch.changed(setting.change):
            inside.set()
            leave.wait(10)

    def forked() -> bytes:
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.write(writer, setting.value.encode())
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as file:
            said = file.read()
        os.waitpid(child, 0)
        return said

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(10)
    if too:
        with switch.changed(setting.change):
            assert forked() == b"changed"
    else:
        assert forked() == b"as it was"
    assert setting.value == "changed"  # in the parent the other is still inside
    leave.set()
    thread.join()
    assert setting.value == "as it was"


def blas_threads() -> list[int]:
    found = ThreadpoolController().select(user_api="blas").info()
    return [library["num_threads"] for library in found]


def in_a_thread_that_ends(job: Callable[[], object]) -> None:
    """threadpoolctl heeds the first thread alone that sets a limit, as long as the thread lives."""
    thread = threading.Thread(target=job)
    thread.start()
    thread.join()


def test_estimators_asked_at_once_leave_the_threads_of_blas_as_they_were() -> None:
    """The second would find one thread, and restore one thread after the first has restored two."""
    original = blas_threads()
    in_a_thread_that_ends(lambda: threadpool_limits(2, user_api="blas"))
    before = blas_threads()
    if set(before) != {2}:
        pytest.skip("NumPy has no BLAS whose threads can be set")
    entered = [threading.Event(), threading.Event()]
    leave = [threading.Event(), threading.Event()]
    seen: list[list[int]] = []

    def box(place: int):
        model = LogisticRegression().fit(np.eye(4), range(4))

        def predict(images: np.ndarray) -> np.ndarray:
            entered[place].set()
            leave[place].wait(10)
            seen.append(blas_threads())
            return np.zeros((len(images), 4))

        model.decision_function = predict  # pyright: ignore[reportAttributeAccessIssue]
        return as_blackbox(model, "logits")

    boxes, x = [box(0), box(1)], torch.rand(2, 1, 2, 2)
    with ThreadPoolExecutor(2) as pool:
        asked = []
        for place in (0, 1):
            asked.append(pool.submit(boxes[place], x))
            entered[place].wait(10)
        for place in (0, 1):  # the first to come is the first to go
            leave[place].set()
            asked[place].result()
        assert blas_threads() == before
        in_a_thread_that_ends(lambda: boxes[0](x))  # the threads of the pool are still there
        assert blas_threads() == before
    in_a_thread_that_ends(lambda: threadpool_limits(original[0], user_api="blas"))
    assert seen == [[1] * len(before)] * 3


@pytest.fixture
def unusual() -> Iterator[None]:
    """A process whose model file has set all that it can."""
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def set_now() -> tuple[object, ...]:
    new = torch.zeros(1)
    off = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    return new.dtype, new.device.type, torch.is_grad_enabled(), *off


FRESH = (torch.float32, "cpu", True, False, False)


@pytest.mark.usefixtures("unusual")
def test_inside_settled_a_process_is_as_fresh_and_outside_as_it_was() -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        before = set_now()
        assert before == (torch.float64, "meta", False, True, True)
        with settled():
            assert set_now() == FRESH
            with settled():
                assert set_now() == FRESH
            assert set_now() == FRESH
        assert set_now() == before
        with pytest.raises(ZeroDivisionError), settled():
            raise ZeroDivisionError
        assert set_now() == before


@pytest.mark.usefixtures("unusual")
def test_a_box_finds_the_type_and_the_device_that_it_has_set() -> None:
    with as_found():  # outside, nothing is changed
        assert set_now()[:2] == (torch.float64, "meta")
    with settled(), settled():
        with as_found():
            assert set_now()[:2] == (torch.float64, "meta")
            with settled():
                assert set_now() == FRESH
            assert set_now()[:2] == (torch.float64, "meta")
        assert set_now() == FRESH
    assert set_now()[:2] == (torch.float64, "meta")


@pytest.mark.parametrize("inside", [nullcontext, settled])
def test_what_a_box_sets_while_it_is_asked_is_set_back(inside: Callable[[], AbstractContextManager[None]]) -> None:
    with inside():
        before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
        with as_found():
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(False)
            torch.set_num_threads(before[2] + 1)
        assert (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()) == before


@pytest.mark.usefixtures("unusual")
def test_threads_that_meet_inside_leave_the_type_as_it_was() -> None:
    first, second = settled(), settled()
    with ThreadPoolExecutor(1) as pool:
        first.__enter__()
        pool.submit(second.__enter__).result()
        first.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float32  # the other is still inside
        pool.submit(second.__exit__, None, None, None).result()
    assert torch.get_default_dtype() == torch.float64


def test_fresh_weights_do_not_depend_on_what_is_set(unusual: None) -> None:
    del unusual
    with seeds.initialisation(3, "layer"):
        drawn = torch.nn.Linear(4, 3).weight
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    with seeds.initialisation(3, "layer"):
        assert torch.equal(torch.nn.Linear(4, 3).weight, drawn)


def test_the_default_device_is_known_after_it_was_set_back() -> None:
    torch.set_default_device("meta")
    assert default_device() == torch.device("meta")
    torch.set_default_device(None)  # after which torch 2.6 itself raises
    assert default_device() == torch.device("cpu")
    with settled():
        assert torch.zeros(1).device.type == "cpu"
