"""`litelvlm env`: what a bug report should say about the machine."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

from transformers_litelvlm.utils.files import to_json


PACKAGES = (
    "transformers_litelvlm",
    "transformers",
    "torch",
    "torchvision",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "accelerate",
    "datasets",
    "numpy",
    "pillow",
)

HELP = "print versions, devices and the bundled checkpoint, for a bug report"
DESCRIPTION = "Print what a bug report should hold: versions, devices, threads, the bundled checkpoint."
EPILOG = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(args: argparse.Namespace) -> None:
    """Print the environment."""
    facts = describe_environment()
    if args.json:
        print(to_json(facts, indent=2))
        return
    for name, value in facts.items():
        print(f"{name}: {value}")


def describe_environment() -> dict[str, Any]:
    """Facts about this installation, by name."""
    import torch

    facts: dict[str, Any] = {package: _installed(package) for package in PACKAGES}
    facts["python"] = platform.python_version()
    facts["platform"] = platform.platform()
    facts["cpu capability"] = torch.backends.cpu.get_cpu_capability()
    facts["torch threads"] = torch.get_num_threads()
    facts["cuda"] = torch.version.cuda or "not in this build of torch"
    facts["devices"] = _devices()
    facts["bundled checkpoint"] = _bundled_checkpoint()
    return facts


def _installed(package: str) -> str:
    if package == "transformers_litelvlm":  # also if the package is run from its sources
        from transformers_litelvlm.version import __version__

        return __version__
    import importlib.metadata  # a fifth of the time that `litelvlm --help` takes

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> str:
    import torch

    found = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return ", ".join(["cpu", *found])


def _bundled_checkpoint() -> str:
    from transformers_litelvlm import DEFAULT_CHECKPOINT

    folder = Path(DEFAULT_CHECKPOINT)
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        return f"MISSING in {folder}"
    return f"{folder} ({sum(path.stat().st_size for path in weights) / 1e6:.1f} MB)"
