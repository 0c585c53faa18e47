"""`tracelift run` without kernels: python in_forks.py [arguments of tracelift run].

A kernel takes ten seconds of CPU time until it has imported torch and transformers; here one process does it, and every
notebook runs in IPython in a fork of it. For the same reason planners that the library trains side by side are trained
one after the other. Figures are drawn, but not written: it is the tables that are compared.
"""

import multiprocessing
import os
import sys

import nbformat
import torch
import trl
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from tracelift_lib.runs import pipeline, report, run_notebooks  # noqa: F401  (report: for the forks)

MODELS = (trl.GRPOTrainer, trl.SFTTrainer)  # imported here, once, not in every fork


def one_after_the_other(work, calls, *_):
    for call in calls:
        work(*call)


def run_cells(notebook):
    """In a fork: the cells in IPython, as a kernel runs them."""
    os.chdir(run_notebooks.NOTEBOOKS)
    shell = InteractiveShell.instance()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()


def execute(notebook, output, parameters, **_):
    """In place of papermill.execute_notebook."""
    filled = parameterize_notebook(load_notebook_node(notebook), parameters)
    fork = multiprocessing.get_context("fork").Process(target=run_cells, args=(filled,))
    fork.start()
    fork.join()
    if fork.exitcode:
        raise SystemExit(f"{output} ended with {fork.exitcode}")
    nbformat.write(filled, output)  # without outputs


if __name__ == "__main__":
    torch.set_num_threads(1)
    Figure.savefig = lambda *_, **__: None
    run_notebooks.papermill.execute_notebook = execute
    pipeline.run_in_processes = one_after_the_other
    sys.exit(run_notebooks.main(sys.argv[1:]))
