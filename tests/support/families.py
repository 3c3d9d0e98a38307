"""The model families, as the tests that hold for all of them need them: tiny models, inputs, and what is stock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from tests.support import tiny_internvl as internvl
from tests.support import tiny_llava as llava
from tests.support import tiny_qwen2_5_vl as qwen
from tests.support import tiny_qwen3_5, tiny_qwen3_vl
from tests.support import toy_internvl as toy
from tests.support.matrix import matrix
from tests.support.random_weights import asymmetric_
from transformers_litelvlm import (
    InternVLLiteConfig,
    InternVLLiteForConditionalGeneration,
    InternVLLiteModel,
    InternVLLiteProcessor,
    LlavaLiteConfig,
    LlavaLiteForConditionalGeneration,
    LlavaLiteModel,
    LlavaLiteProcessor,
)
from transformers_litelvlm.models.outputs import deepstack_of


# Inputs of a batch that divide by image or video and not by row.
Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Family:
    """What a family has to say for itself; `rows` are those of its test batch, with two, one and no image."""

    name: str
    config_class: type
    model_class: type
    base_class: type
    processor_class: type
    stock_class: type
    stock_config_class: type
    policies: tuple[tuple[str, str], ...]  # token order, positions
    largest_budget: int  # what no image or video of the batch exceeds
    has_class_token: bool = False  # of the vision tower
    tiny: Any = None  # of Qwen's families: models and processors
    is_recurrent: bool = False  # the decoder has recurrent layers, so no method works inside it
    takes_clip: bool = True  # a CLIP's tokenizer for guidance, of its tower or of one beside the model
    is_quick: bool = True  # else `make test` leaves it out: most of its code is that of another family

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    sizes: ClassVar[frozenset[int]] = frozenset({16})  # visual tokens of the images and videos of the batch

    def config(self, num_layers: int | None = None, **kwargs: Any) -> Any:
        """Of a tiny model, with so many decoder layers."""
        config = self._config(**kwargs)
        if num_layers is not None:
            config.text_config.num_hidden_layers = num_layers
            if getattr(config.text_config, "layer_types", None) is not None:
                kinds = ["linear_attention", "full_attention"] if self.is_recurrent else ["full_attention"] * 2
                config.text_config.layer_types = [kinds[layer % 2] for layer in range(num_layers)]
        return config

    def _config(self, **kwargs: Any) -> Any:
        raise NotImplementedError

    def model(self, num_layers: int | None = None) -> Any:
        return asymmetric_(self.model_class(self.config(num_layers)))

    def inputs(self, side: str = "left") -> Inputs:
        """A padded batch of three rows, for the stock class."""
        raise NotImplementedError

    def row(self, index: int) -> Inputs:
        """A row of the batch alone, with its guidance."""
        raise NotImplementedError

    def guidance(self, num_expressions: int = 2) -> Inputs:
        raise NotImplementedError

    def save(self, folder: Any, **kwargs: Any) -> str:
        """A whole checkpoint, model and processor, for text answers."""
        raise NotImplementedError

    def unguided_inputs(self, side: str = "left") -> Inputs:
        """What our model takes without sentences."""
        return self.inputs(side)

    def lite_inputs(self, side: str = "left", num_expressions: int = 2) -> Inputs:
        return {**self.unguided_inputs(side), **self.guidance(num_expressions)}

    def stock(self, model: Any) -> Any:
        """The stock class with the weights of `model`."""
        raise NotImplementedError

    def features(self, model: Any, inputs: Inputs) -> dict[int, list[tuple[torch.Tensor, torch.Tensor, int]]]:
        """Placeholder id -> for every image or video its kept features (K, D), their indices, and N."""
        raise NotImplementedError

    def all_tokens(self, stock: Any, inputs: Inputs) -> dict[str, list[torch.Tensor]]:
        """Modality -> all visual tokens (N, D) of every image or video."""
        raise NotImplementedError

    def deepstack(self, model: Any, inputs: Inputs) -> dict[int, list[list[torch.Tensor]]]:
        """Placeholder id -> for each of the first decoder layers, what is added to the states of the visual tokens of
        every image or video, (K, D) of ours and (N, D) of a stock model; `{}` in a family without DeepStack."""
        return {}

    def full_positions(self, stock: Any, inputs: Inputs) -> torch.Tensor:
        """Upstream's positions of the unpruned prompt, (number of axes, B, L); at padding they mean nothing."""
        raise NotImplementedError

    def shape_positions(self, positions: torch.Tensor) -> torch.Tensor:
        """(number of axes, 1, L) as upstream's `forward` takes it."""
        raise NotImplementedError

    def prompt(self, question: str) -> str:
        """A rendered prompt about one image."""
        raise NotImplementedError


