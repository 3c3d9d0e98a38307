"""Python processes that begin with torch and transformers imported, which takes a fresh interpreter 10 seconds.

A server of `multiprocessing` has imported the libraries, and forks a child per call. The package itself is imported by
each child, so one that must not see it can have that. Children get their words, variables and folder, and their end is
that of a process; but what reads variables while transformers is imported, or needs the start or the end of an
interpreter, is for a fresh one.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch


ROOT = Path(__file__).parents[2]

_SERVER = multiprocessing.get_context("forkserver")
# Importing them starts no thread that computes: those of torch do not survive a fork.
_SERVER.set_forkserver_preload(
    [
        "accelerate",
        "pyarrow.parquet",
        "pycocotools.mask",
        "transformers.pipelines",
        "transformers.models.clip.modeling_clip",
        "transformers.models.llava.modeling_llava",
        "transformers.models.llava.processing_llava",
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
        "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
        "transformers.models.sam.modeling_sam",
        "transformers.models.sam2_video.modeling_sam2_video",
    ]
)


def _child(words: list[str], variables: dict[str, str], folder: str, path: list[str], files: tuple[str, str]) -> None:
    gc.freeze()  # to collect garbage would copy what was imported, page by page, to look at it
    os.chdir(folder)
    os.environ.update(variables)
    sys.path[:0] = path
    for number, file, stream in zip((1, 2), files, ("stdout", "stderr"), strict=True):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
        setattr(sys, stream, open(number, "w", closefd=False))  # noqa: SIM115 (open as long as the process lives)
    # Jobs in the background of a script ignore Control-C, and hand that down.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    if words[0] == "-m":
        sys.argv[:] = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = words
        runpy.run_path(words[0], run_name="__main__")


def start(
    words: Sequence[object],
    files: tuple[Path, Path],
    variables: Mapping[str, str] | None = None,
    folder: Path = ROOT,
    path: Sequence[Path] = (),
) -> BaseProcess:
    """A process that runs; it has `pid`, `exitcode`, `is_alive()` and `join()`.

    Args:
        words: what would stand behind `python`: `-m` and a module, or a file; then its arguments.
        files: for its standard output and standard error.
        variables: of its environment, beside those of this process. It computes with as many threads as this one.
        folder: where it works.
        path: where modules are looked for first.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **(variables or {})}
    child = _SERVER.Process(
        target=_child,
        args=([*map(str, words)], variables, str(folder), [*map(str, path)], tuple(map(str, files))),
    )
    child.start()
    return child


def run(words: Sequence[object], *each: Mapping[str, str], **options: Any) -> list[subprocess.CompletedProcess]:
    """Run a process to its end, or several side by side, with variables of their own.

    Args:
        words, options: as for [`start`].
        each: variables of each; none for a single process without.
    """
    with tempfile.TemporaryDirectory() as name:
        files = [(Path(name, f"{number}.out"), Path(name, f"{number}.err")) for number in range(max(1, len(each)))]
        children = [
            start(words, pair, variables, **options) for pair, variables in zip(files, each or [{}], strict=True)
        ]
        try:
            for child in children:
                child.join(240)
        finally:
            for child in children:
                child.kill()
                child.join()
        return [
            subprocess.CompletedProcess(child.name, child.exitcode, *(file.read_text() for file in pair))
            for child, pair in zip(children, files, strict=True)
        ]


# Not `getrusage`: that one starts with the memory of the process that started this one.
_PEAK = """
import json, re
def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read()).group(1))
{before}
start = peak()
{code}
print(json.dumps((peak() - start) / 1024))
"""


def memory_of(before: str, code: str) -> float:
    """By how many MiB `code` exceeds the peak memory of what runs `before` it in a process of its own. Linux only."""
    with tempfile.TemporaryDirectory() as name:
        script = Path(name, "measured.py")
        script.write_text(_PEAK.format(before=before, code=code))
        [ended] = run([script])
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])
