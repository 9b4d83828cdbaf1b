"""Theory in the shell: `fisher-jax theory`, and the predicted column of the other commands."""

import json
import re

import jax
import numpy as np
import pytest

import fisher_jax as fj
from fisher_jax import cli
from fisher_jax.cli import theory
from fisher_jax.cli.prediction import prediction
from fisher_jax.cli.problem import network
from fisher_jax.theory.network import OPTIONS


def run(capsys, command):
    code = cli.main(command.split())
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- fisher-jax theory ------------------------------------------------------------------------------------------------


def test_every_option_has_a_flag():
    assert set(theory.EVERY) == set(OPTIONS)
    for name, known in OPTIONS.items():
        assert {option for option, (takers, _) in theory.FLAGS.items() if name in takers} == set(known)


@pytest.mark.parametrize("line", re.findall(r"^ +fisher-jax (theory .*?)(?:  .*)?$", theory.EXAMPLES, flags=re.M))
def test_the_examples_of_the_help_run(capsys, line):
    code, out, err = run(capsys, line)
    assert code == 0 and "λ_max" in out and err == "", err


def test_a_prediction_is_that_of_predict(capsys, tmp_path):
    flags = "--arch resmlp --skip 1 --form post --depth 3 --scale 0.8 --readout-variance 0.5 --outputs 2 --samples 12"
    code, out, _ = run(capsys, f"theory {flags} --inputs 64 --cosine 0.2 --json {tmp_path}/t.json --out {tmp_path}")
    options = {"skip": 1, "form": "post", "depth": 3, "scale": 0.8, "readout_variance": 0.5}
    law = fj.theory.predict("resmlp", inputs=64, samples=12, outputs=2, cosine=0.2, **options)
    assert code == 0 and repr(law) in out
    record = json.loads((tmp_path / "t.json").read_text())
    assert record == json.loads((tmp_path / "theory.json").read_text()) and not (tmp_path / "theory.png").exists()
    (found,) = record["laws"]
    assert found["lambda_max"] == law.lambda_max and found["trace"] == law.trace and found["depth"] == 3
    assert found["values"] == list(law.values) and found["counts"] == [2.0, 22.0] and found["bulk"] == law.bulk
    assert record["settings"]["scale"] == "0.8" and record["versions"]["jax"] == jax.__version__
    assert record["masks"] is None


def test_several_depths_make_a_table_and_a_picture(capsys, tmp_path):
    code, out, err = run(capsys, f"theory --depth 2,5,2000 --inputs 1000000 --samples 9 --out {tmp_path}")
    assert code == 0, err
    rows = {int(line.split()[0]): line.split()[1:] for line in out.splitlines() if re.match(r" *\d+  ", line)}
    for depth in (2, 5):
        law = fj.theory.predict("resmlp", inputs=10**6, samples=9, depth=depth)
        numbers = (law.trace, law.mean_eigenvalue, law.second_moment, law.lambda_max, 1, law.bulk, law.max_learning_rate)
        assert [float(text) for text in rows[depth]] == pytest.approx(numbers, rel=1e-4)
    law = fj.theory.predict("resmlp", inputs=10**6, samples=9, depth=2000)
    deep = rows[2000]
    assert deep[0] == f"e^{law.log_trace:.6g}" and deep[3] == f"e^{law.log_lambda_max:.6g}" and ">1e308" in out
    assert deep[-1] == f"e^{np.log(2) - law.log_lambda_max:.6g}"
    record = json.loads((tmp_path / "theory.json").read_text())
    assert [one["depth"] for one in record["laws"]] == [2, 5, 2000] and record["laws"][2]["trace"] is None
    assert record["laws"][2]["log_trace"] == law.log_trace
    assert (tmp_path / "theory.png").read_bytes().startswith(b"\x89PNG")


def test_real_data_and_softmax(capsys):
    code, out, _ = run(capsys, "theory --data digits --samples 20 --outputs 3 --likelihood categorical --draws 2 --seed 4")
    x, _ = fj.data.load("digits", samples=20)
    settings = {"likelihood": "categorical", "draws": 2, "key": jax.random.key(4)}
    assert code == 0 and repr(fj.theory.predict("resmlp", x=x, outputs=3, **settings)) in out
    code, out, _ = run(capsys, "theory --arch mlp --data digits --samples 400 --outputs 10 -k 15")
    law = fj.theory.predict("mlp", x=fj.data.load("digits", samples=400)[0], outputs=10, k=15)
    assert code == 0 and repr(law) in out and "kernel of 400 samples" in out