def _of_features(features: Any) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    return list(zip(features.pooler_output, features.retained_indices, features.num_visual_tokens))


class LlavaFamily(Family):
    rows: ClassVar[tuple] = ([1, 5, "image", 6, "image", 7, 8], [1, 9, "image", 10, 11, 12], [1, 13, 14])

    def _config(self, **kwargs):
        return llava.tiny_config(**kwargs)

    def stock(self, model):
        names = ("vision_config", "text_config", "image_token_index", "image_seq_length")
        upstream = LlavaForConditionalGeneration(LlavaConfig(**{n: model.config.to_dict()[n] for n in names})).eval()
        upstream.load_state_dict({n: v for n, v in model.state_dict().items() if ".guidance." not in n})
        return upstream

    def inputs(self, side="left"):
        ids, mask = llava.prompt(*self.rows, padding_side=side)
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": llava.random_pixels(3)}

    def guidance(self, num_expressions=2):
        ids, mask = llava.random_guidance(3, num_expressions)
        return {"guidance_input_ids": ids, "guidance_attention_mask": mask}

    def row(self, index):
        ids, mask = llava.prompt(self.rows[index])
        images = (slice(0, 2), slice(2, 3), slice(0, 0))[index]
        media = {
            name: value[images]
            for name, value in self.lite_inputs().items()
            if name not in ("input_ids", "attention_mask")
        }
        return {"input_ids": ids, "attention_mask": mask, **(media if index < 2 else {})}

    def features(self, model, inputs):
        guidance = {name: value for name, value in inputs.items() if name.startswith("guidance_")}
        return {llava.IMAGE_TOKEN: _of_features(model.get_image_features(inputs["pixel_values"], **guidance))}

    def all_tokens(self, stock, inputs):
        return {"image": list(stock.get_image_features(inputs["pixel_values"]).pooler_output)}

    def full_positions(self, stock, inputs):
        return (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0).unsqueeze(0)

    def shape_positions(self, positions):
        return positions[0]

    def save(self, folder, **kwargs):
        model = llava.tiny_grounding_model(**kwargs)
        model.save_pretrained(folder)
        llava.tiny_processor().save_pretrained(folder)
        return str(folder)

    def prompt(self, question):
        return f"USER: <image>\n{question} ASSISTANT:"


class QwenFamily(Family):
    """Images of 4 x 4 and 2 x 6 visual tokens and a video of 3 x 2 x 4, in this order over the rows."""

    modalities: ClassVar[tuple[str, ...]] = ("image", "video")
    _v: ClassVar[tuple[int, int]] = (qwen.VISION_START, qwen.VISION_END)
    rows: ClassVar[tuple] = (
        [10, _v[0], ("image", 16), _v[1], 11, _v[0], ("video", 24), _v[1], 12, 13],
        [14, _v[0], ("image", 12), _v[1], 15, 16, 17],
        [18, 19],
    )
    sizes: ClassVar[frozenset[int]] = frozenset({16, 12, 24})
    further_media: ClassVar[Inputs] = {"second_per_grid_ts": torch.tensor([0.5])}

    def _config(self, **kwargs):
        return self.tiny.tiny_config(**kwargs)

    def stock(self, model):
        return self.tiny.stock_twin(model)

    def _media(self, images=True, first=True, video=True):
        grids = ([(1, 4, 4)] if first else []) + ([(1, 2, 6)] if images else [])
        pixels, grid = qwen.random_media([(1, 4, 4), (1, 2, 6)])
        start, end = (0 if first else 64), (112 if images else 64)
        media = {"pixel_values": pixels[start:end], "image_grid_thw": grid[0 if first else 1 : 1 + images]}
        assert len(media["image_grid_thw"]) == len(grids)
        if video:
            values, grid = qwen.random_media([(3, 2, 4)], seed=1)
            media.update(pixel_values_videos=values, video_grid_thw=grid, **self.further_media)
        return media

    def inputs(self, side="left"):
        return {**qwen.prompt(*self.rows, padding_side=side), **self._media()}

    def guidance(self, num_expressions=2):
        # A seed for which every sentence keeps other tokens, so that a mix-up of sentences shows.
        return qwen.random_guidance(3, num_expressions, seed=1)

    def row(self, index):
        alone = qwen.prompt(self.rows[index])
        if index == 2:
            return alone
        # The sentences of the images come before those of the videos.
        sentences = {name: value[[0, 2] if index == 0 else [1]] for name, value in self.guidance().items()}
        media = self._media(images=index == 1, first=index == 0, video=index == 0)
        return {**alone, **media, **sentences}

    def features(self, model, inputs):
        images, videos = self._encoded(model, inputs).values()
        return {qwen.IMAGE: _of_features(images), qwen.VIDEO: _of_features(videos)}

    def _encoded(self, model, inputs):
        """Of ours with the guidance of the batch; of whatever there is in the inputs."""
        found, first = {}, 0
        for modality, suffix in (("image", ""), ("video", "_videos")):
            grid = inputs.get(f"{modality}_grid_thw")
            if grid is None or inputs.get(f"pixel_values{suffix}") is None:
                continue
            rows, first = slice(first, first + len(grid)), first + len(grid)
            guidance = {
                n: v[rows] for n, v in inputs.items() if n in ("guidance_input_ids", "guidance_attention_mask")
            }
            encode = getattr(model, f"get_{modality}_features")
            found[modality] = encode(inputs[f"pixel_values{suffix}"], grid, **guidance)
        return found

    def all_tokens(self, stock, inputs):
        found = {}
        for modality, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if name in inputs:
                encode = getattr(stock, f"get_{modality}_features")
                found[modality] = list(encode(inputs[name], inputs[f"{modality}_grid_thw"]).pooler_output)
        return found

    def full_positions(self, stock, inputs):
        names = (
            "input_ids",
            "mm_token_type_ids",
            "image_grid_thw",
            "video_grid_thw",
            "attention_mask",
            *self.further_media,
        )
        return stock.model.get_rope_index(**{name: inputs.get(name) for name in names})[0]

    def shape_positions(self, positions):
        return positions

    def save(self, folder, **kwargs):
        self.tiny.tiny_model(**kwargs).save_pretrained(folder)
        self.tiny.tiny_processor().save_pretrained(folder)
        return str(folder)

    def prompt(self, question):
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        return self.tiny.tiny_processor().apply_chat_template([message], tokenize=False, add_generation_prompt=True)


