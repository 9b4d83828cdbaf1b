"""The command line from the outside: what it prints, what it writes, how it refuses."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import fisher_jax as fj
from fisher_jax import cli

SMALL = ["spectrum", "--quiet", "--samples", "200", "-o", "depth=1"]


def run(capsys, *arguments):
    code = cli.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def main_job(tmp_path_factory):
    """The main job as a user runs it, in a process of its own."""
    out = tmp_path_factory.mktemp("main")
    done = subprocess.run(
        [sys.executable, "-m", "fisher_jax", "spectrum", "--out", str(out)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done, out


def test_the_main_job(main_job):
    done, out = main_job
    assert sorted(os.listdir(out)) == ["spectrum.npz", "spectrum.png", "summary.json"]
    top, summary = fj.load(out / "spectrum.npz"), json.loads((out / "summary.json").read_text())
    assert top.values.shape == (20,) and bool(top.converged.all()) and top.vectors.shape == (33408, 20)
    assert summary["trace"] > sum(summary["values"]) > 0 and summary["zeros"] == 33408 - 1797 * 9
    np.testing.assert_allclose(summary["values"], top.values, rtol=1e-6)
    assert summary["max_learning_rate"] == pytest.approx(2 / float(top.values[0]))
    assert summary["settings"]["model"] == "resmlp" and summary["info"]["jax"] == jax.__version__
    for text in (
        "error bound",
        "residual",
        "trace (exact)",
        "mean eigenvalue",
        "effective rank",
        "exact zero eigenvalues",
        "learning rate 2/λ_max",
        "products with F",
        f"{float(top.values[19]):.7g}",
        "predicted  rel. error",
        "mean of the 9 outliers",
        "kernel of 1797 samples, mean over 4 draws of the outputs",
    ):
        assert text in done.stdout, text
    predicted = summary["predicted"]
    assert len(predicted["values"]) == 20 and abs(summary["trace"] / predicted["trace"] - 1) < predicted["deviation"]
    assert (out / "spectrum.png").read_bytes().startswith(b"\x89PNG")


def test_the_main_job_against_the_dense_matrix_in_float64(main_job, optimized):
    """Every printed value within its bound of an eigenvalue computed in float64 from explicit per-sample gradients."""
    top = fj.load(main_job[1] / "spectrum.npz")
    with jax.enable_x64(True):
        import jax.numpy as jnp

        keys = jax.random.split(jax.random.key(0), 4)
        x, _ = fj.data.load("digits")
        with jax.enable_x64(False):
            model = fj.models.build("resmlp", inputs=64, outputs=10, key=keys[0])
        weights = [np.asarray(layer.kernel[...], np.float64) for b in model.blocks for layer in (b.first, b.second)]
        readout = np.asarray(model.readout.kernel[...], np.float64)

        def apply(p, x):
            h = x
            for i in range(0, 8, 2):
                h = h + jnp.maximum(h @ p[i], 0) @ p[i + 1]
            return h @ p[8]

        params = [jnp.asarray(w) for w in (*weights, readout)]
        # Rows of A from reverse mode, sample by sample; then K by one product of NumPy on a subset is too small a test:
        # check each pair (λ, v) through the products with A in float64, and the trace.
        rows = jax.jit(jax.vmap(jax.jacrev(lambda p, x: apply(p, x[None])[0]), in_axes=(None, 0)))
        V = np.asarray(top.vectors, np.float64)
        FV, trace = np.zeros_like(V), 0.0
        for chunk in np.array_split(x.astype(np.float64), 36):
            J = np.concatenate([np.asarray(a).reshape(len(chunk), 10, -1) for a in rows(params, jnp.asarray(chunk))], axis=2)
            f = np.asarray(apply(params, jnp.asarray(chunk)))
            p = np.exp(f - f.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            JV = J @ V
            HJV = p[:, :, None] * (JV - np.einsum("nc,nck->nk", p, JV)[:, None])
            FV += np.einsum("ncp,nck->pk", J, HJV, optimize=True) / 1797
            centred = J - np.einsum("nc,ncp->np", p, J)[:, None]
            trace += np.einsum("nc,ncp,ncp->", p, centred, centred, optimize=True) / 1797
    names = [
        jax.tree_util.keystr(k, simple=True, separator="/")
        for k, _ in jax.tree_util.tree_leaves_with_path(
            {"blocks": {i: {"first": 0, "second": 0} for i in range(4)}, "readout": {"kernel": 0}}
        )
    ]
    assert names == [*(f"blocks/{i}/{j}" for i in range(4) for j in ("first", "second")), "readout/kernel"], (
        "order of the parameters"
    )
    values = np.asarray(top.values, np.float64)
    residuals = np.linalg.norm(FV - V * values, axis=0)
    assert (residuals <= np.asarray(top.residuals) + 2 * float(top.floor)).all()
    # Rayleigh quotients in float64 are within r²/gap of eigenvalues: far below the bounds.
    quotients = np.einsum("pk,pk->k", V, FV) / np.einsum("pk,pk->k", V, V)
    assert (np.abs(quotients - values) <= np.asarray(top.bounds)).all()
    summary = json.loads((main_job[1] / "summary.json").read_text())
    assert summary["trace"] == pytest.approx(trace, rel=1e-5)


def test_settings_reach_the_computation(capsys, tmp_path):
    code, out, _ = run(
        capsys,
        *SMALL,
        "--out",
        str(tmp_path),
        "--data",
        "gaussian",
        "--samples",
        "60",
        "--inputs",
        "12",
        "--outputs",
        "1",
        "--likelihood",
        "gaussian",
        "--model",
        "mlp",
        "-o",
        "depth=3",
        "-o",
        "width=20",
        "-o",
        "activation=tanh",
        "-k",
        "4",
        "--where",
        "layers/1",
        "--method",
        "lanczos",
        "--tol",
        "1e-4",
        "--chunk",
        "16",
    )
    assert code == 0 and "P = 400, N·C = 60" in out and "converged" in out
    settings = json.loads((tmp_path / "summary.json").read_text())["settings"]
    assert settings["option"] == ["depth=1", "depth=3", "width=20", "activation=tanh"] and settings["chunk"] == "16"


def test_kinds_and_thresholds(capsys, tmp_path):
    for kind in ("mc", "empirical"):
        code, out, _ = run(capsys, *SMALL, "--out", str(tmp_path), "--kind", kind, "-k", "3")
        assert code == 0 and "N·C = 200" in out
    code, out, _ = run(capsys, *SMALL, "--out", str(tmp_path), "--above", "5", "-k", "30")
    values = json.loads((tmp_path / "summary.json").read_text())["values"]
    assert code == 0 and 0 < len(values) < 30 and min(values) > 5


def test_density_with_its_outliers_and_numbers(capsys, tmp_path):
    arguments = ["density", "--quiet", "--samples", "60", "-o", "depth=1", "--out", str(tmp_path)]
    code, out, err = run(capsys, *arguments, "--above", "1", "--damping", "0.1", "--steps", "30", "--probes", "4")
    assert code == 0, err
    assert sorted(os.listdir(tmp_path)) == ["density.json", "density.npz", "density.png"]
    found, record = fj.load(tmp_path / "density.npz"), json.loads((tmp_path / "density.json").read_text())
    # The exact spectrum of the same network, from the seed.
    keys = jax.random.split(jax.random.key(0), 4)
    x, _ = fj.data.load("digits", samples=60)
    model = fj.models.build("resmlp", inputs=64, outputs=10, depth=1, key=keys[0])
    exact = fj.spectrum(fj.fisher(model, x, fj.Categorical()))
    np.testing.assert_allclose(record["outliers"], exact.values[:9], rtol=1e-4)
    assert record["zeros"] == exact.zeros and found.atoms.size == 9
    truth = {
        "trace": exact.trace,
        "frobenius": exact.frobenius,
        "eigenvalues above 1": exact.count_above(1.0),
        "log det(1 + F/0.1)": exact.logdet(0.1),
        "effective dimension at 0.1": exact.effective_dimension(0.1),
    }
    for name, number in record["estimates"].items():
        assert number["lower"] <= truth.pop(name) <= number["upper"], name
        assert name in ("trace", "frobenius") or name in out
    assert not truth and "exact zeros" in out and record["settings"]["steps"] == 30
    assert (tmp_path / "density.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run(capsys, *arguments, "--method", "kpm", "--steps", "20", "--outliers", "0", "--likelihood", "gaussian")
    assert code == 0 and "KPM(degree=40, probes=8)" in out and fj.load(tmp_path / "density.npz").atoms.size == 0
    code, _, err = run(capsys, *arguments, "--method", "kpm", "--outliers", "0", "--above", "1")
    assert code == 2 and "nothing bounds counts and sums of --method kpm" in err


@pytest.mark.parametrize("kind", ["npz", "orbax"])
def test_checkpoints(capsys, tmp_path, kind):
    model = fj.models.build("resmlp", inputs=64, outputs=10, depth=1, key=jax.random.key(99))
    path = tmp_path / ("w.npz" if kind == "npz" else "w")
    fj.models.save_weights(model, path)
    code, _, err = run(capsys, *SMALL, "--out", str(tmp_path / "o"), "--checkpoint", str(path), "-k", "2")
    assert code == 0, err
    x, _ = fj.data.load("digits", samples=200)
    F = fj.fisher(model, x, fj.Categorical())
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["trace"] == pytest.approx(float(F.trace()), rel=1e-5)


BAD = {
    "unknown model": (["--model", "resnext"], "model='resnext' is unknown; choose among mlp, resmlp"),
    "unknown option": (["-o", "dept=3"], "model resmlp: option dept=3 is unknown; it has depth"),
    "option without value": (["-o", "depth"], "option='depth' is not NAME=VALUE"),
    "missing file": (["--data", "nothing.npy"], "data='nothing.npy' is neither a name nor a file"),
    "missing checkpoint": (["--checkpoint", "nothing.npz"], "nothing.npz does not exist"),
    "k of zero": (["-k", "0"], "k=0 is below 1; give k >= 1"),
    "k too large": (["-k", "99999"], "k=99999 exceeds size 8832; give k <= 8832"),
    "k no number": (["-k", "many"], "argument -k: invalid int value: 'many'"),
    "no samples": (["--samples", "0"], "samples=0 is below 1"),
    "unknown likelihood": (["--likelihood", "cauchy"], "invalid choice: 'cauchy'"),
    "bad chunk": (["--chunk", "big"], "chunk='big' is not an integer"),
    "negative tolerance": (["--tol", "-1"], "tol=-1.0 is not a positive number"),
    "nothing above": (["--above", "1e9"], "above=1e+09 exceeds every eigenvalue"),
    "no such parameter": (["--where", "conv"], "where='conv' selects no parameter; choose among blocks/0/first/kernel"),
    "labels missing": (["--kind", "empirical", "--data", "DIR/x.npy"], "kind='empirical' needs labels"),
    "NaN in data": (["--data", "DIR/nan.npy"], "x has 1 NaN or infinite value(s) among 400"),
    "NaN in weights": (["--checkpoint", "DIR/nan.npz"], "NaN or infinite value"),
    "other shapes": (["--checkpoint", "DIR/other.npz"], "the model has [64, 64]"),
    "out is a file": (["--out", "DIR/x.npy"], "is a file; give a directory"),
    "empirical without fitting labels": (["--kind", "empirical", "--outputs", "3"], "labels y span 0..9; give classes 0..2"),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    path = tmp_path_factory.mktemp("bad")
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    np.save(path / "x.npy", x)
    x[3, 4] = np.nan
    np.save(path / "nan.npy", x)
    model = fj.models.build("resmlp", inputs=64, outputs=10, depth=1, key=jax.random.key(0))
    fj.models.save_weights(model, path / "good.npz")
    with np.load(path / "good.npz") as file:
        arrays = dict(file)
    np.savez(path / "other.npz", **(arrays | {"blocks/0/first/kernel": np.zeros((3, 3), np.float32)}))
    np.savez(path / "nan.npz", **(arrays | {"blocks/0/first/kernel": np.full((64, 64), np.nan, np.float32)}))
    return path


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_in_one_line_and_exit_code_2(name, capsys, tmp_path, bad_files):
    arguments, message = BAD[name]
    arguments = [a.replace("DIR", str(bad_files)) for a in arguments]
    out = tmp_path / "out"
    base = [*SMALL] if "--data" not in arguments else ["spectrum", "--quiet", "-o", "depth=1"]
    out_option = [] if "--out" in arguments else ["--out", str(out)]
    try:
        code = cli.main([*base, *out_option, *arguments])
    except SystemExit as stop:  # argparse's own
        code = stop.code
    error = capsys.readouterr().err.strip()
    assert code == 2 and message in error and "\n" not in error and "Traceback" not in error, error
    assert not out.exists() or os.listdir(out) == []


def test_a_failed_write_leaves_what_was_there(capsys, tmp_path, monkeypatch):
    code, _, _ = run(capsys, *SMALL, "--out", str(tmp_path), "-k", "2")
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    assert code == 0 and set(before) == {"spectrum.npz", "summary.json", "spectrum.png"}

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(fj.plot, "spectrum", fail)
    with pytest.raises(OSError, match="disk full"):
        cli.main([*SMALL, "--out", str(tmp_path), "-k", "3"])
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_help_teaches_without_importing_jax():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fisher_jax", "spectrum", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    for text in ("examples:", "--checkpoint", "default: resmlp", "2/lambda_max", "--above 1.0 -k 100"):
        assert text in done.stdout
    empty = subprocess.run([sys.executable, "-m", "fisher_jax"], capture_output=True, text=True)
    assert empty.returncode == 2 and "COMMAND" in empty.stderr and empty.stderr.count("\n") == 1


def test_progress_bar_says_products_converged_and_residual(tmp_path):
    code = "import sys; from fisher_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "spectrum", "--method", "lanczos", "-k", "5", "-o", "depth=1", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "160"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "products" in done.stderr and "/5 converged" in done.stderr and "worst residual" in done.stderr


def test_models_are_listed_with_their_sizes(capsys, monkeypatch):
    monkeypatch.setattr(fj.models, "MODELS", {kind: fj.models.MODELS[kind] for kind in ("resmlp", "vgg")})
    code, out, _ = run(capsys, "models")
    assert code == 0 and "resmlp           takes features; Fully connected" in out and "138,357,544 parameters" in out
    code, out, _ = run(capsys, "models", "vgg16", "resmlp")
    assert (
        code == 0 and "vgg16: 138,357,544 parameters at inputs=(224, 224, 3), outputs=1000" in out and "survival=1.0" in out
    )
    code, _, err = run(capsys, "models", "resnext")
    assert code == 2 and "model='resnext' is unknown; choose among resmlp, vgg, or a preset" in err


def test_digits_are_images_to_convolutional_networks(capsys, tmp_path):
    arguments = ["--quiet", "--samples", "6", "--out", str(tmp_path)]
    code, out, err = run(capsys, "full", "--model", "resnet20", "-o", "depth=8", "-o", "width=2", *arguments)
    assert code == 0 and "N·C = 36" in out, err  # six samples of six classes
    code, _, err = run(capsys, "full", "--model", "gpt2-tiny", *arguments)
    assert code == 2 and "model='gpt2-tiny' takes tokens, digits has" in err
    code, _, err = run(capsys, "full", "--model", "resnet20", "--streamed", *arguments)
    assert code == 2 and "mlp and resmlp can be streamed" in err


TRAIN = [
    "train",
    "--model",
    "resmlp",
    "-o",
    "depth=1",
    "-o",
    "norm=batch",
    "--samples",
    "300",
    "--epochs",
    "3",
    "--batch",
    "40",
    "--quiet",
]


def test_train_with_its_spectrum(capsys, tmp_path):
    out = tmp_path / "run"
    arguments = [*TRAIN, "--track", "5", "--track-samples", "6", "-k", "3", "--out", str(out), "--quiet"]
    code, text, err = run(capsys, *arguments)
    assert code == 0, err
    files = {"weights.npz", "training.npz", "track.npz", "training.json", "training.png", "track.jsonl", "checkpoints"}
    assert files <= set(os.listdir(out)) <= files | {"tensorboard"}
    history, measured = fj.load(out / "training.npz"), fj.load(out / "track.npz")
    assert history.steps.tolist() == [6, 12, 18] and measured.steps.tolist() == [0, 5, 10, 15, 18]
    assert measured.values.shape == (5, 3) and float(history.loss[-1]) < float(history.loss[0])
    assert f"{float(measured.values[2, 0]):.6g}" in text and f"{float(history.test_accuracy[-1]):.4g}" in text
    assert "a measurement took" in text and "240 samples to train on, 60 to test, spectrum of 6" in text
    record = json.loads((out / "training.json").read_text())
    assert record["settings"]["epochs"] == 3 and record["measurements"][4]["steps"] == 18
    assert record["measurements"][0]["loss"] is None
    # The same command again has nothing left to do; the files say the same.
    code, _, _ = run(capsys, *arguments)
    assert code == 0 and fj.load(out / "training.npz").loss.tolist() == history.loss.tolist()
    # The trained network goes on to the other commands, with its statistics.
    model = ["--model", "resmlp", "-o", "depth=1", "-o", "norm=batch", "--checkpoint", str(out / "weights.npz")]
    code, text, err = run(
        capsys, "spectrum", *model, "--samples", "40", "-k", "2", "--out", str(tmp_path / "top"), "--quiet"
    )
    assert code == 0, err


def test_train_refuses_by_name(capsys, tmp_path):
    np.savez(tmp_path / "bare.npz", x=np.ones((300, 4), np.float32))
    for arguments, message in (
        (["--data", str(tmp_path / "bare.npz")], "has no labels"),
        (["--kind", "empirical"], "kind='empirical' is not tracked"),
        (["--test", "1.5"], "test=1.5 is no share"),
        (["--batch", "9999"], "batch=9999 exceeds"),
        (["--track-samples", "0"], "track-samples=0"),
        (["--rate", "-1"], "rate=-1"),
    ):
        code, _, err = run(capsys, *TRAIN, "--out", str(tmp_path / "out"), *arguments)
        assert code == 2 and message in err and err.count("\n") == 1, (arguments, err)
