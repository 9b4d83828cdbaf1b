"""`fisher-jax train`: train a network, and measure its spectrum on the way."""

import argparse
import os
import sys
from typing import Any

from fisher_jax._checks import ArgumentError
from fisher_jax.cli.files import out_directory, write, write_json
from fisher_jax.cli.problem import arguments, kind_of, likelihood, network
from fisher_jax.cli.progress import Bar

EXAMPLES = """
examples:
  fisher-jax train --model resnet20 -o width=8 --data digits --track 50     the spectrum every 50 steps of the training
  fisher-jax train --model resmlp --data digits --optimizer adam --epochs 50 --track 100 -k 10
  fisher-jax train --model wrn16-4 -o survival=0.8 -o dropout=0.1 --data cifar.bin --decay 5e-4 --schedule step
  fisher-jax spectrum --model resnet20 -o width=8 --checkpoint fisher_training/weights.npz   the top of the trained network's

Dropout and stochastic depth are active, batch norm uses the batch; a share --test of the samples is held out. The spectrum
is that of the network in evaluation mode, on --track-samples of the training samples. An interrupted run goes on when
the same command is given again. --out receives weights.npz (--checkpoint of the other commands), training.npz and track.npz
(fisher_jax.load), training.json, training.png, track.jsonl (one line for each measurement) and checkpoints; with
tensorboardX installed also TensorBoard's files.
"""


def add(commands: Any) -> None:
    """The parser of this command."""
    training = commands.add_parser(
        "train",
        help="train a network, with its spectrum measured every so many steps",
        description="Train a network on data, and measure the largest eigenvalues of its Fisher matrix on the way.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments(training, out="fisher_training")
    _training_arguments(training)
    training.set_defaults(run=run_train, chunk="auto")


def _training_arguments(command: argparse.ArgumentParser) -> None:
    loop = command.add_argument_group("training")
    loop.add_argument("--epochs", type=int, default=30, help="passes through the data (default: 30)")
    loop.add_argument("--batch", type=int, default=64, help="samples per step (default: 64)")
    loop.add_argument("--optimizer", default="momentum", choices=["sgd", "momentum", "adam"], help="(default: momentum)")
    loop.add_argument("--rate", type=float, help="largest learning rate (default: 0.1, for adam 0.001)")
    loop.add_argument(
        "--schedule", default="cosine", choices=["constant", "linear", "cosine", "step"], help="(default: cosine)"
    )
    loop.add_argument("--warmup", type=float, default=0.1, help="share of the steps with a rising rate (default: 0.1)")
    loop.add_argument("--decay", type=float, default=5e-4, help="weight decay (default: 5e-4)")
    loop.add_argument("--test", type=float, default=0.2, metavar="SHARE", help="of the samples, held out (default: 0.2)")
    spectrum = command.add_argument_group("spectrum")
    spectrum.add_argument("--track", type=int, metavar="STEPS", help="measure every so many steps (default: once per epoch)")
    spectrum.add_argument("-k", type=int, default=5, help="how many eigenvalues (default: 5)")
    spectrum.add_argument(
        "--track-samples", type=int, default=16, metavar="N", help="of the training samples to measure on (default: 16)"
    )


def run_train(options: argparse.Namespace) -> int:
    """`fisher-jax train`."""
    import importlib.util

    import jax

    import fisher_jax as fj

    out_directory(options)
    if options.kind == "empirical":
        raise ArgumentError("train: kind='empirical' is not tracked; use --kind exact or mc")
    model, x, y, _, keys, settings = network(options)
    if y is None:
        raise ArgumentError(f"train: data={options.data!r} has no labels; give an .npz with x and y, or another --data")
    data, test = fj.data.split(x, y, options.test, keys["data"])
    samples = min(options.track_samples, len(data[0]))
    if samples < 1 or options.batch < 1:
        raise ArgumentError(f"train: track-samples={options.track_samples}, batch={options.batch}; give numbers >= 1")
    out = options.out
    optimizer = fj.train.Optimizer(options.optimizer, options.rate, options.schedule, options.warmup, decay=options.decay)
    tracker = fj.track(
        data[0][:samples],
        likelihood(options),
        every=options.track if options.track is not None else max(1, len(data[0]) // options.batch),
        k=options.k,
        key=keys["solver"],
        path=os.path.join(out, "track.jsonl"),
        tensorboard=os.path.join(out, "tensorboard") if importlib.util.find_spec("tensorboardX") else None,
        kind=kind_of(options, y, keys["labels"]),
        where=options.where,
    )
    size = fj.models.size(model)
    title = f"{options.model} on {os.path.basename(options.data)}: {options.optimizer}, P = {size}"
    print(f"{title}; {len(data[0])} samples to train on, {len(test[0])} to test, spectrum of {samples}", flush=True)
    try:
        with Bar(options.quiet, "steps") as bar:
            history = fj.train.fit(
                model,
                data,
                likelihood(options),
                optimizer=optimizer,
                epochs=options.epochs,
                batch=options.batch,
                test=test,
                key=jax.random.fold_in(keys["labels"], 1),
                track=tracker,
                directory=os.path.join(out, "checkpoints"),
                progress=bar.training,
            )
    except KeyboardInterrupt:
        fj.models.save_weights(model, os.path.join(out, "weights.npz"))
        print(f"fisher-jax: interrupted; {out}/weights.npz is as it was, the same command goes on", file=sys.stderr)
        return 130
    measured = tracker.history
    tracker.close()
    print(f"\n{history}\n\n{measured}\n\n{_cost(history, measured)}")
    record = {"settings": settings, "epochs": _rows(history), "measurements": _rows(measured)}
    files = {
        "weights.npz": lambda path: fj.models.save_weights(model, path),
        "training.npz": lambda path: fj.save(history, path),
        "track.npz": lambda path: fj.save(measured, path),
        "training.json": lambda path: write_json(record, path),
        "training.png": fj.plot.track(measured, history, title).savefig,
    }
    write(out, files)
    return 0


def _cost(history: Any, measured: Any) -> str:
    """In medians: the first measurement and the first epoch compile, also of a run that goes on."""
    import numpy as np

    each, epoch = (float(np.median(np.asarray(table.seconds))) for table in (measured, history))
    many = (measured.steps.size - 1) / history.epochs.size
    return (
        f"a measurement took {each:.3g} s, an epoch with {many:.2g} of them {epoch:.3g} s (medians); "
        f"the longest, with compilation, {float(measured.seconds.max()):.3g} s"
    )


def _rows(table: Any) -> list[dict[str, Any]]:
    """Of a record of columns."""
    import dataclasses

    fields = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    columns = {name: value.tolist() for name, value in fields.items() if hasattr(value, "tolist")}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
