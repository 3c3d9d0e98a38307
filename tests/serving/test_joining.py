"""Prompts and features of several requests as those of one call."""

import torch

from transformers_litelvlm.models.outputs import MediaFeatures, PrunedImageFeatures
from transformers_litelvlm.serving.joining import join_features, join_inputs, join_mask_features


def test_prompts_are_padded_on_the_right_and_pictures_follow_each_other():
    parts = [
        {
            "input_ids": torch.tensor([[5, 6, 7]]),
            "attention_mask": torch.tensor([[1, 1, 1]]),
            "original_sizes": torch.tensor([[3, 4]]),
            "guidance_input_ids": torch.zeros(1, 1, 2),
        },
        {
            "input_ids": torch.tensor([[8, 9], [5, 0]]),
            "attention_mask": torch.tensor([[1, 1], [1, 0]]),
            "original_sizes": torch.tensor([[8, 9]]),
            "guidance_input_ids": torch.zeros(2, 1, 3),
            "dialogue_images": torch.tensor([0, 0]),
        },
    ]
    joined = {name: value.tolist() for name, value in join_inputs(parts, padding=1).items()}
    assert joined == {
        "input_ids": [[5, 6, 7], [8, 9, 1], [5, 0, 1]],
        "attention_mask": [[1, 1, 1], [1, 1, 0], [1, 0, 0]],
        "original_sizes": [[3, 4], [8, 9]],
        "dialogue_images": [0, 1, 1],
    }


def test_features_with_deepstack_and_different_numbers_of_tokens():
    def features(*counts):
        rows = [torch.full((count, 2), float(count)) for count in counts]
        return PrunedImageFeatures(
            pooler_output=rows,
            deepstack_features=[rows, [10 * row for row in rows]],
            retained_indices=[torch.arange(count) for count in counts],
            num_visual_tokens=[9] * len(counts),
        )

    joined = join_features([features(2), features(3, 1)])
    assert [len(row) for row in joined.pooler_output] == [len(row) for row in joined.retained_indices] == [2, 3, 1]
    assert [[float(row[0, 0]) for row in layer] for layer in joined.deepstack_features] == [[2, 3, 1], [20, 30, 10]]
    assert joined.num_visual_tokens == [9, 9, 9]
    assert join_features([features(2), features(2)]).retained_indices.shape == (2, 2)
    plain = join_features([MediaFeatures(pooler_output=[torch.zeros(4, 2)])] * 2)
    assert type(plain) is MediaFeatures and len(plain.pooler_output) == 2 and plain.deepstack_features is None


def test_features_of_mask_models():
    assert join_mask_features([torch.zeros(1, 3), torch.ones(1, 3)]).tolist() == [[0, 0, 0], [1, 1, 1]]
    levels = join_mask_features([[torch.zeros(1, 3), torch.zeros(1, 2)]] * 2)
    assert [level.shape for level in levels] == [(2, 3), (2, 2)]