class Qwen3Family(QwenFamily):
    """The same media; a video is a run of placeholders for each temporal patch, with text between them."""

    _v: ClassVar[tuple[int, int]] = (qwen.VISION_START, qwen.VISION_END)
    rows: ClassVar[tuple] = (
        [
            *(10, _v[0], ("image", 16), _v[1], 11),
            *(20, _v[0], ("video", 8), _v[1], 21, 22, _v[0], ("video", 8), _v[1], 23, _v[0], ("video", 8), _v[1]),
            *(12, 13),
        ],
        [14, _v[0], ("image", 12), _v[1], 15, 16, 17],
        [18, 19],
    )
    further_media: ClassVar[Inputs] = {}

    def deepstack(self, model, inputs):
        tokens, encoded = {"image": qwen.IMAGE, "video": qwen.VIDEO}, self._encoded(model, inputs).items()
        return {tokens[modality]: layers for modality, found in encoded if (layers := deepstack_of(found))}


LLAVA = LlavaFamily(
    name="llava",
    config_class=LlavaLiteConfig,
    model_class=LlavaLiteForConditionalGeneration,
    base_class=LlavaLiteModel,
    processor_class=LlavaLiteProcessor,
    stock_class=LlavaForConditionalGeneration,
    stock_config_class=LlavaConfig,
    policies=(("raster", "compact"), ("raster", "original"), ("reference", "compact"), ("reference", "original")),
    largest_budget=llava.NUM_TOKENS,
    has_class_token=True,
)


def of_qwen(cls: type[QwenFamily], name: str, tiny: Any, **kwargs: Any) -> QwenFamily:
    return cls(
        name=name,
        config_class=tiny.config_class,
        model_class=tiny.model_class,
        base_class=tiny.model_class.base_class,
        processor_class=tiny.processor_class,
        stock_class=tiny.stock_class,
        stock_config_class=tiny.stock_config_class,
        policies=(("raster", "original"), ("reference", "original")),
        largest_budget=24,
        tiny=tiny,
        **kwargs,
    )


QWEN2_5_VL = of_qwen(QwenFamily, "qwen2_5_vl", qwen.QWEN2_5_VL)
QWEN3_VL = of_qwen(Qwen3Family, "qwen3_vl", tiny_qwen3_vl.QWEN3_VL)
QWEN3_VL_MOE = of_qwen(Qwen3Family, "qwen3_vl_moe", tiny_qwen3_vl.QWEN3_VL_MOE, is_quick=False)
QWEN3_5 = of_qwen(Qwen3Family, "qwen3_5", tiny_qwen3_5.QWEN3_5, is_recurrent=True, is_quick=False)
QWEN3_5_MOE = of_qwen(Qwen3Family, "qwen3_5_moe", tiny_qwen3_5.QWEN3_5_MOE, is_recurrent=True, is_quick=False)


