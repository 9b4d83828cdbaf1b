"""Reader of safetensors files: a header of names, types, shapes and places, then raw numbers.

    8 bytes: length of the header, little-endian | header: JSON | numbers, without gaps

Reference: https://huggingface.co/docs/safetensors, "Format".
"""

import json
import math
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from fisher_jax import _checks

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(jnp.bfloat16),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
}
PREFIX, LONGEST_HEADER = 8, 100_000_000


def read(path: str) -> dict[str, np.ndarray]:
    """Arrays by name, read-only views of the mapped file: nothing is read before it is used, but all places are checked.

    Raises:
        ArgumentError: a length, type, shape or place that does not fit the file; numbers that overlap or leave gaps.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(PREFIX), "little")
        if size < PREFIX:
            raise _bad(path, f"it has {size} bytes")
        if length > min(size - PREFIX, LONGEST_HEADER):
            raise _bad(path, f"its header of {length} bytes, in a file of {size}")
        entries = _header(path, file.read(length))
    numbers = np.memmap(path, np.uint8, "r")[PREFIX + length :]
    places = {name: _place(path, name, entry, numbers.size) for name, entry in entries.items()}
    end = 0
    for name, (_, _, begin, stop) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise _bad(path, f"{_short(name)} begins at byte {begin}, where byte {end} is next: an overlap or a gap")
        end = stop
    if end != numbers.size:
        raise _bad(path, f"{numbers.size - end} bytes at its end belong to no array")
    return {
        name: numbers[begin:stop].view(dtype).reshape(shape).view(np.ndarray)
        for name, (dtype, shape, begin, stop) in places.items()
    }


def _header(path: str, text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"its header is no JSON ({type(error).__name__}: {' '.join(str(error).split())[:80]})") from error
    if not isinstance(entries, dict):
        raise _bad(path, "its header is no JSON object")
    return {name: entry for name, entry in entries.items() if name != "__metadata__"}


def _place(path: str, name: str, entry: Any, size: int) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """(dtype, shape, first byte, byte after the last) of an entry."""
    label = _short(name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, f"{label} has not just dtype, shape and data_offsets")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise _bad(path, f"{label} has dtype {_short(entry['dtype'])}, known are {', '.join(DTYPES)}")
    dtype, shape, offsets = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
    # NumPy has no shape of more than 32 sides in all its versions, and none beyond 2^63 bytes, even around a side of zero.
    if not _counts(shape) or len(shape) > 32 or math.prod(max(n, 1) for n in shape) >= 2**59:
        raise _bad(path, f"{label} has shape {_short(shape)}")
    if not _counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size:
        raise _bad(path, f"{label} has data_offsets {_short(offsets)} in {size} bytes of numbers")
    taken, needed = offsets[1] - offsets[0], math.prod(shape) * dtype.itemsize
    if taken != needed:
        raise _bad(path, f"{label} has {taken} bytes, {entry['dtype']}{shape} takes {needed}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _counts(value: Any) -> bool:
    """Is it a list of integers >= 0? JSON's true is none."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _short(value: Any) -> str:
    """What a file says, which may be of any length."""
    return text if len(text := ascii(value)) <= 80 else text[:77] + "..."


def _bad(path: str, what: str) -> _checks.ArgumentError:
    return _checks.fail("checkpoint", f"{path} is not a safetensors file: {what}", "get the file again, or write it anew")
