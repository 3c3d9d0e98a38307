"""The real command `litelvlm serve` as a process."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.utils import httpx


SOURCE = str(Path(__file__).parents[2] / "src")


@contextlib.contextmanager
def running_server(*options: Any, **environment: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """The process, which answers by now, and its address; it is killed in the end, if it is still there."""
    words = [sys.executable, "-m", "transformers_litelvlm_command", "serve", *map(str, options)]
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCE, **environment},
    ) as process:
        try:
            said = process.stderr.readline()
            [address] = re.findall(r"serving .* on cpu at (http://127\.0\.0\.1:\d+)", said)
            with httpx.Client(transport=httpx.HTTPTransport(retries=20)) as client:
                assert client.get(f"{address}/health", timeout=60).status_code == 200
            yield process, address
        finally:
            process.kill()