def test_random_masks_have_five_numbers(capsys):
    code, out, _ = run(capsys, "theory --survival 0.6 --survival-schedule linear --depth 3 --inputs 64 --draws 20 --seed 1")
    options = {"survival": 0.6, "survival_schedule": "linear", "depth": 3}
    over = fj.theory.over_masks("resmlp", inputs=64, samples=50, draws=20, key=jax.random.key(1), **options)
    assert code == 0 and repr(over) in out
    for number in (over.trace, over.largest_of_average, over.average_of_largest, over.largest_of_typical):
        assert f"{number:.6g}" in out
    code, out, _ = run(capsys, "theory --survival 0.6 --masks one --depth 3 --inputs 64")
    law = fj.theory.predict("resmlp", inputs=64, samples=50, survival=0.6, masks="one", depth=3)
    assert code == 0 and repr(law) in out and "over masks" not in out
    code, out, _ = run(capsys, "theory --arch mlp --dropout 0.5 --outputs 3 --likelihood categorical --samples 4")
    assert code == 0 and "no summaries over masks: theory of mlp: random masks with softmax are not covered" in out


@pytest.mark.parametrize("flags, message", [
    ("--arch mlp --skip 2", "theory: --skip 2 is no option of mlp; it is one of resmlp"),
    ("--growth 4", "theory: --growth 4 is no option of resmlp; it is one of densemlp"),
    ("--arch resnet", "invalid choice: 'resnet'"),
    ("--depth two", "depth='two' is not an integer"),
    ("--depth 1,0", "depth=0 is below 1"),
    ("--activation swish", "phi='swish' is unknown"),
    ("--variances 2", "variances=2 is not two numbers"),
    ("--norm batch", 'bn is missing; give bn="eval"'),
    ("--masks one", "neither dropout nor stochastic depth"),
    ("--data digits --cosine 0.5", "cosine=0.5 of --data digits; leave out one of the two"),
    ("--data digits --samples 9 --inputs 5", "inputs=5 differs from x of shape"),
    ("--data nothing.npy", "data='nothing.npy' is neither a name nor a file"),
    ("--likelihood categorical", "outputs=1 with softmax"),
    ("--json nowhere/t.json", "no such directory"),
])  # fmt: skip
def test_what_cannot_be_predicted_is_refused_in_one_line(capsys, flags, message):
    try:
        code = cli.main(["theory", *flags.split()])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err.strip()
    assert code == 2 and message in error and "\n" not in error, error


def test_warnings_are_one_line_each(capsys):
    code, _, err = run(capsys, "theory --arch mlp --depth 4,60")
    assert code == 0 and err.count("\n") == 1 and "fisher-jax: warning: theory of mlp: at depth 60" in err


# --- the predicted column ---------------------------------------------------------------------------------------------

SMALL = "--quiet --samples 40 -o depth=2"


@pytest.mark.parametrize("likelihood, outliers", [("gaussian", 3), ("categorical", 2)])
def test_the_spectrum_beside_its_prediction(capsys, tmp_path, likelihood, outliers):
    flags = f"{SMALL} --outputs 3 --likelihood {likelihood} -k 6 --seed 5 --out {tmp_path}"
    code, out, err = run(capsys, f"spectrum {flags} -o norm=batch")  # in evaluation mode: no norm
    assert code == 0 and err == "", err
    x, _ = fj.data.load("digits", samples=40)
    key = jax.random.fold_in(jax.random.split(jax.random.key(5), 4)[3], 1)
    law = fj.theory.predict("resmlp", x=x, outputs=3, likelihood=likelihood, depth=2, key=key, draws=4)
    record = json.loads((tmp_path / "summary.json").read_text())
    expected, measured = law.expanded(6), np.array(record["values"])
    assert record["predicted"]["values"] == pytest.approx(expected, rel=1e-9)
    assert record["predicted"]["trace"] == pytest.approx(law.trace, rel=1e-9)
    rows = [line for line in out.splitlines() if re.match(r" +\d  ", line)]
    for row, value, number in zip(rows, measured, expected, strict=True):
        assert row.endswith(f"{number:.4g}{100 * (value / number - 1):>+10.1f} %"), row
    mean = f"mean of the {outliers} outliers"
    (line,) = (line for line in out.splitlines() if mean in line)
    assert f"{measured[:outliers].mean():.7g}" in line and f"{expected[:outliers].mean():.4g}" in line
    pairs = (("lambda_max", law.lambda_max), ("trace", law.trace), ("mean_eigenvalue", law.mean_eigenvalue),
             ("max_learning_rate", 2 / law.lambda_max))  # fmt: skip
    for name, number in pairs:
        relative = 100 * (record[name] / number - 1)
        assert re.search(rf"predicted {number:.5g} +{re.escape(f'{relative:+.1f}')} %", out), name
    # The prediction is one: of random weights, within what it says of itself.
    assert abs(record["trace"] / law.trace - 1) < 2 * law.deviation


