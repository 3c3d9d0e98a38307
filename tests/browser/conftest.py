"""The command as a process, and a browser that notes what goes wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest


if TYPE_CHECKING:
    from playwright.sync_api import Page


SOURCE = str(Path(__file__).parents[2] / "src")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def address():
    """Where `litelvlm demo` shows the bundled checkpoint."""
    command = [sys.executable, "-m", "transformers_litelvlm_command", "demo", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": SOURCE}
    ) as process:
        said = process.stderr.readline()
        [found] = re.findall(r"http://127\.0\.0\.1:\d+", said)
        yield found
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert out == "" and "Traceback" not in err and process.returncode == 0, err


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright  # not installed where `make test` reads this file

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["CHROMIUM"], args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Open the page in a window of some size and colours. At the end, nothing may have failed or left this machine."""
    contexts, faults = [], []

    def watch(page: Page) -> None:
        page.on("console", lambda message: message.type == "error" and faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.on("response", lambda answer: answer.status >= 400 and faults.append(f"{answer.status}: {answer.url}"))
        page.on("requestfailed", lambda request: has_failed(request) and faults.append(f"failed: {request.url}"))
        page.on("request", lambda request: is_elsewhere(request.url) and faults.append(f"elsewhere: {request.url}"))

    def has_failed(request) -> bool:
        # Gradio closes the stream of its answers when it has all of them, which is no failure.
        return "/queue/data" not in request.url

    def is_elsewhere(url: str) -> bool:
        return urlsplit(url).scheme not in ("data", "blob") and not url.startswith(address + "/")

    def open_one(width: int = 1280, height: int = 900, colours: str = "light") -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=colours, accept_downloads=True
        )
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        watch(page)
        page.goto(address)
        page.locator("#examples button").first.wait_for()
        page.wait_for_timeout(1500)  # the page attaches its events
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert faults == []
