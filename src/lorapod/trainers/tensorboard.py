"""Scalars out of a TensorBoard file while it grows, without TensorBoard.

The file is a row of records (length, its checksum, data, its checksum; TFRecord); the data is a protobuf message `Event`.
Only what a scalar needs is read: `Event.step` (2), `Event.summary` (5) with `Summary.value` (1): `tag` (1),
`simple_value` (2). Checksums are not looked at: what is not whole yet is read the next time. Not covered: scalars as
tensors.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Scalar(NamedTuple):
    """One value."""

    step: int
    tag: str
    value: float


class EventFile:
    """Reads a file as it grows, each record once."""

    def __init__(self, path: Path) -> None:
        self.path, self._place = path, 0

    def new(self) -> list[Scalar]:
        """Scalars that were written since the last call; values that are no numbers are left out."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._place)
                data = file.read()
        except OSError:
            return []
        found: list[Scalar] = []
        at = 0
        while len(data) - at >= 12:
            (length,) = struct.unpack_from("<Q", data, at)
            if at + 16 + length > len(data):
                break
            with contextlib.suppress(IndexError, struct.error, UnicodeDecodeError):  # a record of another kind
                found += _scalars(data[at + 12 : at + 12 + length])
            at += 16 + length
        self._place += at
        return [scalar for scalar in found if math.isfinite(scalar.value)]


def _scalars(message: bytes) -> Iterator[Scalar]:
    step, summaries = 0, []
    for number, value in _fields(message):
        if number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and isinstance(value, bytes):
            summaries.append(value)
    for summary in summaries:
        for number, value in _fields(summary):
            if number != 1 or not isinstance(value, bytes):
                continue
            held = dict(_fields(value))
            tag, scalar = held.get(1), held.get(2)
            if isinstance(tag, bytes) and isinstance(scalar, float):
                yield Scalar(step, tag.decode("utf-8"), scalar)


def _fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Fields of a protobuf message: number and value."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _number(message, at)
            yield key >> 3, value
        elif kind == 1:
            yield key >> 3, struct.unpack_from("<d", message, at)[0]
            at += 8
        elif kind == 2:
            length, at = _number(message, at)
            yield key >> 3, message[at : at + length]
            at += length
        elif kind == 5:
            yield key >> 3, struct.unpack_from("<f", message, at)[0]
            at += 4
        else:
            return


def _number(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
