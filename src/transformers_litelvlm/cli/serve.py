"""`litelvlm serve`: masks over HTTP."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable
from typing import Any

from transformers_litelvlm.cli.errors import BadInputError, bad_input, positive_int
from transformers_litelvlm.cli.models import add_mask_model, add_model, add_pruning, import_given, load_model
from transformers_litelvlm.evaluation.arguments import add_imports
from transformers_litelvlm.utils.extras import needs_extra


CHECKPOINT = "model"
TOKEN_VARIABLE = "LITELVLM_TOKEN"
LABEL_STUDIO_VARIABLE = "LABEL_STUDIO_API_KEY"  # as in Label Studio's own packages
HELP = "answer requests for masks over HTTP"
DESCRIPTION = (
    "Answer requests for masks over HTTP: POST /v1/segment with an image and sentences. GET /docs explains it."
)
EPILOG = """\
examples:
  litelvlm serve
  litelvlm serve --model ./glamm-refseg --preset balanced --dtype bfloat16 --inexact-batches
  litelvlm serve --model Qwen/Qwen3-VL-4B-Instruct --mask-model facebook/sam2.1-hiera-large
  litelvlm serve --port 9000 --token-file token.txt --max-queue 16 --cache-mb 2048
  litelvlm serve --port 9090 --label-studio-url http://localhost:8080

./glamm-refseg is the folder that `litelvlm convert glamm MBZUAI/GLaMM-RefSeg ./glamm-refseg` makes.
The pruning options are for requests without settings of their own.
The log has one JSON object a line, on the standard output. SIGINT and SIGTERM finish what was begun.
Before others may reach it, read docs/serving.md: there is no encryption.
"""
# Option -> field of `Limits`, which imports torch; a test compares.
LIMITS: dict[str, tuple[str, type | Any, Any, str]] = {
    "--batch-wait-ms": ("MS", float, 2, "milliseconds that a request waits for others that can share its call"),
    "--max-batch": ("N", positive_int, 16, "requests in one call of the model; 1 puts none together"),
    "--cache-mb": ("MB", int, 512, "megabytes of encoded images to keep; 0 keeps none"),
    "--max-request-mb": ("MB", positive_int, 20, "megabytes of a request"),
    "--max-pixels": ("N", positive_int, 16_000_000, "pixels of an image"),
    "--max-sentences": ("N", positive_int, 16, "sentences of a request"),
    "--max-queue": ("N", positive_int, 64, "requests that are being read, wait or are answered at a time"),
    "--read-seconds": ("S", float, 30, "seconds in which a request must have arrived"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_mask_model(parser)
    add_pruning(parser)
    add_imports(parser)
    add_listening(parser, 8000, LIMITS)
    parser.add_argument(
        "--inexact-batches",
        action="store_true",
        help="share calls also where single pixels of a mask may then differ: on a GPU, in 16 bits",
    )
    parser.add_argument("--allow-urls", action="store_true", help="fetch images whose address a client sends")
    parser.add_argument(
        "--label-studio-url",
        metavar="URL",
        help=f"answer Label Studio, too, and fetch uploads from it with the key in {LABEL_STUDIO_VARIABLE}",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"file with the bearer token that clients must send (default: {TOKEN_VARIABLE} in the environment)",
    )


def add_listening(parser: argparse.ArgumentParser, port: int, limits: Iterable[str]) -> None:
    """Add where a server listens, by default at `port`, and those of [`LIMITS`] that it has."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine)"
    )
    parser.add_argument("--port", type=_port, default=port, help="port to listen at; 0: any (default: %(default)s)")
    for option in limits:
        metavar, kind, default, text = LIMITS[option]
        parser.add_argument(option, metavar=metavar, type=kind, default=default, help=f"{text} (default: %(default)s)")


def read_limits(args: argparse.Namespace, limits: Iterable[str]) -> Any:
    """The `Limits` that the options of [`add_listening`] say."""
    from transformers_litelvlm.serving.limits import Limits

    names = [option.removeprefix("--").replace("-", "_") for option in limits]
    with bad_input():
        return Limits(**{name: getattr(args, name) for name in names})


def run(args: argparse.Namespace) -> None:
    """Load the model and serve until a signal comes."""
    token = read_token(args.token_file)
    import_given(args)
    with needs_extra("serve", "litelvlm serve"):
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    from transformers_litelvlm.serving.app import create_app
    from transformers_litelvlm.serving.label_studio import LabelStudio
    from transformers_litelvlm.serving.segmenter import Segmenter
    from transformers_litelvlm.serving.server import bind, in_address, make_server
    from transformers_litelvlm.serving.service import Service

    limits = read_limits(args, LIMITS)
    label_studio = None
    if args.label_studio_url is not None:
        with bad_input("--label-studio-url: "):
            label_studio = LabelStudio(args.label_studio_url, os.environ.get(LABEL_STUDIO_VARIABLE))
    # Before gigabytes are read; connections are accepted when the model is there.
    with bad_input(f"--host {args.host} --port {args.port}: "):
        bound = bind(args.host, args.port)
    with bound:
        model, processor = load_model(args, args.mask_model)
        segmenter = Segmenter(model, processor, limits, exact=not args.inexact_batches)
        service = Service(segmenter, limits, args.allow_urls)
        _log_to(sys.stdout)
        print(
            f"litelvlm: serving {args.model or 'the bundled model'} on {model.device} at "
            f"http://{in_address(args.host)}:{bound.getsockname()[1]}{'' if token else ', without a token'}",
            file=sys.stderr,
        )
        try:
            make_server(create_app(service, token, label_studio), service).run(sockets=[bound])
        finally:
            service.close()


def read_token(file: str | None) -> str | None:
    """The bearer token, of a file or of the environment; `None` if there is none. Raises BadInputError, whose message
    does not show it, if it is empty, or could not stand in a header."""
    if file is not None:
        with bad_input(f"--token-file {file}: "), open(file, encoding="utf-8") as stream:
            token = stream.read().strip()
    elif (given := os.environ.get(TOKEN_VARIABLE)) is not None:
        token = given.strip()
    else:
        return None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise BadInputError(f"{file or TOKEN_VARIABLE}: a token must be printable ASCII without spaces, and not empty")
    return token


def _log_to(stream: Any) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("transformers_litelvlm.serving")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False


def _port(text: str) -> int:
    """Type of an argparse argument: 0 to 65535."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, got {text!r}")
    return int(text)
