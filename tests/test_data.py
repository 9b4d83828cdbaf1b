import gzip

import jax
import numpy as np
import pytest

import fisher_jax as fj


def test_digits_are_the_real_ones():
    from sklearn.datasets import load_digits

    from fisher_jax import data

    pixels, labels = data._read("digits")
    bunch = load_digits()
    assert np.array_equal(pixels, bunch.data) and np.array_equal(labels, bunch.target)
    x, y = data.load("digits")
    assert x.shape == (1797, 64) and x.dtype == np.float32 and y.dtype == np.int32
    assert np.mean(x.astype(np.float64) ** 2) == pytest.approx(1, rel=1e-5) and np.abs(x.mean(0)).max() < 1e-5


def test_random_data():
    key = jax.random.key(0)
    x, y = fj.data.load("gaussian", samples=4000, inputs=8, key=key)
    assert x.shape == (4000, 8) and abs(x.std() - 1) < 0.02 and set(y) == set(range(10))
    x, _ = fj.data.load("spheres", samples=50, inputs=8, key=key)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), np.sqrt(8), rtol=1e-5)
    with pytest.raises(fj.ArgumentError, match="data='gaussian' needs a key"):
        fj.data.load("gaussian")


def test_arrays_of_yours(tmp_path):
    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    loaded, y = fj.data.load(str(tmp_path / "x.npy"), samples=4)
    assert isinstance(loaded.base, np.memmap) or isinstance(loaded, np.memmap)
    assert np.array_equal(loaded, x[:4]) and y is None
    np.savez(tmp_path / "xy.npz", x=x, y=np.arange(10))
    loaded, y = fj.data.load(str(tmp_path / "xy.npz"))
    assert np.array_equal(loaded, x) and np.array_equal(y, np.arange(10))


@pytest.mark.parametrize("ending, opener", [("", open), (".gz", gzip.open)])
def test_mnist_idx(tmp_path, ending, opener):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", np.arange(5, dtype=np.uint8))):
        with opener(tmp_path / f"train-{name}-ubyte{ending}", "wb") as file:
            sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
            file.write(b"\0\0\x08" + bytes([array.ndim]) + sizes + array.tobytes())
    x, y = fj.data.load(str(tmp_path / f"train-images-idx3-ubyte{ending}"))
    assert x.shape == (5, 28, 28) and np.array_equal(y, np.arange(5))
    np.testing.assert_allclose(x, fj.data.standardize(images))
    assert np.corrcoef(x[1].ravel() - x[0].ravel(), images[1].ravel() - images[0].astype(float).ravel())[0, 1] > 0.999999


def test_cifar_bin(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (4, 3, 32, 32)).astype(np.uint8), np.array([3, 1, 4, 1], np.uint8)
    table = np.concatenate([labels[:, None], images.reshape(4, -1)], axis=1)
    table.tofile(tmp_path / "batch.bin")
    x, y = fj.data.load(str(tmp_path / "batch.bin"))
    assert x.shape == (4, 32, 32, 3) and np.array_equal(y, labels)
    np.testing.assert_allclose(x, fj.data.standardize(images.transpose(0, 2, 3, 1)))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("missing.npy", None, "is neither a name nor a file; choose digits, gaussian, spheres"),
        ("a.txt", b"hello", "has no known format"),
        ("a.npy", b"hello", "a.npy cannot be read"),
        ("a-idx3-ubyte", b"\0\0\x08\x03" + b"\0\0\0\2" * 3 + b"1234", r"has 4 bytes for shape \[2, 2, 2\]"),
        ("b-idx3-ubyte", b"nonsense", "does not begin like an idx file"),
        ("a.bin", b"12345", "has 5 bytes, no multiple of 3073"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(fj.ArgumentError, match=message):
        fj.data.load(str(tmp_path / name))


def test_bad_arrays(tmp_path):
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(fj.ArgumentError, match=r"o.npy cannot be read"):
        fj.data.load(str(tmp_path / "o.npy"))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(fj.ArgumentError, match=r"holds float64\[3\]"):
        fj.data.load(str(tmp_path / "one.npy"))
    np.savez(tmp_path / "z.npz", a=np.zeros((3, 2)))
    with pytest.raises(fj.ArgumentError, match=r"has arrays \['a'\]; name the inputs x"):
        fj.data.load(str(tmp_path / "z.npz"))
    np.savez(tmp_path / "z.npz", x=np.zeros((3, 2)), y=np.zeros(2))
    with pytest.raises(fj.ArgumentError, match="3 inputs and 2 labels"):
        fj.data.load(str(tmp_path / "z.npz"))
    with pytest.raises(fj.ArgumentError, match="samples=4000 exceeds 1797"):
        fj.data.load("digits", samples=4000)
