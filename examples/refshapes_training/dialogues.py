"""Batches of dialogues about scenes, with everything that the losses of the grounding stage need."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from refshapes_training.common import normalise
from refshapes_training.scenes import SceneCache
from refshapes_training.vocabulary import FIRST_TURN, NEXT_TURN
from transformers_litelvlm.data.refshapes_rendering import COLOURS, SCENE_SIZE, SHAPES, TEXTURES


GRID = 12
NUM_VISUAL_TOKENS = GRID * GRID
MAX_TURNS = 7
MAX_OBJECTS = 7
LENGTH = 304  # tokens of a padded dialogue; one shape for the compiler
ISOLATED_SHARE = 0.5


class DialogueWriter:
    """Token ids of dialogues, put together from pieces that are tokenised once.

    Args:
        tokenizer: the language tokenizer; every word of RefShapes has to be one of its tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.words = tokenizer, {}
        before, after = FIRST_TURN.split(" {}")
        head, question = before.split("<image>")
        encode = self._encode
        self.prefix = encode("<s>" + head) + encode("<image>") * NUM_VISUAL_TOKENS
        self.image_start = len(self.prefix) - NUM_VISUAL_TOKENS
        self.first, self.next = encode(question), encode(NEXT_TURN.split(" {}")[0])
        self.after = encode(after)
        # The answer is what follows "ASSISTANT:"; the state before [SEG] is the one the mask is made from.
        self.answer = encode(after.split("ASSISTANT:")[1])
        self.seg_offset = self.after.index(tokenizer.convert_tokens_to_ids("[SEG]")) - 1

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def phrase(self, sentence: str) -> list[int]:
        """Ids of the words of a sentence, each with the space before it."""
        ids = []
        for word in sentence.split():
            if word not in self.words:
                (self.words[word],) = self._encode(f" {word}")
            ids.append(self.words[word])
        return ids


def dialogue_batch(
    cache: SceneCache,
    indices: np.ndarray,
    writer: DialogueWriter,
    rng: np.random.Generator,
    device: torch.device,
    max_turns: int = MAX_TURNS,
    isolated_share: float = ISOLATED_SHARE,
    kinds: tuple[str, ...] = ("attribute", "superlative", "relation"),
) -> dict:
    """Scenes with one dialogue each.

    In a share of the rows every turn sees the picture and itself alone, at the positions that it would have as the
    first turn: one row then holds several dialogues of a single sentence. In the other rows turns follow one another
    as in real use.

    Args:
        cache: the scenes.
        indices: which of them.
        writer: makes the token ids.
        rng: source of randomness.
        device: where the tensors go.
        max_turns: largest number of sentences per row.
        isolated_share: share of the rows whose turns do not see one another.
        kinds: kinds of sentences that are asked.

    Returns:
        Tensors with `B` rows, `L` tokens and `T` turns.
    """
    rows = [
        _row(cache.records[index], writer, rng, max_turns, bool(rng.random() < isolated_share), kinds)
        for index in indices
    ]
    batch = {name: torch.from_numpy(np.stack([row[name] for row in rows])).to(device) for name in rows[0]}
    segments = batch.pop("segments")
    order = torch.arange(LENGTH, device=device)
    own = (segments[:, None, :] == 0) | (segments[:, :, None] == segments[:, None, :])
    batch["visible"] = own & (order[None, :] <= order[:, None])
    batch["image_start"] = writer.image_start
    batch["centres"] = torch.from_numpy(np.stack([_centres(cache.records[index]["objects"]) for index in indices])).to(
        device
    )
    batch["cover"] = torch.from_numpy(_cover(cache.id_maps[indices])).to(device)
    return batch | patch_batch(cache, indices, device)


def patch_batch(cache: SceneCache, indices: np.ndarray, device: torch.device) -> dict:
    """Scenes with what every patch shows, without dialogues: `pixel_values` and the targets of the patch losses."""
    targets = {name: torch.from_numpy(value).to(device) for name, value in _patch_targets(cache, indices).items()}
    return {"pixel_values": normalise(cache.images[indices], device), **targets}


def _row(record: dict, writer: DialogueWriter, rng, max_turns: int, isolated: bool, kinds: tuple[str, ...]) -> dict:
    expressions = [entry for entry in record["expressions"] if entry["kind"] in kinds] or record["expressions"][:1]
    ids, positions = list(writer.prefix), list(range(len(writer.prefix)))
    segments = [0] * len(ids)
    turns = np.zeros((max_turns, 2), dtype=np.float32)
    row = {
        "present": np.zeros(max_turns, dtype=bool),
        "kind": np.full(max_turns, -1),
        "target": np.zeros(max_turns, dtype=np.int64),
        "points": turns,
        "seg_positions": np.zeros(max_turns, dtype=np.int64),
        "answer_positions": np.zeros((max_turns, len(writer.answer)), dtype=np.int64),
        "answer_labels": np.full((max_turns, len(writer.answer)), -100),
        "noun_positions": np.zeros(2 * max_turns, dtype=np.int64),
        "candidates": np.zeros((2 * max_turns, MAX_OBJECTS), dtype=np.float32),
    }
    for turn, place in enumerate(rng.permutation(len(expressions))[:max_turns]):
        entry = expressions[place]
        opening = writer.first if turn == 0 or isolated else writer.next
        phrase = writer.phrase(entry["sentence"])
        if len(ids) + len(opening) + len(phrase) + len(writer.after) > LENGTH:
            break
        start = len(ids) + len(opening)
        ids += opening + phrase + writer.after
        if isolated:
            positions += range(len(writer.prefix), len(writer.prefix) + len(ids) - len(positions))
            segments += [turn + 1] * (len(ids) - len(segments))
        else:
            positions += range(len(positions), len(ids))
            segments += [0] * (len(ids) - len(segments))
        _fill_turn(row, turn, entry, record["objects"], start, start + len(phrase), writer)
    padding = LENGTH - len(ids)
    row["input_ids"] = np.asarray(ids + [writer.tokenizer.pad_token_id] * padding)
    row["position_ids"] = np.asarray(positions + [0] * padding)
    row["segments"] = np.asarray(segments + [-1] * padding)
    return row