class InternVLFamily(LlavaFamily):
    """Images of one tile, of three, and of two, in this order over the rows; 16 visual tokens each."""

    tiles: ClassVar[tuple[int, ...]] = (1, 3, 2)
    rows: ClassVar[tuple] = (
        [10, ("image", 16), 11, ("image", 48), 12, 13],
        [14, ("image", 32), 15, 16, 17],
        [18, 19],
    )
    sizes: ClassVar[frozenset[int]] = frozenset({48, 16, 32})

    def _config(self, **kwargs):
        return internvl.tiny_config(**kwargs)

    def stock(self, model):
        return internvl.stock_twin(model)

    def _prompt(self, *rows, side="left"):
        text = qwen.prompt(*rows, padding_side=side)  # with the id of its images
        return {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}

    def inputs(self, side="left"):
        return {**self._prompt(*self.rows, side=side), "pixel_values": internvl.random_tiles(sum(self.tiles))}

    def unguided_inputs(self, side="left"):
        return {**self.inputs(side), "num_tiles": torch.tensor(self.tiles)}

    def guidance(self, num_expressions=2):
        return qwen.random_guidance(len(self.tiles), num_expressions, seed=1)

    def row(self, index):
        alone = self._prompt(self.rows[index])
        if index == 2:
            return alone
        whole, (images, tiles) = self.lite_inputs(), ((slice(0, 2), slice(0, 4)), (slice(2, 3), slice(4, 6)))[index]
        media = {name: value[images] for name, value in whole.items() if name not in (*alone, "pixel_values")}
        return {**alone, **media, "pixel_values": whole["pixel_values"][tiles]}

    def features(self, model, inputs):
        further = {n: v for n, v in inputs.items() if n.startswith("guidance_") or n == "num_tiles"}
        return {internvl.IMAGE: _of_features(model.get_image_features(inputs["pixel_values"], **further))}

    def all_tokens(self, stock, inputs):
        tokens = stock.get_image_features(inputs["pixel_values"]).pooler_output
        tiles = inputs.get("num_tiles", torch.tensor(self.tiles)).tolist()
        return {"image": [of_image.flatten(0, 1) for of_image in tokens.split(tiles)]}

    def save(self, folder, **kwargs):
        internvl.tiny_model(**kwargs).save_pretrained(folder)
        internvl.tiny_processor().save_pretrained(folder)
        return str(folder)

    def prompt(self, question):
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        return internvl.tiny_processor().apply_chat_template([message], tokenize=False, add_generation_prompt=True)


INTERNVL = InternVLFamily(
    name="internvl",
    config_class=InternVLLiteConfig,
    model_class=InternVLLiteForConditionalGeneration,
    base_class=InternVLLiteModel,
    processor_class=InternVLLiteProcessor,
    stock_class=InternVLForConditionalGeneration,
    stock_config_class=InternVLConfig,
    policies=LLAVA.policies,
    largest_budget=48,
    tiny=internvl,
    takes_clip=False,
)


# Every test in tests/models/test_families_*.py runs for each of these.
class ToyFamily(LlavaFamily):
    """Prompts and pixels are those of the tiny LLaVA."""

    def _config(self, **kwargs):
        return toy.tiny_config(**kwargs)

    def stock(self, model):
        names = ("vision_config", "text_config", "image_token_id", "image_seq_length", "tie_word_embeddings")
        upstream = InternVLForConditionalGeneration(InternVLConfig(**{n: model.config.to_dict()[n] for n in names}))
        upstream.load_state_dict(model.state_dict())
        return upstream.eval()


TOY = ToyFamily(
    name="toy",
    config_class=toy.ToyConfig,
    model_class=toy.ToyForConditionalGeneration,
    base_class=toy.ToyModel,
    processor_class=object,  # prompts are made by hand
    stock_class=InternVLForConditionalGeneration,
    stock_config_class=InternVLConfig,
    policies=LLAVA.policies,
    largest_budget=llava.NUM_TOKENS,
    is_quick=False,  # InternVL in the package is
)

FAMILIES = [LLAVA, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE, QWEN3_5, QWEN3_5_MOE, INTERNVL]
# One of each kind of code: the others differ in what transformers does alone, such as experts.
KINDS = [LLAVA, QWEN2_5_VL, QWEN3_VL, QWEN3_5, INTERNVL]
# Those whose sentences may be in a CLIP's tokens.
WITH_CLIP = [family for family in KINDS if family.takes_clip]
# With the toy, which has no processor and no checkpoints: for tests of models alone.
MODELS = [*FAMILIES, TOY]
# Where methods inside the language model are defined.
INSIDE = [family for family in MODELS if not family.is_recurrent]


def family_params(families: list[Family]) -> list:
    """Parameters for `pytest.mark.parametrize`."""
    return matrix(families, lambda family: family.is_quick)


def picture(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 255, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(values.numpy())