@pytest.mark.parametrize("flags, why", [
    ("--where blocks/0", "no prediction: theory is about all parameters together"),
    ("--kind mc", "no prediction: theory is about --kind exact, not mc"),
    ("--likelihood poisson", "no prediction: theory covers --likelihood gaussian and categorical"),
    ("--model regressor", "no prediction: theory covers mlp, resmlp, densemlp"),
    ("-o activation=tanh --samples 120", "no prediction: 120 samples would take long, --samples 100 has one"),
    ("-o skip=1 -o form=post -o norm=batch", "no prediction: theory of resmlp: norm='batch' with form='post' is"),
    ("--model mlp -o width=2", "no prediction: theory.predict: samples=40 times 10 outputs exceed the 152 parameters"),
])  # fmt: skip
def test_why_there_is_no_prediction(flags, why):
    options = cli.parser().parse_args(f"spectrum --samples 40 {flags}".split())
    law, said = prediction(options, network(options), 2)
    assert law is None and said.startswith(why)


def test_trained_weights_are_not_predicted(capsys, tmp_path):
    model = fj.models.build("resmlp", inputs=64, outputs=10, depth=2, key=jax.random.key(0))
    fj.models.save_weights(model, tmp_path / "w.npz")
    code, out, _ = run(capsys, f"spectrum {SMALL} --checkpoint {tmp_path}/w.npz -k 2 --out {tmp_path}/o")
    assert code == 0 and out.splitlines()[-3] == "no prediction: theory is about random weights"
    assert "rel. error" not in out and "predicted" not in out
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["predicted"] is None


def test_a_whole_spectrum_beside_its_prediction(capsys, tmp_path):
    code, out, _ = run(capsys, f"full {SMALL} --outputs 3 --likelihood gaussian --out {tmp_path}")
    law = fj.theory.predict("resmlp", x=fj.data.load("digits", samples=40)[0], outputs=3, depth=2)
    record = json.loads((tmp_path / "full.json").read_text())
    assert code == 0 and repr(law) in out and record["predicted"]["values"] == pytest.approx(list(law.values))
    code, out, _ = run(capsys, f"full {SMALL} -o activation=erf --kind mc --out {tmp_path}")
    assert code == 0 and "no prediction" in out and json.loads((tmp_path / "full.json").read_text())["predicted"] is None


def test_predictions_are_drawn():
    x, _ = fj.data.load("digits", samples=20)
    F = fj.fisher(fj.models.build("resmlp", inputs=64, outputs=2, depth=1, key=jax.random.key(0)), x, fj.Gaussian())
    law = fj.theory.predict("resmlp", x=x, outputs=2, depth=1)
    top = fj.eigsh(F, 5, key=jax.random.key(1))
    for figure, many in (
        (fj.plot.spectrum(top, fj.summarize(F, top), theory=law), 5),
        (fj.plot.full(fj.spectrum(F), theory=law), 40),
    ):
        left, right = figure.axes
        (line,) = (line for line in left.lines if line.get_label() == "theory of wide networks")
        assert line.get_ydata() == pytest.approx(law.expanded(many)) and line.get_xdata().tolist() == [*range(1, many + 1)]
        assert any(np.ravel(line.get_ydata())[-1] == pytest.approx(100 * law.expanded(many).sum() / law.trace)
                   for line in right.lines)  # fmt: skip
    plain = fj.plot.spectrum(top, fj.summarize(F, top))
    assert "theory of wide networks" not in [line.get_label() for line in plain.axes[0].lines]
    with pytest.raises(fj.ArgumentError, match=r"plot\.laws: laws is no dict of Law by depth; give"):
        fj.plot.laws({})
