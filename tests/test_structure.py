"""What the code base promises about itself: layers, imports, import time, public names."""

import ast
import pathlib
import subprocess
import sys

import fisher_jax

ROOT = pathlib.Path(fisher_jax.__file__).parent
LAYERS = [
    {"_record", "_checks"},
    {"linalg", "operators", "results", "estimates", "findings", "likelihoods", "functional"},
    {"factor", "kernels", "krylov", "sites", "theory"},
    {"costs", "fisher", "gram", "modes", "rows", "solvers", "streamed", "structured"},
    {"density", "kfac", "masks", "moments", "plan", "plot", "report", "spectrum", "track", "traces"},
    {"experiments"},
    {"cli"},
]
# Within a row, the order of the files.
ORDER = {
    "linalg": 0,
    "results": 0,
    "findings": 1,
    "estimates": 1,
    "likelihoods": 0,
    "functional": 1,
    "operators": 1,
    "factor": 0,
    "sites": 0,
    "kernels": 1,
    "report": 0,
    "density": 0,
    "traces": 0,
    "moments": 1,
    "plot": 1,
    "gram": 0,
    "modes": 0,
    "rows": 1,
    "structured": 1,
    "streamed": 1,
    "fisher": 2,
    "costs": 2,
    "solvers": 3,
    "spectrum": 0,
    "plan": 1,
    "track": 1,
    "kfac": 1,
}
# The Flax side: used by experiments and the command line only.
APPLICATION = {"models", "data", "train"}


def imports(path):
    """Names of fisher_jax modules that a file imports when it is loaded."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fisher_jax"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("fisher_jax.")}
    return found


def test_a_module_imports_only_from_rows_above_its_own():
    row = {name: i for i, names in enumerate(LAYERS) for name in names}
    checked = 0
    for path in ROOT.rglob("*.py"):
        top = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if top in ("__init__", "__main__", "cli"):
            continue
        for name in imports(path) - {top}:
            checked += 1
            if top in APPLICATION:
                assert name in LAYERS[0] | LAYERS[1], f"{path.name} imports {name}"
                continue
            if top == "experiments" and name in APPLICATION:
                continue
            assert name in row, f"{path.name} imports {name}"
            above = row[name] < row[top] or (row[name] == row[top] and ORDER.get(name, 0) < ORDER.get(top, 0))
            assert above, f"{path.name} (row {row[top]}) imports {name} (row {row[name]})"
    assert checked > 30


def test_no_private_jax_no_pickle():
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        assert "jax._src" not in text and "import pickle" not in text and "allow_pickle=True" not in text, path


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_is_light():
    """Less than half a second over jax, and neither Flax, Matplotlib, SciPy nor Orbax until they are used."""
    # Of the processor, not of the clock: the other tests run beside.
    out = run(
        "import time, jax, jax.numpy; t = time.process_time(); import fisher_jax; t = time.process_time() - t\n"
        "import sys; print(t, [m for m in ('flax', 'matplotlib', 'orbax', 'rich') if m in sys.modules])"
    )
    seconds, loaded = out.split(" ", 1)
    assert loaded.strip() == "[]" and float(seconds) < 0.5


def test_public_names_exist_and_are_documented():
    for name in dir(fisher_jax):
        value = getattr(fisher_jax, name)
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("fisher_jax"):
            assert value.__doc__ and len(value.__doc__) > 20, name
