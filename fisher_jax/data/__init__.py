"""Data by name or from a file: `(x, y)` with x `(N, d)` or images, y integer labels or None."""

import gzip
import os
from importlib import resources
from typing import Any

import jax
import numpy as np

from fisher_jax import _checks

NAMES = ("digits", "gaussian", "spheres")
CIFAR_RECORD = 1 + 3 * 32 * 32


def load(
    source: str, *, samples: int | None = None, inputs: int = 64, classes: int = 10, key: jax.Array | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Inputs and labels.

    Args:
        source: "digits" (1797 real handwritten digits); "gaussian" (x ~ N(0, I)) or "spheres" (uniform on the sphere of
            radius √inputs), with random labels; or a file: `.npy` (inputs), `.npz` (arrays `x` and, if there are labels,
            `y`), MNIST `...images-idx3-ubyte[.gz]` (labels beside it), CIFAR-10 `.bin`. Arrays of `.npy` are memory-mapped.
        samples: the first so many; all unless given (1000 for random data).
        inputs, classes, key: of random data.

    Returns:
        x, float, `(N, ...)`; pixels are centred and scaled so that |x|²/d is one on average, arrays of yours are left as
        they are. y, integer `(N,)` or as in your file, or None.

    Raises:
        ArgumentError: unknown name, missing file, a file that is not what it says, samples out of range.
    """
    if source in ("gaussian", "spheres"):
        if key is None:
            raise _checks.fail("data", f"data={source!r} needs a key", "give key=jax.random.key(seed)")
        count = _checks.integer("data", "samples", 1000 if samples is None else samples, 1)
        return _random(source, count, _checks.integer("data", "inputs", inputs, 1), classes, key)
    x, y = _read(source)
    if y is not None and len(y) != len(x):
        raise _checks.fail("data", f"{source} has {len(x)} inputs and {len(y)} labels", "give one label per input")
    if samples is not None:
        count = _checks.integer("data", "samples", samples, 1, len(x))
        x, y = x[:count], None if y is None else y[:count]
    return (standardize(x) if x.dtype == np.uint8 else x), y


def split(x: Any, y: Any, test: float, key: jax.Array) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """((x, y) for training, (x, y) to test on): a random share `test` of the samples is held out; both in random order."""
    if isinstance(test, bool) or not isinstance(test, (int, float)) or not 0 < test < 1:
        raise _checks.fail("data", f"test={test!r} is no share", "give a number between 0 and 1, such as 0.2")
    order = np.asarray(jax.random.permutation(key, len(x)))
    held = round(test * len(x))
    if not 0 < held < len(x):
        raise _checks.fail("data", f"test={test!r} of {len(x)} samples leaves none", "give more samples, or another share")
    parts = order[held:], order[:held]
    first, second = ((x[part], None if y is None else y[part]) for part in parts)
    return first, second


def standardize(pixels: np.ndarray) -> np.ndarray:
    """Pixels minus the mean image, over one number for all, so that |x|²/d is one on average; float32."""
    x = pixels.astype(np.float32)
    x -= x.mean(axis=0)
    scale = np.sqrt(np.mean(np.square(x, dtype=np.float32), dtype=np.float64))
    return x / np.float32(scale if scale > 0 else 1.0)


def _random(source: str, count: int, inputs: int, classes: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    k_x, k_y = jax.random.split(key)
    x = np.asarray(jax.random.normal(k_x, (count, inputs)))
    if source == "spheres":
        x = x * np.sqrt(inputs) / np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32), np.asarray(jax.random.randint(k_y, (count,), 0, classes))


def _read(source: str) -> tuple[np.ndarray, np.ndarray | None]:
    if source == "digits":
        with resources.files("fisher_jax.data").joinpath("digits.npz").open("rb") as raw, np.load(raw) as file:
            return file["images"].reshape(-1, 64), file["labels"].astype(np.int32)
    if not os.path.exists(source):
        known = ", ".join(NAMES)
        raise _checks.fail("data", f"data={source!r} is neither a name nor a file", f"choose {known}, or an existing file")
    name = os.path.basename(source)
    try:
        if name.endswith(".npy"):
            return _numeric(source, np.load(source, mmap_mode="r", allow_pickle=False)), None
        if name.endswith(".npz"):
            return _read_npz(source)
        if "idx" in name:
            return _read_idx(source), _read_idx_labels(source)
        if name.endswith(".bin"):
            return _read_cifar(source)
    except _checks.ArgumentError:
        raise
    except Exception as error:
        # NumPy takes what it does not recognize for a pickle, which is never loaded.
        reason = "not a NumPy file, or one with Python objects" if "pickle" in str(error) else str(error).splitlines()[0]
        raise _checks.fail("data", f"{source} cannot be read ({reason})", "check the file") from error
    raise _checks.fail("data", f"{source} has no known format", "give .npy, .npz, an idx file or a CIFAR-10 .bin file")


def _numeric(source: str, x: np.ndarray) -> np.ndarray:
    if x.ndim < 2 or not (np.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer)):
        raise _checks.fail("data", f"{source} holds {x.dtype}{list(x.shape)}", "give numbers with axes (samples, features)")
    return x if x.dtype == np.uint8 or np.issubdtype(x.dtype, np.floating) else x.astype(np.float32)


def _read_npz(source: str) -> tuple[np.ndarray, np.ndarray | None]:
    with np.load(source, allow_pickle=False) as file:
        if "x" not in file.files:
            raise _checks.fail("data", f"{source} has arrays {file.files}", "name the inputs x and the labels y")
        return _numeric(source, file["x"]), file["y"] if "y" in file.files else None


def _read_idx(source: str) -> np.ndarray:
    """The IDX format of MNIST: magic 0, 0, type (8: uint8), rank; then big-endian sizes; then the bytes."""
    opener: Any = gzip.open if source.endswith(".gz") else open
    with opener(source, "rb") as file:
        raw = file.read()
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise _checks.fail("data", f"{source} does not begin like an idx file of bytes", "give MNIST's original files")
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    offset = 4 + 4 * raw[3]
    if len(raw) - offset != np.prod(shape, dtype=np.int64):
        raise _checks.fail("data", f"{source} has {len(raw) - offset} bytes for shape {shape.tolist()}", "download it again")
    return np.frombuffer(raw, np.uint8, offset=offset).reshape(shape)


def _read_idx_labels(source: str) -> np.ndarray | None:
    labels = source.replace("images", "labels").replace("idx3", "idx1")
    return _read_idx(labels).astype(np.int32) if labels != source and os.path.exists(labels) else None


def _read_cifar(source: str) -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10 binary: one label byte and 3 x 32 x 32 pixel bytes per record; images as (N, 32, 32, 3)."""
    raw = np.fromfile(source, np.uint8)
    if raw.size == 0 or raw.size % CIFAR_RECORD:
        raise _checks.fail("data", f"{source} has {raw.size} bytes, no multiple of {CIFAR_RECORD}", "download it again")
    table = raw.reshape(-1, CIFAR_RECORD)
    return table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), table[:, 0].astype(np.int32)
