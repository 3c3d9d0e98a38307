"""Code in an interpreter of its own, and what of transformers may not change in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import torch


def run_python(code: str) -> Any:
    """Run `code` in a fresh interpreter; what it prints on its last line is read as JSON."""
    # As many threads as this process has: two of them on a core would make tiny models several times slower.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


UPSTREAM_SNAPSHOT = """
import json, logging, warnings
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.clip import modeling_clip
from transformers.models.llama import modeling_llama
from transformers.models.llava import configuration_llava, modeling_llava, processing_llava
from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl, modeling_qwen2_5_vl, processing_qwen2_5_vl
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe
from transformers.models.qwen3_vl import configuration_qwen3_vl, modeling_qwen3_vl, processing_qwen3_vl
from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe
from transformers.models.sam import modeling_sam
from transformers.modeling_utils import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation.utils import GenerationMixin

MODULES = [modeling_clip, modeling_llama, modeling_llava, configuration_llava, processing_llava, modeling_sam]
MODULES += [configuration_qwen2_5_vl, modeling_qwen2_5_vl, processing_qwen2_5_vl]
MODULES += [configuration_qwen3_vl, modeling_qwen3_vl, processing_qwen3_vl, modeling_qwen3_vl_moe]
MODULES += [modeling_qwen3_5, modeling_qwen3_5_moe]
BASES = [PreTrainedModel, PreTrainedConfig, GenerationMixin]


def snapshot():
    classes = [value for module in MODULES for value in vars(module).values() if isinstance(value, type)] + BASES
    state = {}
    for cls in classes:
        for name, value in vars(cls).items():
            # dict and list attributes are shared with subclasses: their content counts, not only their identity.
            content = repr(value) if isinstance(value, (dict, list, tuple, set, str, int)) else ""
            state[f"{cls.__module__}.{cls.__qualname__}.{name}"] = (id(value), content)
    for module in MODULES:
        for name, value in vars(module).items():
            state[f"{module.__name__}:{name}"] = (id(value), "")
    return state


def registered():
    return {name: CONFIG_MAPPING[name].__name__ for name in ("llava", "clip", "llama", "sam", "qwen2_5_vl")}


def log_state():
    names = (None, "transformers", "transformers_litelvlm")
    loggers = [logging.getLogger(name) for name in names]
    return [[len(logger.handlers), logger.level, logger.propagate] for logger in loggers]


import torch
random_state = torch.get_rng_state().clone()
# Classes are made lazily: touch them first, so that only what our import does is seen.
modeling_llava.LlavaForConditionalGeneration, modeling_sam.SamModel, modeling_qwen2_5_vl.Qwen2_5_VLModel
before, registered_before, logs_before = snapshot(), registered(), log_state()
filters_before, threads_before = list(warnings.filters), torch.get_num_threads()
import transformers_litelvlm
after = snapshot()
print(json.dumps({
    "changed": sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key)),
    "registered": registered() == registered_before,
    "logging": log_state() == logs_before,
    "filters": list(warnings.filters) == filters_before,
    "random": bool(torch.equal(torch.get_rng_state(), random_state)),
    "threads": torch.get_num_threads() == threads_before,
    "size": len(before),
}))
"""
