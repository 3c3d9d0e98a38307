"""What a result depends on beside its options: the model's weights, versions, the machine."""

from __future__ import annotations

import datetime
import hashlib
import inspect
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import transformers_litelvlm
from transformers_litelvlm.evaluation.arguments import DataArguments
from transformers_litelvlm.evaluation.runs import parse_method
from transformers_litelvlm.models.quantization import stored_tensors
from transformers_litelvlm.pruning.registry import BUNDLED, get_pruner, provider_of
from transformers_litelvlm.version import __version__


# What `litelvlm evaluate` tells the processes that it starts.
COMMAND_VARIABLE = "LITELVLM_COMMAND"
# Of an address `scheme://user:password@host`; of a Hub token; of `?token=...` and its like.
_SECRETS = (
    r"(\w+://)[^/\s@]+(?=@)",
    r"\b(hf_)\w{8,}",
    r"(?i)\b((?:token|key|secret|password|signature|sig|credential)=)[^&\s'\"]+",
)


def versions() -> dict[str, str]:
    """Versions of what computes the masks."""
    return {
        "transformers_litelvlm": __version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def typed_command(program: str, arguments: Sequence[str]) -> str:
    """The line to type for what runs now: `program`, as it was started, with its arguments.

    Quoted for a shell, without secrets; that of the process that started this one, if it says so.
    """
    command = os.environ.get(COMMAND_VARIABLE) or f"{program} {shlex.join(arguments)}".strip()
    return without_secrets(command)


def describe_model(args: DataArguments, model: Any) -> dict[str, Any]:
    """The model that was measured; `bundled` where none was named."""
    quantization = getattr(args, "quantization", "none")
    quantized = "" if quantization == "none" else f", {quantization} weights"
    return {
        "path_or_id": without_secrets(args.model) or BUNDLED,
        "class": type(model).__name__,
        "family": model.config.model_type,
        "commit_hash": getattr(model.config, "_commit_hash", None),
        "dtype": str(model.dtype).removeprefix("torch.") + quantized,
        "num_visual_tokens": model.config.num_visual_tokens,
    }


def used_methods(args: DataArguments, model: Any) -> list[str]:
    """Names of the pruning methods of the options and of the checkpoint's own setting."""
    return [parse_method(text)[0] for text in getattr(args, "methods", [])] + model.config.pruning_config.methods


def third_party_methods(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Of some pruning methods, those that are not bundled: by name, `provided_by` and `sha256` of the file with its
    class, empty where there is no file."""
    found = {}
    for name in names:
        provider = provider_of(name)
        if provider == BUNDLED:
            continue
        try:
            digest = hashlib.sha256(Path(inspect.getfile(get_pruner(name))).read_bytes()).hexdigest()
        except (OSError, TypeError):  # of a notebook
            digest = ""
        found[name] = {"provided_by": without_secrets(provider), "sha256": digest}
    return found


def git_commit() -> str | None:
    """Commit of the package, with `+` after it if files were changed; `None` outside a repository."""
    folder = Path(transformers_litelvlm.__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()

    try:
        # An installed package can lie inside somebody else's repository.
        if not git("ls-files", "__init__.py"):
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def environment(args: DataArguments, model: Any, num_processes: int, command: str | None) -> dict[str, Any]:
    """With what results were made, for their file."""
    device = model.device
    return {
        **versions(),
        "git_commit": git_commit(),
        "hardware": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "cpu": _cpu_name(),
            "threads": torch.get_num_threads(),
            "num_processes": num_processes,
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": without_secrets(command),
        "third_party_methods": third_party_methods(used_methods(args, model)),
    }


def without_secrets(value: Any) -> Any:
    """A text, or list of texts, that may be published: passwords in addresses and tokens of the Hub become `***`.

    Anything else comes back as it is.
    """
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    if not isinstance(value, str):
        return value
    for pattern in _SECRETS:
        value = re.sub(pattern, r"\1***", value)
    return value


def weights_digest(model: torch.nn.Module) -> str:
    """A short digest of some values of every weight: other weights under the same path are another model.

    Weights that are not in memory (offloaded) count by their name and shape.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        for part in stored_tensors(weight):  # of a quantized weight its scales are sampled
            if part.device.type != "meta" and part.is_floating_point():
                sample = part.flatten()[:: max(1, part.numel() // 64)]
                digest.update(sample.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
