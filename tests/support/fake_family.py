"""A family of checkpoints that exists only here: a model without its vision tower, and a second checkpoint with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from transformers_litelvlm.conversion.convert import Conversion, MustEqual
from transformers_litelvlm.conversion.errors import ConversionError
from transformers_litelvlm.conversion.renaming import Drop, Part, Rename
from transformers_litelvlm.conversion.source import CheckpointSource


MODEL_RULES = (
    Drop(r".*\.inv_freq", "computed when the model is built"),
    Rename(r"model\.layers\.(\d+)\.(weight|bias)", r"decoder.\1.\2"),
    Rename(r"points\.(\d)\.weight", "points.weight", row=r"\1"),
    Rename(r"head\.gaussian", "first.position"),
)
CLIP_RULES = (Rename(r"vision_model\.(.*)", r"tower.\1"), Drop(r"logit_scale|text_.*", "not used"))
TIED = {"second.position": "first.position"}


def tensors(num_layers: int = 4, seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Values of the model (bfloat16 and float32, mixed) and of its CLIP."""
    random = torch.Generator().manual_seed(seed)
    model = {"model.layers.0.inv_freq": torch.randn(4, generator=random)}
    for index in range(num_layers):
        dtype = torch.float32 if index % 2 else torch.bfloat16
        model[f"model.layers.{index}.weight"] = torch.randn(7, 5, generator=random).to(dtype)
        model[f"model.layers.{index}.bias"] = torch.randn((), generator=random)
    for index in range(3):
        model[f"points.{index}.weight"] = torch.randn(2, 3, generator=random)
    # Stored with gaps: what is written must not be.
    model["head.gaussian"] = torch.randn(6, 2, generator=random).t()
    clip = {"vision_model.weight": torch.randn(9, 3, generator=random).half(), "logit_scale": torch.tensor(2.0)}
    clip["vision_model.position_ids"] = torch.arange(5)[None]
    return model, clip


def expected(model: dict[str, torch.Tensor], clip: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a conversion must write."""
    result = {
        name.replace("model.layers", "decoder"): tensor
        for name, tensor in model.items()
        if name.startswith("model.layers") and "inv_freq" not in name
    }
    result["points.weight"] = torch.cat([model[f"points.{index}.weight"] for index in range(3)])
    result["first.position"] = model["head.gaussian"]
    result["tower.weight"] = clip["vision_model.weight"]
    result["tower.position_ids"] = clip["vision_model.position_ids"]
    return result


def save(folder: Path, values: dict[str, torch.Tensor], form: str, num_shards: int = 1) -> list[Path]:
    """Writes a source: `form` is bin, legacy or safetensors. Returns the files of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, ending = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    names = list(values)
    files, weight_map = [], {}
    for shard in range(num_shards):
        suffix = "" if num_shards == 1 else f"-{shard + 1:05d}-of-{num_shards:05d}"
        files.append(folder / f"{stem}{suffix}.{ending}")
        content = {name: values[name] for name in names[shard::num_shards]}
        weight_map |= dict.fromkeys(content, files[-1].name)
        if form == "safetensors":
            save_file({name: tensor.contiguous() for name, tensor in content.items()}, files[-1])
        else:
            torch.save(content, files[-1], _use_new_zipfile_serialization=form == "bin")
    if num_shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    return files


def make_source(
    folder: Path, form: str = "bin", num_shards: int = 2, **kwargs
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A source with its CLIP in the sub-folder `clip`; returns the values of both."""
    model, clip = tensors(**kwargs)
    save(folder, model, form, num_shards)
    save(folder / "clip", clip, "safetensors")
    (folder / "config.json").write_text(json.dumps({"num_layers": kwargs.get("num_layers", 4)}))
    return model, clip


def fake_conversion(source: CheckpointSource, clip: str | None = None) -> Conversion:
    """The family's function, as `litelvlm convert` calls it."""
    config = source.read_json("config.json")
    if config is None:
        raise ConversionError(f"{source} has no config.json: is it a checkpoint?")
    targets: dict[str, tuple[int, ...]] = {}
    for index in range(config["num_layers"]):
        targets |= {f"decoder.{index}.weight": (7, 5), f"decoder.{index}.bias": ()}
    targets |= {"points.weight": (6, 3), "first.position": (2, 6), "second.position": (2, 6)}
    targets |= {"tower.weight": (9, 3), "tower.position_ids": (1, 5)}

    def write_rest(folder: Path, dtype: torch.dtype | None) -> None:
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "words.json").write_text("[]")
        config = {"architectures": ["FakeForReferringSegmentation"], "dtype": str(dtype)}
        (folder / "config.json").write_text(json.dumps(config))

    clip_source = CheckpointSource(clip or os.path.join(source.path_or_id, "clip"))
    return Conversion(
        family="fake",
        parts=[Part("model", source, MODEL_RULES), Part("clip", clip_source, CLIP_RULES)],
        targets=targets,
        write_rest=write_rest,
        tied=TIED,
        must_equal=[MustEqual(("clip", "vision_model.weight"), ("clip", "vision_model.weight"), "impossible")],
    )


def written_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in the weights of a folder; the index must say the same."""
    result, where = {}, {}
    for file in sorted(folder.glob("*.safetensors")):
        content = load_file(file)
        where |= dict.fromkeys(content, file.name)
        result |= content
    index = folder / "model.safetensors.index.json"
    assert index.exists() == (len(set(where.values())) > 1)
    if index.exists():
        content = json.loads(index.read_text())
        assert content["weight_map"] == where
        assert content["metadata"]["total_size"] == sum(tensor.nbytes for tensor in result.values())
    return result


def assert_identical(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    """Same names, shapes, dtypes and bits."""
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        other = right[name]
        assert tensor.shape == other.shape and tensor.dtype == other.dtype, name
        assert torch.equal(*(value.contiguous().reshape(-1).view(torch.uint8) for value in (tensor, other))), name
