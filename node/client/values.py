"""Python values as the bytes that agents take and give: the rules of `relaymesh.agent`, seen from the other side."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from typing import Any, Union

import msgspec

from node.client.outcomes import ResultTypeError

UNTYPED: Any = object()
"""No type was named: text where the result is UTF-8, else bytes."""


def encode_input(value: object) -> bytes:
    """Text as UTF-8, bytes as they are, anything else as JSON. TypeError for what JSON cannot hold."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise TypeError(f"an input of type {type(value).__name__} cannot become JSON: {error}") from error


def decode_result(content: bytes, wanted: Any) -> Any:
    """The result as `wanted`: `str` and `bytes` as they came, `None` for an empty one, anything else from JSON.

    Of a union with `str` or `bytes` the other members go first. ResultTypeError when it does not fit.
    """
    try:
        return _decode(content, wanted)
    except (msgspec.DecodeError, UnicodeDecodeError, TypeError) as error:
        raise ResultTypeError(f"the result does not fit {_name(wanted)}: {error}", content) from error


def return_type(function: Callable[..., Any]) -> Any:
    """What a function says it returns; UNTYPED when it says nothing, or something that has no meaning at run time."""
    try:
        return typing.get_type_hints(function, include_extras=True).get("return", UNTYPED)
    except NameError:
        return UNTYPED  # a name imported only for type checkers


def _decode(content: bytes, wanted: Any) -> Any:
    if wanted is UNTYPED:
        try:
            return content.decode()
        except UnicodeDecodeError:
            return content
    if wanted is bytes:
        return content
    if wanted is str:
        return content.decode()
    if wanted is None or wanted is types.NoneType:
        return None if not content else msgspec.json.decode(content, type=None)
    members = typing.get_args(wanted) if typing.get_origin(wanted) in (Union, types.UnionType) else ()
    if not content and types.NoneType in members:
        return None  # a handler's None is stored as nothing
    raw = next((member for member in members if member in (str, bytes)), None)
    if raw is None:
        return msgspec.json.decode(content, type=wanted)
    others = tuple(member for member in members if member not in (str, bytes, types.NoneType))
    if others:
        try:
            return msgspec.json.decode(content, type=Union[others])  # noqa: UP007  (members known at run time only)
        except msgspec.DecodeError:
            return _decode(content, raw)
    return _decode(content, raw)


def _name(wanted: Any) -> str:
    return wanted.__name__ if isinstance(wanted, type) else str(wanted)
