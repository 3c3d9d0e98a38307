"""What `make test-vllm` runs with: a CPU, one process, no network."""

from __future__ import annotations

import gc
import os


# Before anything imports vLLM. Threads that are bound to cores, or wait for each other, are slow on a shared machine.
os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_NO_USAGE_STATS="1",
    OMP_NUM_THREADS="1",
    DO_NOT_TRACK="1",
)

import pytest  # noqa: E402

from tests.support import vllm_checkpoints  # noqa: E402


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Where a checkpoint is, by name; made when it is asked for."""
    made: dict[str, str] = {}

    def get(name: str) -> str:
        if name not in made:
            folder = tmp_path_factory.mktemp("checkpoints") / name
            family, _, stock = name.partition("-")
            if family.startswith("qwen"):
                made[name] = vllm_checkpoints.save_qwen(folder, family, is_stock=stock == "stock")
            else:
                made[name] = getattr(vllm_checkpoints, f"save_{name}")(folder)
        return made[name]

    return get


@pytest.fixture(scope="module")
def start_engine():
    """Start an engine; its memory is given back before the next one, and before the next module."""
    from vllm import LLM

    def start(path: str, pruning: dict, **settings):
        gc.collect()  # an engine that is deleted while another one starts takes the process groups from it
        defaults = {
            "dtype": "float32",
            "enforce_eager": True,
            "seed": 0,
            "max_model_len": 1024,
            "max_num_seqs": 8,
            "block_size": 32,
            # Less than a prompt: so prompts are read in chunks that end within pictures.
            "max_num_batched_tokens": 64,
            "limit_mm_per_prompt": {"image": 2},
            "hf_overrides": {"pruning_config": pruning},
        }
        return LLM(path, **{**defaults, **settings})

    yield start
    gc.collect()
