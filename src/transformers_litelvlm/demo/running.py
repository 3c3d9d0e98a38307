"""A model with its page, and the server that shows it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers_litelvlm.demo.comparing import Comparer
from transformers_litelvlm.demo.pictures import WARM_UP, write_scene
from transformers_litelvlm.serving.limits import Limits
from transformers_litelvlm.serving.segmenter import Segmenter


BUNDLED = "the bundled checkpoint"


@contextmanager
def files_of_gradio() -> Iterator[Path]:
    """A folder for what is uploaded and computed, deleted at the end. Gradio is told of it, and to report nothing.

    Gradio must not have made a page before.
    """
    with TemporaryDirectory(prefix="litelvlm-demo-") as folder:
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        yield Path(folder)


def make_comparer(model: Any, processor: Any, name: str | None, limits: Limits) -> Comparer:
    """The model of a page, after a first call, which is slower than others; without a `name` it is the bundled one."""
    comparer = Comparer(Segmenter(model, processor, limits), name or BUNDLED)
    with TemporaryDirectory() as folder:
        path, sentences = write_scene(WARM_UP, Path(folder))
        comparer.compare(path, sentences[0])
    return comparer


def describe_model(comparer: Comparer) -> str:
    """What the page says about the checkpoint, in Markdown."""
    model, is_bundled = comparer.segmenter.model, comparer.model == BUNDLED
    name = "The bundled checkpoint" if is_bundled else f"`{comparer.model}`"
    note = " It knows drawn shapes, not photos." if is_bundled else ""
    dtype = str(model.dtype).removeprefix("torch.")
    return (
        f"Checkpoint: {name} ({type(model).__name__}), {dtype} on {model.device}.{note} Each image is segmented "
        "twice: with all visual tokens, and with those that the setting keeps."
    )


@contextmanager
def shown(page: Any, options: dict[str, Any], host: str, port: int) -> Iterator[None]:
    """Show the page at an address.

    By `launch`: a page that is mounted in another application does not check which files a client names.
    """
    page.launch(server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, **options)
    try:
        yield
    finally:
        page.close(verbose=False)


def wait_for_signal() -> None:
    """Return at SIGINT or SIGTERM."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
