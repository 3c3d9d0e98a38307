"""Running the application with uvicorn."""

from __future__ import annotations

import socket
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn


if TYPE_CHECKING:
    from transformers_litelvlm.serving.service import Service


STOP_SECONDS = 60


class Server(uvicorn.Server):
    """Stops gracefully: what is inside is finished, and new requests on open connections are refused."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.begin_stop()
        super().handle_exit(sig, frame)


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, on which nobody listens yet. Raises OSError or ValueError if there is none."""
    if not host:  # of a variable that is not set
        raise ValueError("an empty host is all addresses of this machine: write 0.0.0.0 if you mean them")
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def in_address(host: str) -> str:
    """A host as part of an address, where IPv6 is in brackets."""
    return f"[{host}]" if ":" in host else host


def make_server(app: Any, service: Service) -> Server:
    """A server that `run(sockets=[...])` starts, and that SIGINT and SIGTERM stop."""
    config = uvicorn.Config(
        app,
        http="h11",  # one behaviour everywhere, whatever else is installed
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    return Server(config, service)
