"""The messages between server and client: they go there and back, and nothing else is taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restore.multicast.chunkset import ChunkSet
from restore.multicast.session import Counts, Directions, Join, MessageError, Session, Status
from tests.support import examples

CHUNKS = 12
SESSION = Session(0xAB, "lab.img", 12 << 20, CHUNKS, "0" * 64, "239.192.1.2", 7800, 1444)
JOIN = Join("bench-3", ["/dev/sda"], ChunkSet(CHUNKS, [1, 2]))
STATUS = Status(ChunkSet(CHUNKS, [1, 4]), 77, Counts(received=5, lost=3), {4: 12}, 0.25)
DIRECTIONS = Directions("00ff00ff00ff00ff", alone=False, streaming=True, report_every=0.5)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def over_the_wire(message: Any) -> Any:
    return json.loads(json.dumps(message.to_json()))


def test_there_and_back() -> None:
    assert Session.from_json(over_the_wire(SESSION)) == SESSION
    assert Join.from_json(over_the_wire(JOIN), CHUNKS) == JOIN
    assert Status.from_json(over_the_wire(STATUS), CHUNKS) == STATUS
    assert Directions.from_json(over_the_wire(DIRECTIONS)) == DIRECTIONS


@pytest.mark.parametrize(
    "change",
    [
        {"id": "ab"},
        {"id": 5},
        {"image": 5},
        {"image": "x" * 300},
        {"size": 0},
        {"size": True},
        {"chunks": -1},
        {"chunks": 1 << 40},
        {"manifest": "0" * 63},
        {"group": "10.0.0.1"},
        {"port": 0},
        {"segment_size": 1},
        {"segment_size": 1 << 20},
    ],
)
def test_no_session(change: dict[str, Any]) -> None:
    with pytest.raises(MessageError, match="not what a multicast server says of its session"):
        Session.from_json(SESSION.to_json() | change)


@pytest.mark.parametrize("name", ["name", "targets", "lacking"])
@pytest.mark.parametrize("value", [None, 5, [], [5], "!", {}])
def test_no_beginning(name: str, value: Any) -> None:
    if (name, value) == ("name", "!"):
        return
    with pytest.raises(MessageError, match="not how a client begins"):
        Join.from_json(JOIN.to_json() | {name: value}, CHUNKS)


@pytest.mark.parametrize(
    "change", [{"lacking": "!"}, {"as_of": -1}, {"as_of": "5"}, {"counts": {}}, {"counts": {"received": -1}}]
)
def test_no_status(change: dict[str, Any]) -> None:
    with pytest.raises(MessageError, match="not how far a client is"):
        Status.from_json(STATUS.to_json() | change, CHUNKS)
    with pytest.raises(MessageError):
        Status.from_json(STATUS.to_json(), CHUNKS + 100)


@pytest.mark.parametrize("change", [{"client": "../x"}, {"alone": 0}, {"streaming": None}])
def test_no_directions(change: dict[str, Any]) -> None:
    with pytest.raises(MessageError, match="not what a multicast server answers"):
        Directions.from_json(DIRECTIONS.to_json() | change)


@examples(200)
@given(value=JSON)
def test_whatever_comes(value: Any) -> None:
    with pytest.raises(MessageError):
        Session.from_json(value)
    with pytest.raises(MessageError):
        Join.from_json(value, CHUNKS)
    with pytest.raises(MessageError):
        Status.from_json(value, CHUNKS)
    with pytest.raises(MessageError):
        Directions.from_json(value)
