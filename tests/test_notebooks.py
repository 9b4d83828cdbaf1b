"""Every notebook runs from top to bottom as it is."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

LONG = (
    "02_whole_spectrum",
    "03_density_and_certificates",
    "04_model_zoo",
    "05_spectrum_during_training",
    "06_theory_vs_measurement",
    "07_learning_rate_and_generalization",
    "08_initialization_and_separability",
)
NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in LONG else []) for p in NOTEBOOKS]
)
@pytest.mark.filterwarnings("ignore")
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