def _fill_turn(
    row: dict, turn: int, entry: dict, objects: list[dict], start: int, end: int, writer: DialogueWriter
) -> None:
    target, query = objects[entry["target_id"]], entry["query"]
    row["present"][turn] = True
    row["kind"][turn] = ("attribute", "superlative", "relation").index(entry["kind"])
    row["target"][turn] = entry["target_id"]
    row["points"][turn] = target["x"], target["y"]
    row["seg_positions"][turn] = end + writer.seg_offset
    # The state at a position predicts the token after it.
    first = end + len(writer.after) - len(writer.answer) - 1
    row["answer_positions"][turn] = np.arange(first, first + len(writer.answer))
    row["answer_labels"][turn] = writer.answer
    noun = start + (query["superlative"] is not None) + (query["rank"] == 2) + len(query["attributes"])
    phrases = [(noun, query["attributes"])]
    if query["anchor"] is not None:
        phrases.append((end - 1, query["anchor"]))
    for slot, (position, attributes) in enumerate(phrases):
        row["noun_positions"][2 * turn + slot] = position
        for item in objects:
            row["candidates"][2 * turn + slot, item["object_id"]] = all(
                item[name] == value for name, value in attributes.items()
            )


def _centres(objects: list[dict]) -> np.ndarray:
    """`(MAX_OBJECTS, 2)` centres in pixels; rows without an object lie far outside."""
    centres = np.full((MAX_OBJECTS, 2), 1e4, dtype=np.float32)
    centres[: len(objects)] = [(item["x"], item["y"]) for item in objects]
    return centres


def _cover(id_maps: np.ndarray) -> np.ndarray:
    """`(B, MAX_OBJECTS, N)` ones where an object fills at least a fifth of a patch, or more of it than of any other
    patch.
    """
    step = SCENE_SIZE // GRID
    patches = (
        id_maps.reshape(len(id_maps), GRID, step, GRID, step)
        .transpose(0, 1, 3, 2, 4)
        .reshape(len(id_maps), GRID * GRID, -1)
    )
    share = np.stack([(patches == number + 1).mean(-1) for number in range(MAX_OBJECTS)], axis=1)
    most = share.max(-1, keepdims=True)
    return ((share >= np.minimum(0.2, most)) & (most > 0)).astype(np.float32)


def _patch_targets(cache: SceneCache, indices: np.ndarray) -> dict[str, np.ndarray]:
    """What the pixel at the middle of every patch shows."""
    step = SCENE_SIZE // GRID
    numbers = (
        cache.id_maps[indices][:, step // 2 :: step, step // 2 :: step].reshape(len(indices), -1).astype(np.int64)
    )
    colours = tuple(COLOURS)
    tables = {
        name: np.zeros((len(indices), 9)) for name in ("patch_shape", "patch_colour", "patch_texture", "patch_radius")
    }
    tables["patch_colour"][:, 0] = tables["patch_texture"][:, 0] = -100
    for row, index in enumerate(indices):
        for item in cache.records[index]["objects"]:
            slot = item["object_id"] + 1
            tables["patch_shape"][row, slot] = SHAPES.index(item["shape"]) + 1
            tables["patch_colour"][row, slot] = colours.index(item["colour"])
            tables["patch_texture"][row, slot] = TEXTURES.index(item["texture"])
            tables["patch_radius"][row, slot] = item["radius"] / 6 - 2
    found = {name: np.take_along_axis(table, numbers, 1) for name, table in tables.items()}
    found = {name: values.astype(np.float32 if name == "patch_radius" else np.int64) for name, values in found.items()}
    # The centre of the object that a patch shows, or the patch's own where there is none.
    centres = np.stack([_centres(cache.records[index]["objects"]) for index in indices])
    own = np.stack(np.meshgrid(*[np.arange(GRID, dtype=np.float32) * step + step / 2] * 2), axis=-1).reshape(-1, 2)
    shown = np.take_along_axis(centres, np.maximum(numbers - 1, 0)[..., None], 1)
    return found | {"patch_points": np.where(numbers[..., None] > 0, shown, own)}
