"""Weights of our own and of others: what is read, how it is refused, and published layouts against NumPy forward passes."""

import json
import math
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fisher_jax as fj
from fisher_jax.models import Source, load_weights, safetensors, save_weights

RNG = np.random.default_rng(0)
TYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "uint8": "U8", "bool": "BOOL"}


def pack(header, numbers=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def write(path, arrays):
    """A safetensors file, from the published description of the format."""
    header, numbers = {"__metadata__": {"format": "pt"}}, b""
    for name, a in arrays.items():
        new = numbers + np.ascontiguousarray(a).tobytes()
        header[name] = {"dtype": TYPES[a.dtype.name], "shape": list(a.shape), "data_offsets": [len(numbers), len(new)]}
        numbers = new
    path.write_bytes(pack(header, numbers))
    return path


def normal(*shape, scale=1.0):
    return (scale * RNG.normal(size=shape)).astype(np.float32)


def everything(model):
    """Parameters and statistics by path, copied."""
    state = nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    flat = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.array(a) for path, a in flat}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def close(ours, theirs, dtype):
    """1e-5 of the largest number in float32; in float64 only rounding is left."""
    assert np.asarray(ours).dtype == dtype and np.abs(theirs).max() > 0.1
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error < {"float32": 1e-5, "float64": 1e-12}[dtype], error


# --- our own files ----------------------------------------------------------------------------------------------------


def normed(seed):
    """A network with batch norms and a running mean of the outputs, whose statistics are those of some data."""
    options = {"norm": "batch", "output_norm": "mean"}
    model = fj.models.build("resmlp", inputs=4, outputs=2, depth=2, key=jax.random.key(seed), **options)
    model.train()
    model(jnp.asarray(1 + 2 * np.random.default_rng(seed).normal(size=(8, 4)), jnp.float32))
    model.eval()
    return model


@pytest.mark.parametrize("name", ["weights.npz", "orbax"])
def test_running_statistics_are_saved_and_loaded(name, tmp_path):
    source, target, x = normed(0), normed(1), normal(3, 4)
    save_weights(source, tmp_path / name)
    statistics = [n for n in everything(source) if n.endswith(("/mean", "/var"))]
    assert len(statistics) == 5 and not any(np.array_equal(everything(source)[n], everything(target)[n]) for n in statistics)
    load_weights(target, tmp_path / name)
    assert same(everything(source), everything(target)) and np.array_equal(source(x), target(x))


def test_missing_statistics_are_named(tmp_path):
    model = normed(0)
    before = everything(model)
    np.savez(tmp_path / "w.npz", **{n: 2 * a for n, a in before.items() if not n.endswith(("/mean", "/var"))})
    with pytest.raises(fj.ArgumentError, match=r"lacks blocks/0/norm/mean, blocks/0/norm/var, .*, output_norm/mean; give"):
        load_weights(model, tmp_path / "w.npz")
    assert same(before, everything(model))


