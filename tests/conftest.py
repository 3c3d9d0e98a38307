"""Settings of every test: no network, nothing read from the user's caches, upstream deprecations are failures."""

from __future__ import annotations

import atexit
import gc
import ipaddress
import os
import shutil
import socket
import tempfile


# Before anything imports huggingface_hub or transformers, which read these once. A cache of its own keeps the tests
# from passing thanks to weights that this user happens to have; processes that tests start inherit it.
_HF_HOME = tempfile.mkdtemp(prefix="litelvlm-tests-")
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)
os.environ.update(
    HF_HOME=_HF_HOME,
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_EVALUATE_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
for _name in ("HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_CACHE", "HF_TOKEN"):
    os.environ.pop(_name, None)

import logging  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from accelerate.state import AcceleratorState, GradientState  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from transformers_litelvlm.utils.messages import SAID  # noqa: E402


# Under pytest-xdist the workers share the cores; more threads than cores only slow the tiny models down.
_NUM_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, min(4, (os.cpu_count() or 1) // _NUM_WORKERS)))


@pytest.hookimpl(tryfirst=True)  # before fixtures, whose models may be random
def pytest_runtest_setup() -> None:
    """Random numbers of a test do not depend on the tests that ran before."""
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """What the imports left is not garbage: to look it through took a quarter of the time of some folders."""
    gc.collect()
    gc.freeze()


def _is_local(address: object) -> bool:
    """Whether `address`, as given to `socket.connect`, stays on this machine."""
    if not isinstance(address, tuple):
        return True  # a path: AF_UNIX
    host = address[0]
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection that would leave this machine is an error that names the address."""

    def guarded(name: str):
        original = getattr(socket.socket, name)

        def connect(self, address, *args):
            if not _is_local(address):
                raise RuntimeError(f"A test tried to reach {address!r}; tests must run without network.")
            return original(self, address, *args)

        return connect

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(name))

    resolve = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if not _is_local((host or "",)):
            raise socket.gaierror(f"A test tried to look up {host!r}; tests must run without network.")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


class _DeprecationRecorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if "deprecat" in message.lower():
            self.messages.append(f"{record.name}: {message}")


@pytest.fixture(autouse=True)
def no_upstream_deprecation():
    """A test fails when transformers logs that something is deprecated: the early warning for who subclasses it."""
    # transformers says such things once per process; without this only the first of several affected tests would fail.
    transformers_logging.warning_once.cache_clear()
    SAID.clear()  # the same of this package
    recorder = _DeprecationRecorder()
    logger = logging.getLogger("transformers")
    logger.addHandler(recorder)
    yield recorder
    logger.removeHandler(recorder)
    if recorder.messages:
        pytest.fail("transformers logged a deprecation:\n" + "\n".join(recorder.messages))


@pytest.fixture(autouse=True)
def no_accelerate_state():
    """Each test makes its own Accelerator: accelerate keeps the first one's precision for the life of the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
