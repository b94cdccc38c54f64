"""No request, however broken, is a fault of the server: each is refused in the protocol's form, before a query."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import certibox
from bad_requests import INFER, MOST_BODY, MOST_IMAGES, MOST_QUERIES, RIGHT, Bad, bad_requests
from gateways import SHAPE, Bright, ask, closing, smoothed_of

ALL = bad_requests()


class Place(NamedTuple):
    """A gateway, its box, and what its log was told."""

    app: Any
    box: Bright
    told: list[tuple[str, Any]]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    box, told = Bright(), list[tuple[str, Any]]()
    limits = certibox.serving.Limits(
        n=MOST_QUERIES, max_queries=MOST_QUERIES, max_images=MOST_IMAGES, max_body=MOST_BODY
    )
    application = certibox.serving.app(
        smoothed_of(box),
        image_shape=SHAPE,
        limits=limits,
        log=lambda event, values: told.append((event, values)),
    )
    with closing(application) as app:
        yield Place(app, box, told)


@pytest.mark.parametrize("bad", ALL, ids=lambda bad: bad.name)
def test_a_bad_request_is_refused_in_the_form_of_the_protocol(place: Place, bad: Bad) -> None:
    reply = ask(place.app, bad.method, bad.path, bad.body, **dict[str, Any](bad.headers))
    assert 400 <= reply.status < 500
    assert reply.headers["content-type"] == "application/json"
    said = json.loads(reply.body)
    assert list(said) == ["error"]
    assert said["error"]
    assert "\n" not in said["error"]
    assert len(said["error"]) < 600
    assert place.box.sizes == []
    assert not [values for event, values in place.told if event == "fault"]


def test_there_are_many_of_them_and_what_they_break_is_right_before() -> None:
    assert len(ALL) >= 200
    assert len({bad.name for bad in ALL}) == len(ALL)
    with closing(certibox.serving.app(smoothed_of(Bright()), image_shape=SHAPE)) as app:
        assert ask(app, "POST", INFER, json.dumps(RIGHT).encode()).status == 200


@pytest.mark.parametrize(
    "parameters",
    [
        {"alpha": 5e-324},
        {"alpha": 1 - 1e-16},
        {"radius": 0},
        {"radius": 1e308},
        {"radius": 5e-324},
        {"timeout_ms": 5e-324},
        {"timeout": 1e308},
        {"alpha": 5e-324, "certify": False},
        {"alpha": 1 - 1e-16, "certify": False, "max_queries": 7},
    ],
    ids=str,
)
def test_an_odd_request_is_answered_or_refused(place: Place, parameters: dict[str, Any]) -> None:
    reply = ask(place.app, "POST", INFER, json.dumps({**RIGHT, "parameters": parameters}).encode())
    assert reply.status in (200, 400, 504), reply.body
    assert not [values for event, values in place.told if event == "fault"]