def test_bfloat16_survives_numpys_format(tmp_path):
    source, target = (nnx.Linear(3, 2, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    save_weights(source, tmp_path / "w.npz")
    load_weights(target, tmp_path / "w.npz")
    assert target.kernel.dtype == jnp.bfloat16 and same(everything(source), everything(target))


def test_safetensors_is_not_written(tmp_path):
    with pytest.raises(fj.ArgumentError, match=r"this format is only read; give an \.npz"):
        save_weights(normed(0), tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


# --- the safetensors format -------------------------------------------------------------------------------------------


def test_every_type_is_read_to_the_bit(tmp_path):
    arrays = {name: (100 * RNG.normal(size=(2, 3))).astype(name) for name in TYPES}
    arrays |= {"scalar": np.float32(2.5).reshape(()), "none": np.zeros((0, 3), np.float32), "line\nbreak": np.arange(2)}
    found = safetensors.read(str(write(tmp_path / "w.safetensors", arrays)))
    assert same(arrays, found) and all(found[n].dtype == a.dtype for n, a in arrays.items())
    assert not found["float32"].flags.owndata and not found["float32"].flags.writeable
    # A bfloat16 is the upper half of a float32; 8-bit numbers of 1.5: sign, exponent, mantissa 0 0111 100 and 0 01111 10.
    half = normal(4).view(np.uint32) >> 16
    header = {"b": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}
    header |= {"e4": {"dtype": "F8_E4M3", "shape": [], "data_offsets": [8, 9]}}
    header |= {"e5": {"dtype": "F8_E5M2", "shape": [1], "data_offsets": [9, 10]}}
    path = tmp_path / "b.safetensors"
    path.write_bytes(
        pack(json.dumps(header).encode() + b"   ", half.astype("<u2").tobytes() + bytes([0b00111100, 0b00111110]))
    )
    found = safetensors.read(str(path))
    assert np.array_equal(found["b"].astype(np.float32), (half << 16).view(np.float32))
    assert found["e4"].astype(np.float32) == 1.5 and found["e5"].astype(np.float32)[0] == 1.5


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)} | more


DAMAGED = {
    "empty": (b"", "it has 0 bytes"),
    "too short": (b"\x02\0\0\0", "it has 4 bytes"),
    "header longer than the file": (struct.pack("<Q", 99) + b"{}", "its header of 99 bytes, in a file of 10"),
    "huge header": (struct.pack("<Q", 2**64 - 1) + b"{}", "its header of 18446744073709551615 bytes"),
    "no JSON": (pack(b"hello"), "its header is no JSON"),
    "no UTF-8": (pack(b'{"\xff": 1}'), "its header is no JSON"),
    "deep JSON": (pack(b"[" * 100_000), "its header is no JSON"),
    "a list": (pack([]), "its header is no JSON object"),
    "name twice": (pack(b'{"a": 1, "a": 1}'), "a name occurs twice"),
    "no entry": (pack({"a": 3}), "'a' has not just dtype, shape and data_offsets"),
    "more in an entry": (pack({"a": entry(strides=[1])}, bytes(8)), "'a' has not just dtype"),
    "unknown type": (pack({"a": entry("F31")}, bytes(8)), "'a' has dtype 'F31', known are BOOL, U8"),
    "type is a list": (pack({"a": entry(["F32"])}, bytes(8)), r"'a' has dtype \['F32'\]"),
    "wrong type": (pack({"a": entry("F64")}, bytes(8)), r"'a' has 8 bytes, F64\[2\] takes 16"),
    "wrong shape": (pack({"a": entry(shape=(3,))}, bytes(8)), r"'a' has 8 bytes, F32\[3\] takes 12"),
    "negative side": (pack({"a": entry(shape=(-2, -1))}, bytes(8)), r"'a' has shape \[-2, -1\]"),
    "fraction of a side": (pack({"a": entry(shape=(2.0,))}, bytes(8)), r"'a' has shape \[2.0\]"),
    "true as a side": (pack({"a": entry(shape=(True, 2))}, bytes(8)), r"'a' has shape \[True, 2\]"),
    "huge beside zero": (pack({"a": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))}), "'a' has shape"),
    "many sides": (pack({"a": entry(shape=[1] * 99, offsets=(0, 4))}, bytes(4)), r"'a' has shape \[1, 1, .*\.\.\."),
    "beyond the end": (pack({"a": entry(offsets=(4, 12))}, bytes(8)), r"'a' has data_offsets \[4, 12\] in 8 bytes"),
    "backwards": (pack({"a": entry(offsets=(8, 0))}, bytes(8)), "'a' has data_offsets"),
    "before the start": (pack({"a": entry(offsets=(-8, 0))}, bytes(8)), "'a' has data_offsets"),
    "one offset": (pack({"a": entry(offsets=(8,))}, bytes(8)), "'a' has data_offsets"),
    "overlap": (pack({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "'b' begins at byte 4, where byte 8 is next"),
    "the same place": (pack({"a": entry(), "b": entry()}, bytes(8)), "'b' begins at byte 0, where byte 8 is next"),
    "gap": (pack({"a": entry(), "b": entry(offsets=(9, 17))}, bytes(17)), "'b' begins at byte 9, where byte 8 is next"),
    "more bytes": (pack({"a": entry()}, bytes(9)), "1 bytes at its end belong to no array"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused_on_one_line(name, tmp_path):
    content, message = DAMAGED[name]
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    with pytest.raises(fj.ArgumentError, match=message) as caught:
        load_weights(model, path)
    assert "w.safetensors is not a safetensors file: " in str(caught.value) and "\n" not in str(caught.value)


def test_no_damage_gets_through(tmp_path):
    """Every truncation is refused; a changed byte of the header is refused or read, but never ends in another error."""
    good = write(tmp_path / "w.safetensors", {"a": normal(2, 3), "b": normal(4)}).read_bytes()
    header, path, refused = 8 + struct.unpack("<Q", good[:8])[0], tmp_path / "x.safetensors", 0
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(fj.ArgumentError, match="is not a safetensors file"):
            safetensors.read(str(path))
    for at in range(header):
        for byte in RNG.integers(0, 256, 3, dtype=np.uint8):
            path.write_bytes(good[:at] + bytes([byte]) + good[at + 1 :])
            try:
                safetensors.read(str(path))
            except fj.ArgumentError:
                refused += 1
    assert refused > header


# --- names and shapes -------------------------------------------------------------------------------------------------


class Foreign(nnx.Module):
    """Shapes that other libraries keep otherwise: heads, a convolution, a readout of a flattened image."""

    def __init__(self):
        def zeros(*shape):
            return nnx.Param(jnp.zeros(shape))

        self.blocks = nnx.List([nnx.Dict(query=zeros(4, 2, 3), key=zeros(4, 2, 3), out=zeros(2, 3, 4)) for _ in range(2)])
        self.conv, self.readout, self.scale = zeros(3, 2, 4, 5), zeros(2 * 3 * 4, 5), zeros(4)


FUSED = {"transpose": (1, 0), "reshape": True}
NAMES = {
    "blocks/{i}/query": Source("layer.{i}.{i}.in", part=(0, 2), axis=0, **FUSED),
    "blocks/{i}/key": Source("layer.{i}.{i}.in", part=(1, 2), axis=0, **FUSED),
    "blocks/{i}/{what}": Source("layer.{i}.{what}", **FUSED),
    "conv": Source("conv.weight", transpose=(2, 3, 1, 0)),
    "readout": Source("fc.weight", shape=(-1, 4, 2, 3), transpose=(2, 3, 1, 0), reshape=True),
}


def foreign():
    arrays = {f"layer.{i}.{i}.in": normal(12, 4) for i in range(2)} | {f"layer.{i}.out": normal(4, 6) for i in range(2)}
    return arrays | {"conv.weight": normal(5, 4, 3, 2), "fc.weight": normal(5, 24), "scale": normal(4)}


@pytest.mark.parametrize("kind", ["map", "function"])
def test_names_and_layouts(kind, tmp_path):
    arrays, model = foreign(), Foreign()
    names = NAMES
    if kind == "function":

        def names(path):
            step = path.split("/")
            if step[0] != "blocks":
                return NAMES.get(path)
            if step[2] == "out":
                return Source(f"layer.{step[1]}.out", **FUSED)
            return Source(f"layer.{step[1]}.{step[1]}.in", part=(["query", "key"].index(step[2]), 2), axis=0, **FUSED)

    load_weights(model, write(tmp_path / "w.safetensors", arrays), names=names)
    # One number at a time, from where it must be.
    for i in range(2):
        block, fused, out = model.blocks[i], arrays[f"layer.{i}.{i}.in"], arrays[f"layer.{i}.out"]
        for a, h, d in np.ndindex(4, 2, 3):
            assert block.query[...][a, h, d] == fused[3 * h + d, a]
            assert block.key[...][a, h, d] == fused[6 + 3 * h + d, a]
            assert block.out[...][h, d, a] == out[a, 3 * h + d]
    for y, x, a, b in np.ndindex(3, 2, 4, 5):
        assert model.conv[...][y, x, a, b] == arrays["conv.weight"][b, a, y, x]
    for y, x, a, b in np.ndindex(2, 3, 4, 5):
        assert model.readout[...][(3 * y + x) * 4 + a, b] == arrays["fc.weight"][b, (2 * a + y) * 3 + x]
    assert np.array_equal(model.scale[...], arrays["scale"])


def test_all_errors_at_once_and_nothing_changed(tmp_path):
    arrays, model = foreign(), Foreign()
    nnx.update(model, jax.tree.map(lambda a: a + 1, nnx.state(model)))
    before = everything(model)
    del arrays["layer.1.out"]
    arrays["layer.0.0.in"] = normal(11, 4)
    arrays["layer.0.out"] = normal(4, 7)
    arrays["conv.weight"] = normal(5, 4, 2, 3)
    arrays["fc.weight"][0, :3] = np.nan, np.inf, -np.inf
    arrays["scale"] = np.ones(4, bool)
    arrays |= {"bad\nname": normal(1), "more.0": normal(1), "more.1": normal(1)}
    path = write(tmp_path / "w.safetensors", arrays)
    with pytest.raises(fj.ArgumentError) as caught:
        load_weights(model, path, names=NAMES, ignore="more.*")
    source = "Source(name='layer.0.0.in', part=(0, 2), axis=0, shape=None, transpose=(1, 0), reshape=True)"
    for text in (
        "w.safetensors lacks layer.1.out (for blocks/1/out); has unknown 'bad\\nname'; misfits: layer.0.0.in (for ",
        f"layer.0.0.in (for blocks/0/query) is float32[11, 4], the model has [4, 2, 3]: no {source}",
        "layer.0.out (for blocks/0/out) is float32[4, 7], the model has [2, 3, 4]",
        "conv.weight (for conv) is float32[5, 4, 2, 3], read as [2, 3, 4, 5], the model has [3, 2, 4, 5]",
        "scale is bool[4], the model has float32[4]",
        "; not finite: fc.weight (for readout) has 3 NaN or infinite value(s) among 120",
        "names=, layout=, ignore=",
    ):
        assert text in str(caught.value), text
    assert "\n" not in str(caught.value) and "more" not in str(caught.value) and same(before, everything(model))
    with pytest.raises(fj.ArgumentError, match=r"has unknown 'bad\\nname', more\.0, more\.1;"):
        load_weights(model, path, names=NAMES)


def test_parts_that_nothing_takes_and_fields_that_are_not_there(tmp_path):
    model = nnx.Dict(a=nnx.Param(jnp.zeros(2)))
    path = write(tmp_path / "w.safetensors", {"ab": normal(4)})
    with pytest.raises(fj.ArgumentError, match="has unknown ab"):
        load_weights(model, path, names={"a": Source("ab", part=(0, 2))})
    load_weights(model, path, names={"a": Source("ab", part=(1, 2))}, ignore=["ab"])
    with pytest.raises(fj.ArgumentError, match=r"names\['a'\]='x\{i\}' has \{i\}; use fields of the pattern only"):
        load_weights(model, path, names={"a": "x{i}"})
    for part in ((2, 2), (-1, 2)):
        with pytest.raises(fj.ArgumentError, match=r"part=.* of ab; give \(i, n\)"):
            Source("ab", part=part)
    with pytest.raises(fj.ArgumentError, match="name=3 is no name"):
        load_weights(model, path, names={"a": 3})
    # A field that occurs twice is the same text twice.
    twins = nnx.Dict(a=nnx.Dict(a=nnx.Param(jnp.zeros(2)), b=nnx.Param(jnp.zeros(2))))
    file = write(tmp_path / "twins.safetensors", {"twin.a": normal(2), "a/b": normal(2)})
    load_weights(twins, file, names={"{x}/{x}": "twin.{x}"})
    for names in ({"a": Source("ab", part=(0, 2), axis=2)}, {"a": Source("ab", transpose=(1, 0))}):
        with pytest.raises(fj.ArgumentError, match=r"ab \(for a\) is float32\[4\], the model has \[2\]: no Source"):
            load_weights(model, path, names=names, ignore="ab")


def test_types_are_rounded_but_never_truncated(tmp_path):
    model = nnx.Dict(a=nnx.Param(jnp.zeros(2)), n=nnx.Param(jnp.zeros(2, jnp.int32)))

    def load(**arrays):
        np.savez(tmp_path / "w.npz", **arrays)
        load_weights(model, tmp_path / "w.npz")

    load(a=np.array([0.1, 3], ">f8"), n=np.array([1, 2]))
    assert np.array_equal(model["a"][...], np.float32([0.1, 3])) and np.array_equal(model["n"][...], [1, 2])
    for a, n, message in (
        (np.zeros(2), np.zeros(2), r"n is float64\[2\], the model has int32\[2\]"),
        (np.zeros(2, complex), np.zeros(2, int), r"a is complex128\[2\], the model has float32\[2\]"),
        (np.array(["1", "2"]), np.zeros(2, int), r"a is <U1\[2\], the model has float32\[2\]"),
        (
            np.array([1e39, 0]),
            np.zeros(2, int),
            r"not finite: a has 1 NaN or infinite value\(s\) among 2; load weights without",
        ),
    ):
        with pytest.raises(fj.ArgumentError, match=message):
            load(a=a, n=n)
    assert np.array_equal(model["a"][...], np.float32([0.1, 3])) and np.array_equal(model["n"][...], [1, 2])


# --- GPT-2 ------------------------------------------------------------------------------------------------------------

WIDTH, HEADS, VOCABULARY, CONTEXT = 8, 2, 11, 6


def gpt2_weights(depth=2):
    """Under the names of Hugging Face's GPT2Model, with its buffers; all of order one."""
    shapes = {
        "wte.weight": (VOCABULARY, WIDTH),
        "wpe.weight": (CONTEXT, WIDTH),
        "ln_f.weight": (WIDTH,),
        "ln_f.bias": (WIDTH,),
    }
    for i in range(depth):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{norm}.weight": (WIDTH,), f"h.{i}.{norm}.bias": (WIDTH,)}
        for layer, a, b in (("attn.c_attn", 1, 3), ("attn.c_proj", 1, 1), ("mlp.c_fc", 1, 4), ("mlp.c_proj", 4, 1)):
            shapes |= {f"h.{i}.{layer}.weight": (a * WIDTH, b * WIDTH), f"h.{i}.{layer}.bias": (b * WIDTH,)}
    weights = {name: normal(*shape, scale=0.5) for name, shape in shapes.items()}
    mask = np.tril(np.ones((1, 1, CONTEXT, CONTEXT), np.uint8))
    return (
        weights | {f"h.{i}.attn.bias": mask for i in range(depth)} | {"h.0.attn.masked_bias": np.float32(-1e4).reshape(())}
    )


def gpt2_forward(weights, tokens, depth=2, readout="wte.weight"):
    """Logits of one sequence, as GPT2LMHeadModel defines them, in float64."""
    w = {name: a.astype(np.float64) for name, a in weights.items()}

    def norm(h, name):
        mean, variance = h.mean(-1, keepdims=True), h.var(-1, keepdims=True)
        return (h - mean) / np.sqrt(variance + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def conv1d(h, name):
        return h @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu_new(u):
        return 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))

    T, size = len(tokens), WIDTH // HEADS
    h = w["wte.weight"][tokens] + w["wpe.weight"][:T]
    for i in range(depth):
        query, key, value = np.split(conv1d(norm(h, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, axis=1)
        heads = []
        for j in range(HEADS):
            part = slice(j * size, (j + 1) * size)
            scores = query[:, part] @ key[:, part].T / math.sqrt(size)
            attention = np.zeros((T, T))
            for t in range(T):
                e = np.exp(scores[t, : t + 1])
                attention[t, : t + 1] = e / e.sum()
            heads.append(attention @ value[:, part])
        h = h + conv1d(np.concatenate(heads, axis=1), f"h.{i}.attn.c_proj")
        h = h + conv1d(gelu_new(conv1d(norm(h, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")), f"h.{i}.mlp.c_proj")
    return norm(h, "ln_f") @ w[readout].T


def gpt(**options):
    sizes = {"inputs": CONTEXT, "outputs": VOCABULARY, "width": WIDTH, "heads": HEADS, "depth": 2}
    return fj.models.build("gpt", key=jax.random.key(1), **sizes | options)


TOKENS = RNG.integers(0, VOCABULARY, (2, 5)).astype(np.int32)


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2_computes_the_published_function(prefix, dtype, tmp_path):
    weights = gpt2_weights()
    path = write(tmp_path / "model.safetensors", {prefix + name: a for name, a in weights.items()})
    model = gpt()
    load_weights(model, path, layout="gpt2")
    close(jax.jit(model)(TOKENS), np.stack([gpt2_forward(weights, row) for row in TOKENS]), dtype)


def test_gpt2_with_a_readout_of_its_own(tmp_path):
    weights = gpt2_weights() | {"lm_head.weight": normal(VOCABULARY, WIDTH)}
    path = write(tmp_path / "m.safetensors", {n if "lm" in n else f"transformer.{n}": a for n, a in weights.items()})
    model = gpt(tied=False)
    load_weights(model, path, layout="gpt2")
    theirs = np.stack([gpt2_forward(weights, row, readout="lm_head.weight") for row in TOKENS])
    close(jax.jit(model)(TOKENS), theirs, "float32")
    with pytest.raises(fj.ArgumentError, match=r"has unknown lm_head\.weight;"):
        load_weights(gpt(), path, layout="gpt2")


def test_layouts_refuse_other_functions(tmp_path):
    path = write(tmp_path / "m.safetensors", gpt2_weights())
    both = write(tmp_path / "both.safetensors", {"wte.weight": normal(1), "transformer.wte.weight": normal(1)})
    for model, file, layout, message in (
        (gpt(activation="gelu"), path, "gpt2", "for another activation than gelu-tanh; build with activation='gelu-tanh'"),
        (gpt(skip=False), path, "gpt2", "without pre-norm or skips; build with norm='pre', skip=True"),
        (gpt(norm="post"), path, "gpt2", "without pre-norm or skips; build with norm='pre', skip=True"),
        (
            gpt(),
            path,
            "torchvision-resnet",
            "layout='torchvision-resnet' of the model GPT; build the model 'imagenet_resnet'",
        ),
        (gpt(), path, "gpt3", "layout='gpt3' is unknown; choose among gpt2, torchvision-resnet"),
        (gpt(), both, "gpt2", "has names with and without 'transformer.'; give a file of one network"),
        (
            gpt(),
            path,
            None,
            "lacks blocks/0/attention/out/bias, .* and 20 more; has unknown wte.weight, .* and 23 more; give",
        ),
        (gpt(depth=1), path, "gpt2", r"has unknown h\.1\.ln_1\.weight"),
    ):
        before = everything(model)
        with pytest.raises(fj.ArgumentError, match=message):
            load_weights(model, file, layout=layout)
        assert same(before, everything(model))


def test_names_go_before_the_layout(tmp_path):
    weights = gpt2_weights()
    weights["embedding"] = weights.pop("wte.weight").T
    model = gpt()
    names = {"tokens": Source("embedding", transpose=(1, 0))}
    load_weights(model, write(tmp_path / "m.safetensors", weights), layout="gpt2", names=names)
    assert np.array_equal(model.tokens[...], weights["embedding"].T)


# --- torchvision's residual networks ----------------------------------------------------------------------------------

STAGES = {10: (1, 1, 1, 1), 14: (1, 1, 1, 1), 18: (2, 2, 2, 2), 26: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
STAGES |= {101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def resnet_shapes(depth, width=64, channels=3, classes=1000):
    """Names and shapes of torchvision's ResNet: BasicBlock for depths 10, 18, 34, else Bottleneck."""
    basic = depth in (10, 18, 34)
    shapes = {}

    def conv(name, outputs, inputs, size):
        shapes[f"{name}.weight"] = (outputs, inputs, size, size)

    def norm(name, width):
        shapes.update({f"{name}.{n}": (width,) for n in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    conv("conv1", width, channels, 7)
    norm("bn1", width)
    inplanes = width
    for stage, blocks in enumerate(STAGES[depth], start=1):
        planes = width * 2 ** (stage - 1)
        out = planes if basic else 4 * planes
        for i in range(blocks):
            name = f"layer{stage}.{i}"
            conv(f"{name}.conv1", planes, inplanes, 3 if basic else 1)
            norm(f"{name}.bn1", planes)
            conv(f"{name}.conv2", planes, planes, 3)
            norm(f"{name}.bn2", planes)
            if not basic:
                conv(f"{name}.conv3", out, planes, 1)
                norm(f"{name}.bn3", out)
            if i == 0 and (stage > 1 or inplanes != out):
                conv(f"{name}.downsample.0", out, inplanes, 1)
                norm(f"{name}.downsample.1", out)
            inplanes = out
    return shapes | {"fc.weight": (classes, inplanes), "fc.bias": (classes,)}


def resnet_weights(*arguments):
    weights = {}
    for name, shape in resnet_shapes(*arguments).items():
        if name.endswith("num_batches_tracked"):
            weights[name] = np.array(5, np.int64)
        elif name.endswith("running_var"):
            weights[name] = RNG.uniform(1e-3, 2, shape).astype(np.float32)
        else:
            weights[name] = normal(*shape, scale=1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.5)
    return weights


def conv2d(x, w, stride=1):
    """torch.nn.functional.conv2d of (channels, height, width), padded by half the kernel on every side."""
    pad = w.shape[2] // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("ihwyx,oiyx->ohw", windows, w)


def resnet_forward(weights, image, depth):
    """Logits of one (channels, height, width), as torchvision.models.resnet defines them in evaluation mode, in float64."""
    w = {name: a.astype(np.float64) for name, a in weights.items()}

    def norm(x, name):
        weight, bias, mean, var = (
            w[f"{name}.{n}"][:, None, None] for n in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias

    def relu(x):
        return np.maximum(x, 0)

    def conv(x, name, stride=1):
        return conv2d(x, w[f"{name}.weight"], stride)

    h = relu(norm(conv(image, "conv1", 2), "bn1"))
    h = np.pad(h, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    h = np.lib.stride_tricks.sliding_window_view(h, (3, 3), axis=(1, 2))[:, ::2, ::2].max((3, 4))
    for stage, blocks in enumerate(STAGES[depth], start=1):
        for i in range(blocks):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            if depth in (10, 18, 34):
                f = relu(norm(conv(h, f"{name}.conv1", stride), f"{name}.bn1"))
                f = norm(conv(f, f"{name}.conv2"), f"{name}.bn2")
            else:
                f = relu(norm(conv(h, f"{name}.conv1"), f"{name}.bn1"))
                f = relu(norm(conv(f, f"{name}.conv2", stride), f"{name}.bn2"))
                f = norm(conv(f, f"{name}.conv3"), f"{name}.bn3")
            if f"{name}.downsample.0.weight" in w:
                h = norm(conv(h, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            h = relu(f + h)
    return w["fc.weight"] @ h.mean((1, 2)) + w["fc.bias"]


@pytest.mark.parametrize("depth", [18, 26])
def test_resnets_compute_the_published_function(depth, dtype, tmp_path):
    """Sides that halve to odd numbers, where paddings differ."""
    weights, images = resnet_weights(depth, 4, 3, 5), RNG.normal(size=(2, 3, 35, 42)).astype(dtype)
    model = fj.models.build("imagenet_resnet", inputs=(35, 42, 3), outputs=5, depth=depth, width=4, key=jax.random.key(0))
    assert {a.dtype.name for a in everything(model).values()} == {dtype}
    prefix = "module." if depth == 26 else ""
    path = write(tmp_path / "m.safetensors", {prefix + name: a for name, a in weights.items()})
    load_weights(model, path, layout="torchvision-resnet")
    theirs = np.stack([resnet_forward(weights, image, depth) for image in images])
    close(jax.jit(model)(images.transpose(0, 2, 3, 1)), theirs, dtype)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_published_resnets_have_these_names_and_shapes(depth):
    cls = fj.models.model_class("imagenet_resnet")
    model = nnx.eval_shape(lambda: cls(inputs=(224, 224, 3), outputs=1000, depth=depth, rngs=nnx.Rngs(0)))
    state = nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    names, ours = fj.models.LAYOUTS["torchvision-resnet"].names(model), {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        source = names[jax.tree_util.keystr(path, simple=True, separator="/")]
        name, axes = (source.name, (3, 2, 0, 1)[-leaf.ndim :]) if isinstance(source, Source) else (source, (0,))
        ours[name] = tuple(leaf.shape[a] for a in ((1, 0) if leaf.ndim == 2 else axes))
    assert ours == {n: shape for n, shape in resnet_shapes(depth).items() if not n.endswith("num_batches_tracked")}


def test_plain_twins_do_not_take_the_weights_of_residual_networks(tmp_path):
    path = write(tmp_path / "m.safetensors", resnet_weights(10, 4, 3, 5))
    options = {"inputs": (32, 32, 3), "outputs": 5, "depth": 10, "width": 4, "key": jax.random.key(0)}
    for change, message in (
        ({"skip": False}, "unknown layer2.0.downsample"),
        ({"norm": "group"}, r"unknown bn1\.running_mean"),
    ):
        with pytest.raises(fj.ArgumentError, match=message):
            load_weights(fj.models.build("imagenet_resnet", **options, **change), path, layout="torchvision-resnet")


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_line_takes_published_weights(capsys, tmp_path):
    from fisher_jax import cli

    weights = resnet_weights(10, 4, 1, 10)
    path, out = write(tmp_path / "m.safetensors", weights), tmp_path / "out"
    command = ["spectrum", "--quiet", "--model", "imagenet_resnet", "-o", "depth=10", "-o", "width=4", "--samples", "4"]
    command += ["--outputs", "10"]
    command += ["-k", "2", "--out", str(out)]
    code = cli.main([*command, "--checkpoint", str(path), "--layout", "torchvision-resnet"])
    assert code == 0, capsys.readouterr().err
    model = fj.models.build("imagenet_resnet", inputs=(8, 8, 1), outputs=10, depth=10, width=4, key=jax.random.key(5))
    load_weights(model, path, layout="torchvision-resnet")
    x = fj.data.load("digits", samples=4)[0].reshape(4, 8, 8, 1)
    F = fj.fisher(model, x, fj.Categorical())
    assert json.loads((out / "summary.json").read_text())["trace"] == pytest.approx(float(F.trace()), rel=1e-5)
    for more, message in (
        (["--checkpoint", str(path)], "has unknown conv1.weight"),
        (
            ["--checkpoint", str(path), "--layout", "gpt2"],
            "layout='gpt2' of the model ImageNetResNet; build the model 'gpt'",
        ),
        (["--layout", "gpt2"], "spectrum: layout='gpt2' of no checkpoint; give --checkpoint PATH"),
    ):
        assert cli.main([*command, *more]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error
