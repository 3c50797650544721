"""The control API's messages: what is written is read back; anything else is a `MessageError`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targetmode import api

SIZE = 1 << 30

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
exports = st.builds(
    api.ExportDescription,
    name=st.text(min_size=1, max_size=20),
    size=st.integers(1, 1 << 63),
    read_only=st.booleans(),
    model=st.text(max_size=20),
    contents=st.text(max_size=20),
    connections=st.lists(st.text(max_size=20), max_size=3),
)
ranges = st.tuples(st.integers(0, SIZE - api.MAX_RANGE), st.integers(1, api.MAX_RANGE))


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def nearly(shape: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Something of that shape, with any of its values replaced, left out, or others added."""
    values = {key: st.just(value) | anything for key, value in shape.items()}
    return anything | st.fixed_dictionaries({}, optional={**values, "more": anything})


@given(st.builds(api.ExportsAnswer, session=st.uuids().map(str), name=st.text(), exports=st.lists(exports, max_size=3)))
def test_an_exports_answer_comes_back(answer: api.ExportsAnswer) -> None:
    assert api.ExportsAnswer.from_json(through_json(answer.to_json())) == answer


description = {"name": "a", "size": 1, "read_only": False, "model": "", "contents": "", "connections": []}


@given(
    nearly({"session": "s", "name": "n", "exports": [description]})
    | nearly(description).map(lambda one: {"session": "", "name": "", "exports": [one]})
)
def test_any_json_is_an_exports_answer_or_a_message_error(value: Any) -> None:
    try:
        answer = api.ExportsAnswer.from_json(value)
    except api.MessageError as error:
        assert str(error)
        return
    assert isinstance(answer.session, str)
    assert isinstance(answer.name, str)
    for export in answer.exports:
        assert isinstance(export.name, str)
        assert type(export.size) is int


@given(st.sampled_from(api.ALGORITHMS), st.lists(ranges, min_size=1, max_size=20))
def test_a_digest_request_comes_back(algorithm: str, wanted: list[tuple[int, int]]) -> None:
    request = api.DigestRequest(algorithm, wanted)
    assert api.DigestRequest.from_json(through_json(request.to_json()), SIZE) == request


@given(nearly({"algorithm": "blake3", "ranges": [[0, 4096], [4096, 1]]}), st.integers(0, 1 << 20))
def test_any_json_is_a_digest_request_within_the_export_or_a_message_error(value: Any, size: int) -> None:
    try:
        request = api.DigestRequest.from_json(value, size)
    except api.MessageError as error:
        assert len(str(error)) < 1000
        assert "\n" not in str(error)
        return
    assert request.algorithm in api.ALGORITHMS
    assert 0 < len(request.ranges) <= api.MAX_RANGES
    for offset, length in request.ranges:
        assert 0 <= offset < offset + length <= size
        assert length <= api.MAX_RANGE


@given(st.builds(api.DigestLine, offset=st.integers(0, 1 << 63), length=st.integers(1), digest=st.text()))
def test_a_digest_line_comes_back(line: api.DigestLine) -> None:
    assert api.DigestLine.from_json(through_json(line.to_json())) == line


@given(nearly({"offset": 0, "length": 4096, "digest": "00", "error": "device lost"}))
def test_any_json_is_a_digest_line_or_a_message_error(value: Any) -> None:
    try:
        line = api.DigestLine.from_json(value)
    except api.MessageError as error:
        assert str(error) or "error" in value
        return
    assert isinstance(line.offset, int)
    assert isinstance(line.length, int)
    assert isinstance(line.digest, str)
    assert "error" not in value


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 10.5, "1", True, None, [1], -1])
def test_a_digest_lines_numbers_are_numbers_of_bytes(number: Any) -> None:
    for field in ("offset", "length"):
        value = {"offset": 0, "length": 1, "digest": "00", field: number}
        with pytest.raises(api.MessageError):
            api.DigestLine.from_json(value)


def test_an_error_line_says_its_error() -> None:
    with pytest.raises(api.MessageError, match=r"^sda: no luck$"):
        api.DigestLine.from_json({"error": "sda: no luck"})


def test_a_control_address_comes_back() -> None:
    address = api.ControlAddress(10810, "4ea7")
    assert api.ControlAddress.from_contexts(("base:allocation", *address.contexts(), "qemu:dirty-bitmap:x")) == address


@pytest.mark.parametrize("port", ["", "0", "65536", "-1", "x", "²", "1e3", " 80", "9" * 5000])
def test_a_port_that_is_none_is_no_control_address(port: str) -> None:
    assert api.ControlAddress.from_contexts((f"targetmode:control={port}", "targetmode:session=s")) is None


@given(st.lists(st.text(max_size=20) | st.text(max_size=20).map(lambda text: f"targetmode:{text}"), max_size=5))
def test_any_contexts_are_an_address_or_none(contexts: list[str]) -> None:
    address = api.ControlAddress.from_contexts(tuple(contexts))
    assert address is None or 0 < address.port < 1 << 16


@given(st.text(min_size=1, max_size=20))
def test_an_exports_path_has_its_name_in_one_piece(name: str) -> None:
    path = api.digests_path(name)
    assert path.startswith("/v1/exports/")
    assert path.endswith("/digests")
    assert path.count("/") == 4
    assert path.isascii()
