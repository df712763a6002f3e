"""The example notebook runs from its first cell to its last."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "experiments" / "notebook.ipynb"


@pytest.mark.slow
@pytest.mark.docs
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # those of the notebook's own machinery
def test_the_notebook_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(
        not cell.outputs for cell in notebook.cells if cell.cell_type == "code"
    )  # kept without outputs
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        str(out) for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs
    ]
    assert all(
        part in "".join(shown)
        for part in ("intent_accuracy", "privacy.epsilon_guarantee", "alarm_set")
    )
    assert (tmp_path / "reports/notebook/report.html").is_file()
