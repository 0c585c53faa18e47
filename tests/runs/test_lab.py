"""`make lab` as a person uses it: a double click opens a source as a notebook, Run All runs it in our own kernel."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from browser import needs_browser
from common import PROJECT

SOURCE = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A lesson

# %% tags=["parameters"]
PRESET = "check"

# %%
import sys

import tracelift_lib

print("ran in", sys.prefix, 6 * 7)
"""
JUPYTER = Path(sys.prefix) / "bin" / "jupyter"


@pytest.fixture
def lab(tmp_path):
    """The address of JupyterLab, started by `make lab` on a folder with one source.

    A user's own kernel named `python3`, which cannot run, must not be taken: other configuration than the test's own is
    out of reach.
    """
    kernel = tmp_path / "data" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(
        json.dumps({"argv": ["false", "{connection_file}"], "display_name": "Foreign", "language": "python"})
    )
    (tmp_path / "lessons").mkdir()
    (tmp_path / "lessons" / "lesson.py").write_text(SOURCE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = "--no-browser --allow-root --IdentityProvider.token=t --LabApp.expose_app_in_browser=True"
    values = [f"VENV={sys.prefix}", f"PORT={port}", f"LAB_ARGS={options}", f"LAB_FOLDER={tmp_path / 'lessons'}"]
    environment = {
        **os.environ,
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_PREFER_ENV_PATH": "0",
        "PYTHONPATH": str(PROJECT),
    }
    command = ["make", "-o", f"{sys.prefix}/.installed", "lab", *values, f"LAB_CONFIG={tmp_path / 'config'}"]
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/api/status?token=t")
                break
            assert process.poll() is None, (tmp_path / "log.txt").read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/lab?token=t"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@needs_browser
@pytest.mark.skipif(not JUPYTER.exists(), reason="JupyterLab is not in this environment")
def test_a_double_click_opens_a_notebook_and_run_all_runs_it(lab, browser, tmp_path):
    browser.open(lab)
    browser.wait("return !!window.jupyterapp && document.querySelectorAll('.jp-DirListing-item').length", 240)
    browser.run(
        "const items = [...document.querySelectorAll('.jp-DirListing-item')];"
        "const item = items.find(e => e.innerText.includes('lesson.py'));"
        "item.dispatchEvent(new MouseEvent('dblclick', {bubbles: true}))"
    )
    browser.wait("return document.querySelectorAll('.jp-NotebookPanel .jp-Cell').length >= 3", 240)
    browser.wait("return jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", 240)
    browser.run("jupyterapp.commands.execute('notebook:run-all-cells')")
    printed = browser.wait("return document.querySelector('.jp-OutputArea-output pre')?.innerText || ''", 240)
    assert printed.strip() == f"ran in {sys.prefix} 42"
    browser.picture(tmp_path / "lab.png")
    assert "# # A lesson" in (tmp_path / "lessons" / "lesson.py").read_text()
