"""What theory says of the network and the data of a command, where it covers them."""

import argparse
import sys
import warnings
from typing import Any

from fisher_jax._checks import ArgumentError
from fisher_jax.cli.problem import Made, model_options

# Draws of the outputs of softmax: some seconds for 1797 digits; the mean of four is uncertain by some 8 %.
DRAWS = 4
# Samples up to which kernels take seconds: those of relu, erf and linear in closed form, others by quadrature.
MOST, MOST_BY_QUADRATURE = 4096, 100


def prediction(options: argparse.Namespace, made: Made, k: int | None) -> tuple[Any, str]:
    """(Law of the k largest eigenvalues, ""), or (None, why there is none)."""
    import jax

    import fisher_jax as fj
    from fisher_jax.theory.network import OPTIONS

    samples, chosen = len(made.x), model_options(options)
    smooth = chosen.get("activation", "relu") not in ("relu", "erf", "linear")
    most = MOST_BY_QUADRATURE if smooth else MOST
    reasons = (
        (options.model not in OPTIONS, f"theory covers {', '.join(OPTIONS)}"),
        (options.checkpoint, "theory is about random weights"),
        (options.where, "theory is about all parameters together"),
        (options.kind != "exact", f"theory is about --kind exact, not {options.kind}"),
        (options.likelihood not in ("gaussian", "categorical"), "theory covers --likelihood gaussian and categorical"),
        (samples > most, f"{samples} samples would take long, --samples {most} has one"),
    )
    for holds, why in reasons:
        if holds:
            return None, f"no prediction: {why}"
    normed = chosen.get("norm", "none") == "batch" or chosen.get("output_norm", "none") != "none"
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            law = fj.theory.predict(
                options.model,
                x=made.x,
                outputs=made.outputs,
                likelihood=options.likelihood,
                bn="eval" if normed else None,
                draws=DRAWS,
                key=jax.random.fold_in(made.keys["solver"], 1),
                k=k,
                **chosen,
            )
    except ArgumentError as error:
        return None, f"no prediction: {error}"
    show(caught)
    return law, ""


def show(caught: list[warnings.WarningMessage]) -> None:
    """Warnings to the user, one line each."""
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            print(f"fisher-jax: warning: {warning.message}", file=sys.stderr)


def law_record(law: Any, k: int | None = None) -> dict[str, Any]:
    """The numbers of a Law as JSON has them: by value and count, or of the k largest by rank."""
    names = ("lambda_max", "max_learning_rate", "trace", "mean_eigenvalue", "second_moment", "frobenius", "effective_rank")
    rest = ("outliers", "bulk", "size", "dual_size", "zeros", "log_trace", "log_lambda_max", "deviation", "bias", "method")
    levels = {name: [float(v) for v in getattr(law, name)] for name in ("values", "counts")}
    values = levels if k is None else {"values": [float(v) for v in law.expanded(k)]}
    return {name: getattr(law, name) for name in (*names, *rest)} | values | {"info": dict(law.info)}
