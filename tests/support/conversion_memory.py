"""Peak resident memory of a conversion, against the size of the source.

    python -m tests.support.conversion_memory --gigabytes 7 --dtype float8_e4m3fn --folder /tmp/big

Makes a source with the names of a 7B GLaMM checkpoint (values random, widths scaled to the size), converts it in a
process of its own, prints one JSON line, and deletes both.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from pathlib import Path

import torch

from tests.support import warm_python
from transformers_litelvlm.conversion.convert import Conversion, convert_checkpoint
from transformers_litelvlm.conversion.renaming import Drop, Part, Rename
from transformers_litelvlm.conversion.source import CheckpointSource


NUM_LAYERS = 32
PROJECTIONS = {
    "self_attn.q_proj": (1, 1),
    "self_attn.k_proj": (1, 1),
    "self_attn.v_proj": (1, 1),
    "self_attn.o_proj": (1, 1),
    "mlp.gate_proj": (2.6875, 1),
    "mlp.up_proj": (2.6875, 1),
    "mlp.down_proj": (1, 2.6875),
}
RULES = (
    Drop(r".*\.inv_freq", "computed when the model is built"),
    Rename(r"model\.(embed_tokens|layers\.\d+)\.(.*)", r"model.language_model.\1.\2"),
    Rename(r"lm_head\.weight", "lm_head.weight"),
)


def shapes(size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the layout of GLaMM with about `size` values; 6.6e9 of them at a width of 4096."""
    # Each layer has 12.0625 squares of the width, both tables 7.8125 (32,000 rows at 4096).
    width = int((size / (NUM_LAYERS * 12.0625 + 2 * 7.8125)) ** 0.5) // 16 * 16
    result: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (int(7.8125 * width), width)}
    for index in range(NUM_LAYERS):
        for name, (rows, columns) in PROJECTIONS.items():
            result[f"model.layers.{index}.{name}.weight"] = (int(rows * width), int(columns * width))
        result[f"model.layers.{index}.self_attn.rotary_emb.inv_freq"] = (64,)
    result["lm_head.weight"] = (int(7.8125 * width), width)
    return result


def make_source(folder: Path, size: int, dtype: torch.dtype, num_shards: int = 2) -> int:
    """Writes the sharded .bin source, one shard in memory at a time. Returns the size of the largest file."""
    folder.mkdir(parents=True)
    names = list(shapes(size).items())
    share, weight_map = -(-len(names) // num_shards), {}
    for shard in range(num_shards):
        file = folder / f"pytorch_model-{shard + 1:05d}-of-{num_shards:05d}.bin"
        content = {}
        for name, shape in names[shard * share : (shard + 1) * share]:
            count = torch.Size(shape).numel() * dtype.itemsize
            content[name] = torch.randint(0, 120, (count,), dtype=torch.uint8).view(dtype).reshape(shape)
            weight_map[name] = file.name
        torch.save(content, file)
        del content
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return max(file.stat().st_size for file in folder.glob("*.bin"))


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes; mapped files count. Linux only.

    Not `getrusage`: that one starts with the memory of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status).group(1)) * 1024


def convert(folder: Path, size: int) -> dict[str, float]:
    """Converts in this process; returns its memory before and its peak, and the seconds."""
    targets = {
        name.replace("model.", "model.language_model.", 1): shape
        for name, shape in shapes(size).items()
        if "inv_freq" not in name
    }
    part = Part("model", CheckpointSource(folder / "source"), RULES)
    before, began = peak_memory(), time.monotonic()

    def write_rest(rest: Path, dtype: torch.dtype | None) -> None:
        (rest / "config.json").write_text("{}")

    convert_checkpoint(Conversion("memory", [part], targets, write_rest), folder / "out", progress=False)
    return {"before": before, "peak": peak_memory(), "seconds": time.monotonic() - began}


def measure(folder: Path, size: int, dtype: str) -> dict[str, float]:
    """Makes a source of `size` bytes, converts it in a new process, deletes both, and returns what was measured."""
    number = size // getattr(torch, dtype).itemsize
    try:
        largest = make_source(folder / "source", number, getattr(torch, dtype))
        words = ["-m", __spec__.name, "--in-this-process", number, "--folder", folder]
        [run] = warm_python.run(words)
        if run.returncode:
            raise RuntimeError(run.stderr)
        written = sum(file.stat().st_size for file in (folder / "out").glob("*.safetensors"))
        return {"source": size, "largest_file": largest, "written": written, **json.loads(run.stdout)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--folder", type=Path, required=True, help="folder to make and delete")
    parser.add_argument("--in-this-process", type=int, metavar="VALUES", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_this_process:
        print(json.dumps(convert(args.folder, args.in_this_process)))
    else:
        print(json.dumps(measure(args.folder, int(args.gigabytes * 1e9), args.dtype)))


if __name__ == "__main__":
    main()
