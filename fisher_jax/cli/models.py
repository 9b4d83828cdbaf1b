"""`fisher-jax models`: what there is to choose from."""

import argparse
from typing import Any

# What presets that do not say it are counted for.
USUAL = {"features": 64, "image": (32, 32, 3), "tokens": 32, "sequence": 8}


def add(commands: Any) -> None:
    """The parser of this command."""
    zoo = commands.add_parser(
        "models",
        help="the architectures and presets, their sizes and options",
        description="Every architecture and preset with its number of parameters; with names, their options and definition.",
    )
    zoo.add_argument("names", nargs="*", metavar="NAME", help="such as resmlp, resnet20, vit-s16")
    zoo.set_defaults(run=run_models)


def run_models(options: argparse.Namespace) -> int:
    """`fisher-jax models`."""
    import inspect

    from fisher_jax import models

    for name in options.names:
        fixed = models.architecture(name)[1]
        sizes = {what: fixed.get(what, usual) for what, usual in (("inputs", USUAL[models.takes(name)]), ("outputs", 10))}
        print(f"{name}: {models.count(name, **sizes):,} parameters at {_assignments(sizes)}")
        print(f"  {_assignments({n: v for n, v in models.options(name).items()}, separator=chr(10) + '  ')}")
        print(f"\n{inspect.getdoc(models.model_class(name))}\n")
    if options.names:
        return 0
    for kind, (_, _, sample) in models.MODELS.items():
        first = (inspect.getdoc(models.model_class(kind)) or "").splitlines()[0]
        print(f"{kind:<16} takes {sample}; {first}", flush=True)
        for name, fixed in models.presets(kind).items():
            fixed = models.architecture(name)[1]
            sizes = {"inputs": fixed.get("inputs", USUAL[sample]), "outputs": fixed.get("outputs", 10)}
            own = {n: v for n, v in fixed.items() if n not in sizes}
            print(f"  {name:<20} {models.count(name, **sizes):>13,} parameters   {_assignments(own)}", flush=True)
    return 0


def _assignments(values: dict[str, Any], separator: str = ", ") -> str:
    return separator.join(f"{name}={value}" for name, value in values.items())
