"""Checkpoints in the layout of the original GLaMM and LISA code, put together from the golden files.

LLaMA's tokenizer.model is not ours to copy: it is read from the golden folder beside the project where there is one,
and elsewhere a stand-in of the same size with other pieces takes its place. Tests of token ids need the real one.
"""

from __future__ import annotations

import json
import os
import shutil
import string
from pathlib import Path

import torch


FIXTURES = Path(__file__).parents[1] / "fixtures" / "golden" / "checkpoints"
TINY_GLAMM = FIXTURES / "tiny_glamm_reference"
SHARED = Path(os.environ.get("LITELVLM_SHARED", Path(__file__).parents[3] / "shared"))
TOKENIZER_MODEL = SHARED / "golden" / "checkpoints" / "llama_tokenizer" / "tokenizer.model"

# As published for xinlai/LISA-7B-v1.
LISA_ADDED_TOKENS = {"<im_patch>": 32000, "<im_start>": 32001, "<im_end>": 32002, "[SEG]": 32003}


def write_stand_in_tokenizer(path: Path) -> None:
    """A sentencepiece model of 32,000 pieces, as many as LLaMA's, that can spell ASCII."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    kinds = proto.ModelProto.SentencePiece
    pieces = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    pieces += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    letters = ["▁", *string.digits, *string.ascii_letters, *string.punctuation]
    pieces += [(letter, kinds.NORMAL) for letter in letters]
    pieces += [(f"▁word{index}", kinds.NORMAL) for index in range(32_000 - len(pieces))]
    for rank, (piece, kind) in enumerate(pieces):
        model.pieces.add(piece=piece, score=-float(rank), type=kind)
    path.write_bytes(model.SerializeToString())


def write_glamm(folder: Path, tokenizer_model: Path | None = None) -> Path:
    """The golden GLaMM checkpoint as a folder, `folder/clip` being its CLIP; returns the folder."""
    shutil.copytree(TINY_GLAMM, folder, dirs_exist_ok=True)
    if tokenizer_model is None:
        write_stand_in_tokenizer(folder / "tokenizer.model")
    else:
        (folder / "tokenizer.model").symlink_to(tokenizer_model)
    return folder


def write_lisa(folder: Path, tokenizer_model: Path | None = None) -> Path:
    """A LISA of the golden weights: one projector layer, other names for SAM, other added tokens."""
    write_glamm(folder, tokenizer_model)
    (folder / "pytorch_model.bin.index.json").unlink()
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("pytorch_model-*.bin")):
        tensors.update(torch.load(shard, weights_only=True))
        shard.unlink()
    renamed = {
        name.replace("grounding_encoder", "visual_model").replace("mm_projector.0.", "mm_projector."): value
        for name, value in tensors.items()
        if "region_encoder" not in name and "mm_projector.2" not in name
    }
    rows = 32_000 + len(LISA_ADDED_TOKENS)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        renamed[name] = renamed[name][:rows].clone()
    torch.save(renamed, folder / "pytorch_model.bin")
    (folder / "added_tokens.json").write_text(json.dumps(LISA_ADDED_TOKENS))
    config = json.loads((folder / "config.json").read_text())
    config.update(architectures=["LISAForCausalLM"], vocab_size=rows, rms_norm_eps=1e-6)
    for name in ("mm_projector_type", "bbox_token_idx", "with_region"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    return folder
