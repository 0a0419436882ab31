"""JupyterLab on loopback, and a browser that looks at it."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
CHROMIUM = os.environ.get("CALAMI_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def write_notebook(path, sources):
    """A notebook of code cells that have not run."""
    cells = [
        {"cell_type": "code", "source": s, "metadata": {}, "outputs": [], "execution_count": None, "id": f"cell{k}"}
        for k, s in enumerate(sources)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))


@contextlib.contextmanager
def jupyterlab(place):
    """The address of a server for a folder; its kernels import calami from this checkout and keep things below it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = place / "home"
    home.mkdir()
    env = os.environ | {"HOME": str(home), "JUPYTER_CONFIG_DIR": str(home), "PYTHONPATH": str(REPO)}
    env["CALAMI_CACHE"] = str(home / "cache")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root"]
    command += ["--IdentityProvider.token=", "--ServerApp.password=", f"--ServerApp.root_dir={place}"]
    command += ["--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (place / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=place)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:  # a busy machine; nothing is learnt from how long the server takes to end
            process.kill()
            process.wait()


@contextlib.contextmanager
def browser():
    """A Chromium that nobody sees."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(args=["--no-sandbox"], **({"executable_path": CHROMIUM} if CHROMIUM else {}))
        yield opened
        opened.close()


def open_notebook(page, address, name):
    """Open a notebook in a page of a browser, and wait for its kernel."""
    page.goto(f"{address}/lab/tree/{name}?reset", timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    select_kernel(page)


def select_kernel(page):
    """Choose the kernel where JupyterLab asks for it: the notebook's may not be known to it by that name."""
    from playwright.sync_api import TimeoutError as TookTooLong

    with contextlib.suppress(TookTooLong):
        page.locator('.jp-Dialog button:has-text("Select")').click(timeout=10_000)
    when_idle(page)


def when_idle(page):
    """Wait until the kernel does nothing."""
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for(timeout=120_000)
