"""The guards of conftest.py can fail: each is shown to catch what it is there for."""

from __future__ import annotations

import socket

import pytest
from transformers.utils import logging


def test_connections_that_leave_the_machine_are_refused():
    with socket.socket() as client, pytest.raises(RuntimeError, match="without network"):
        client.connect(("192.0.2.1", 80))  # reserved for documentation: no such host exists
    with pytest.raises(socket.gaierror, match="without network"):
        socket.create_connection(("example.invalid", 80), timeout=1)


def test_connections_on_this_machine_work():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
        pass


def test_upstream_deprecations_are_recorded(no_upstream_deprecation):
    logging.get_logger("transformers.models.llava").warning_once("`x` is deprecated and will be removed in v6.")
    assert len(no_upstream_deprecation.messages) == 1
    no_upstream_deprecation.messages.clear()
