"""Stage 3: the language model learns to answer with [SEG] and to say, in the state before it, where the object is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.llama.modeling_llama import rotate_half

from refshapes_training.clip_stage import contrastive_loss
from refshapes_training.dialogues import NUM_VISUAL_TOKENS
from refshapes_training.sam_stage import point_prompts
from transformers_litelvlm.data.refshapes_rendering import COLOURS, SCENE_SIZE, SHAPES, TEXTURES


# Layers of the language model in which heads are told where to look: one head for nouns, all four for [SEG].
NOUN_LAYERS, SEG_LAYER = (1, 2), 3
LOCATION_GRID = 24  # cells per side among which the location loss chooses
LOCATION_SCALE = 0.25  # keeps the logits of that choice, dot products of up to 64, in a range that trains well


class GroundObjective(nn.Module):
    """Loss of dialogues whose answers are `It is [SEG].`

    Its parts: the language-model loss on the answers; the distance of the projected [SEG] state to SAM's prompt token
    for a point at the centre of the target, with a choice among the cells of a grid (no mask decoder runs); where
    attention heads look, nouns at the objects that they fit and [SEG] at its target; what a visual token shows and
    where the middle of that is, with heads that are thrown away; and CLIP's contrastive loss, which keeps the vision
    tower a CLIP while the others train it.

    Args:
        model: the grounding model, in the layout of `LlavaLiteForReferringSegmentation`.
        logit_scale: CLIP's learned temperature.
        train_tower: whether the vision tower and the contrastive loss take part.
    """

    def __init__(self, model: nn.Module, logit_scale: torch.Tensor, train_tower: bool = True) -> None:
        super().__init__()
        self.train_tower = train_tower
        self.model, self.logit_scale = model, nn.Parameter(logit_scale.detach().clone())
        width = model.model.language_model.config.hidden_size
        self.patch_head = nn.Linear(width, len(SHAPES) + 1 + len(COLOURS) + len(TEXTURES) + 1)
        prompt_size = model.mask_model.config.prompt_encoder_config.hidden_size
        self.centre_head = nn.Linear(width, prompt_size)
        model.mask_model.requires_grad_(False)
        cells = (torch.arange(LOCATION_GRID) + 0.5) * SCENE_SIZE / LOCATION_GRID - 0.5
        points = torch.stack(torch.meshgrid(cells, cells, indexing="xy"), dim=-1).reshape(-1, 2)
        with torch.no_grad():
            self.register_buffer("grid_prompts", point_prompts(model.mask_model, points), persistent=False)
            self.register_buffer(
                "prompt_offset", model.mask_model.prompt_encoder.point_embed[1].weight[0].clone(), persistent=False
            )

    def states(self, batch: dict, zero_visual: bool = False) -> tuple[torch.Tensor, ...]:
        """Hidden states of a batch of dialogues.

        Args:
            batch: from `dialogue_batch`.
            zero_visual: whether the projected visual tokens are replaced by zeros, the control.

        Returns:
            the states after the final norm, `(B, L, D)`, the projected visual tokens, `(B, N, D)`, CLIP's image state,
            `(B, C)`, and the inputs of the decoder layers.
        """
        parts = self.model.model
        with torch.set_grad_enabled(self.train_tower and torch.is_grad_enabled()):
            tower = parts.vision_tower(batch["pixel_values"], output_hidden_states=True)
        visual = parts.multi_modal_projector(tower.hidden_states[-2][:, 1:])
        words, start = parts.language_model.get_input_embeddings()(batch["input_ids"]), batch["image_start"]
        shown = torch.zeros_like(visual) if zero_visual else visual
        embeds = torch.cat((words[:, :start], shown.to(words.dtype), words[:, start + NUM_VISUAL_TOKENS :]), dim=1)
        bias = torch.zeros(batch["visible"].shape, dtype=embeds.dtype, device=embeds.device)
        bias = bias.masked_fill(~batch["visible"], torch.finfo(embeds.dtype).min)[:, None]
        outputs = parts.language_model(
            inputs_embeds=embeds,
            attention_mask=bias,
            position_ids=batch["position_ids"],
            use_cache=False,
            output_hidden_states=True,
        )
        return outputs.last_hidden_state, visual, tower.pooler_output, outputs.hidden_states

    def prompts(self, states: torch.Tensor, batch: dict) -> torch.Tensor:
        """The prompt tokens `(B, T, 128)` of the states before [SEG]."""
        return self.model.text_hidden_fcs(pick(states, batch["seg_positions"]))

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        """Loss of a batch from `dialogue_batch` with captions."""
        states, visual, image, layers = self.states(batch)
        losses = self.losses(batch, states, visual, layers, self.prompts(states, batch))
        if not self.train_tower:
            return losses
        contrast = self.contrastive(image, batch)
        loss = losses.pop("loss") + 0.2 * contrast["loss"]
        return {"loss": loss, **losses, "contrast": contrast["loss"], "contrast_top1": contrast["top1"]}

    def losses(self, batch: dict, states, visual, layers, prompts: torch.Tensor) -> dict[str, torch.Tensor]:
        """All losses but the contrastive one.

        Args:
            batch: from `dialogue_batch`.
            states, visual, layers: from `states`.
            prompts: `(B, T, 128)`, from `prompts`.

        Returns:
            The weighted sum as `"loss"`, and its parts.
        """
        prompts, present = prompts.float(), batch["present"]
        targets = point_prompts(self.model.mask_model, batch["points"])
        answers = self.model.lm_head(pick(states, batch["answer_positions"].flatten(1))).float()
        # The projection that reads [SEG] also reads every visual token: [SEG] then has only to copy what it looks at.
        start = batch["image_start"]
        seen = self.model.text_hidden_fcs(states[:, start : start + NUM_VISUAL_TOKENS])
        parts = {
            "place": mean_over(self.location_loss(prompts, batch["points"]), present),
            "align": mean_over((prompts - targets).square().mean(-1), present),
            "language": F.cross_entropy(answers.flatten(0, 1), batch["answer_labels"].flatten(), ignore_index=-100),
            **self._attention_losses(layers, batch),
            "patch": self.patch_loss(self.patch_head(visual).float(), batch),
            "centre": self.location_loss(self.centre_head(visual), batch["patch_points"]).mean(),
            "copy": self.location_loss(seen, batch["patch_points"]).mean(),
        }
        weights = {"place": 1.0, "align": 1.0}
        return {"loss": sum(weights.get(name, 0.3) * value for name, value in parts.items()), **parts}

    def _attention_losses(self, layers: tuple[torch.Tensor, ...], batch: dict) -> dict[str, torch.Tensor]:
        """Nouns look at what they fit in the middle layers, [SEG] at its target in the last: minus log of the
        attention that falls there.
        """
        noun = batch["candidates"].sum(-1) > 0
        fitting = (batch["candidates"] @ batch["cover"]).clamp(max=1)
        target = batch["cover"].gather(1, batch["target"][..., None].expand(-1, -1, NUM_VISUAL_TOKENS))
        losses = [self._miss(layers, number, 1, batch["noun_positions"], fitting, batch) for number in NOUN_LAYERS]
        seg = self._miss(layers, SEG_LAYER, 4, batch["seg_positions"], target, batch)
        return {"noun": mean_over(sum(losses), noun), "seg": mean_over(seg, batch["present"])}

    def _miss(
        self, layers, number: int, heads: int, positions: torch.Tensor, wanted: torch.Tensor, batch: dict
    ) -> torch.Tensor:
        """`(B, P)` minus log of the first heads' attention that falls on the wanted patches `(B, P, N)`."""
        language, start = self.model.model.language_model, batch["image_start"]
        layer, visible = language.layers[number], pick(batch["visible"], positions)
        states = layer.input_layernorm(layers[number])
        queries = layer.self_attn.q_proj(pick(states, positions)).unflatten(-1, (-1, layer.self_attn.head_dim))[
            :, :, :heads
        ]
        keys = layer.self_attn.k_proj(states).unflatten(-1, (-1, layer.self_attn.head_dim))[:, :, :heads]
        cosine, sine = language.rotary_emb(states, batch["position_ids"])
        queries = _rotate(queries, pick(cosine, positions), pick(sine, positions)).float().transpose(1, 2)
        keys = _rotate(keys, cosine, sine).float().permute(0, 2, 3, 1)
        logits = (queries @ keys * layer.self_attn.scaling).masked_fill(~visible[:, None], -1e9)
        attention = logits.softmax(-1)[..., start : start + NUM_VISUAL_TOKENS]
        return -((attention * wanted[:, None]).sum(-1) + 1e-6).log().mean(1)

    def contrastive(self, image: torch.Tensor, batch: dict) -> dict[str, torch.Tensor]:
        guidance = self.model.model.guidance
        text = guidance.text_model(batch["caption_ids"], attention_mask=batch["caption_mask"]).pooler_output
        return contrastive_loss(guidance.visual_projection(image), guidance.text_projection(text), self.logit_scale)

    def location_logits(self, prompts: torch.Tensor) -> torch.Tensor:
        """How well each cell of the grid fits a prompt token: `(..., 576)`."""
        return LOCATION_SCALE * (prompts.float() - self.prompt_offset) @ (self.grid_prompts - self.prompt_offset).T

    def location_loss(self, prompts: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        cells = ((points + 0.5) * LOCATION_GRID / SCENE_SIZE).long().clamp(0, LOCATION_GRID - 1)
        labels = cells[..., 1] * LOCATION_GRID + cells[..., 0]
        losses = F.cross_entropy(self.location_logits(prompts).flatten(0, 1), labels.flatten(), reduction="none")
        return losses.view(labels.shape)

    @staticmethod
    def patch_loss(logits: torch.Tensor, batch: dict) -> torch.Tensor:
        """Shape, colour, texture and radius of what the middle of every patch shows, from `(B, N, 19)` logits."""
        shape, colour, texture, radius = logits.split((len(SHAPES) + 1, len(COLOURS), len(TEXTURES), 1), dim=-1)
        loss = F.cross_entropy(shape.flatten(0, 1), batch["patch_shape"].flatten())
        loss = loss + F.cross_entropy(colour.flatten(0, 1), batch["patch_colour"].flatten(), ignore_index=-100)
        loss = loss + F.cross_entropy(texture.flatten(0, 1), batch["patch_texture"].flatten(), ignore_index=-100)
        return loss + mean_over((radius[..., 0] - batch["patch_radius"]).square(), batch["patch_colour"] >= 0)


def _rotate(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of `(B, P, heads, head_dim)`."""
    return states * cosine[:, :, None] + rotate_half(states) * sine[:, :, None]


def pick(states: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """States `(B, P, D)` at positions `(B, P)`."""
    return states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))


def mean_over(values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Mean of the values where `present` holds."""
    return (values * present).sum() / present.sum().clamp(min=1)


@torch.no_grad()
def evaluate_grounding(objective: GroundObjective, batches: list[dict]) -> dict[str, float]:
    """Accuracy of the place named by the [SEG] state, by kind of sentence, with all visual tokens and with zeros in
    their place.

    Args:
        objective: model and location grid.
        batches: from `dialogue_batch`, with `"centres"` `(B, 8, 2)` of the objects.

    Returns:
        Share of sentences whose place is nearer to the target than to any other object.
    """
    found = {}
    for place, batch in enumerate(batches):
        # The control is cheap to know and slow to measure: the first batch will do.
        for name, zero in (("", False), ("zero_", True))[: 2 - min(place, 1)]:
            states = objective.states(batch, zero_visual=zero)[0]
            cells = objective.location_logits(objective.prompts(states, batch)).argmax(-1)
            step = SCENE_SIZE / LOCATION_GRID
            places = (
                torch.stack((cells % LOCATION_GRID, cells // LOCATION_GRID), dim=-1).float() * step + step / 2 - 0.5
            )
            nearest = torch.cdist(places, batch["centres"]).argmin(-1)
            right = (nearest == batch["target"]).float()
            for number, kind in enumerate(("attribute", "superlative", "relation")):
                found.setdefault(f"{name}{kind}", []).append(right[batch["kind"] == number])
            found.setdefault(f"{name}all", []).append(right[batch["present"]])
            found.setdefault(f"{name}all_{place}", []).append(right[batch["present"]])
    return {
        name: round(float(torch.cat(values).mean()), 4)
        for name, values in found.items()
        if name[:5] != "zero_" or name == "zero_all"
    }
