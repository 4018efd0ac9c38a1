"""A real JupyterLab and a real Chromium, cut off from everything but this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.browser.lab_page import LabPage
from visualizations.explorers.base import standalone_html

ROOT = Path(__file__).parents[2]
HERE = ("127.0.0.1", "localhost")
START_SECONDS = 90
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

SETTINGS = {
    # Every cell is in the page, whether scrolled to or not; and nothing asks the network for news.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}


class Lab(NamedTuple):
    address: str
    folder: Path  # what it serves


def chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, names) if path), None)


@pytest.fixture(scope="package")
def browser():
    executable = chromium()
    if executable is None:
        message = "no Chromium: apt install chromium, or name it with CHROMIUM=/path/to/chrome"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def lab(tmp_path_factory):
    """JupyterLab. It serves a copy of the chapters, keeps its settings to itself and asks for no token."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "chapters", home / "work" / "chapters")
    for name, values in SETTINGS.items():
        file = home / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    for unwanted in ("MPLBACKEND", "COVERAGE_PROCESS_CONFIG"):  # a kernel measured for what the suite covers would be slow
        environment.pop(unwanted, None)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--ServerApp.root_dir={home / 'work'}", "--IdentityProvider.token=",
        "--ServerApp.disable_check_xsrf=True", "--LabApp.expose_app_in_browser=True",
        "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    log = home / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=home / "work", env=environment, stdout=out, stderr=out)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for_server(server, address, log)
        yield Lab(address, home / "work")
    finally:
        server.send_signal(signal.SIGTERM)  # it shuts its kernels down first
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for_server(server, address, log):
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            direct.open(f"{address}/api/status", timeout=2).read()
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
    raise RuntimeError("JupyterLab did not start:\n" + log.read_text(errors="replace", encoding="utf-8")[-3000:])


@pytest.fixture
def show(browser, tmp_path):
    """show(*explorers, width=..., mode="light" | "dark"): a page with them and no kernel. It must end without an error."""
    pages, errors = [], []

    def open_page(*explorers, width=1000, mode="light"):
        file = tmp_path / f"{len(pages)}.html"
        file.write_text(standalone_html(list(explorers)), encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=mode)
        page.set_default_timeout(10_000)
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(file.as_uri())
        page.wait_for_function("n => document.querySelectorAll('.nvx-root[data-ready]').length === n", arg=len(explorers))
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert errors == []


@pytest.fixture
def lab_page(browser, lab):
    """A fresh page on JupyterLab which notes its console errors and every address outside this machine it asks for."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    lab_page = LabPage(page, lab.address)

    def guard(route):
        url = urllib.parse.urlparse(route.request.url)
        if url.scheme in ("http", "https") and url.hostname not in HERE:
            lab_page.outside.append(route.request.url)
            route.abort()
        else:
            route.continue_()

    def websocket(socket):
        if urllib.parse.urlparse(socket.url).hostname not in HERE:
            lab_page.outside.append(socket.url)

    context.route("**/*", guard)
    page.on("websocket", websocket)
    page.on("console", lambda m: lab_page.console_errors.append(m.text[:500]) if m.type == "error" else None)
    page.on("pageerror", lambda error: lab_page.console_errors.append(str(error)[:500]))
    yield lab_page
    lab_page.shut_down_kernel()
    context.close()
