"""Shortened prompts against a plain Python version of the rule."""

import pytest
import torch

from transformers_litelvlm.models.prompt.compaction import plan_compaction


IMAGE, PAD = 9, 0


def batch(rows, side):
    """Rows of ids; `("image", n)` stands for n placeholders. Returns ids, mask."""
    rows = [[i for item in row for i in ([IMAGE] * item[1] if isinstance(item, tuple) else [item])] for row in rows]
    length = max(map(len, rows))
    ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        columns = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        ids[index, columns], mask[index, columns] = torch.tensor(row), 1
    return ids, mask


def expected_columns(ids, mask, retained, num_tokens):
    """For each row the columns of the full prompt that stay, in their new order."""
    images = iter(zip(retained, num_tokens))
    rows = []
    for row_ids, row_mask in zip(ids.tolist(), mask.tolist()):
        columns, column = [], 0
        while column < len(row_ids):
            if row_ids[column] == IMAGE:
                kept, count = next(images)
                columns += [column + index for index in kept.tolist()]
                column += count
            else:
                columns += [column] if row_mask[column] else []
                column += 1
        rows.append(columns)
    return rows


def kept(*rows):
    return [torch.tensor(row) for row in rows]


CASES = {
    "one image": ([[1, ("image", 6), 2, 3]], kept([4, 0, 2]), [6]),
    "two rows, one image each": ([[1, ("image", 4), 2], [5, 6, ("image", 4), 7, 8]], kept([1, 3], [0, 1]), [4, 4]),
    "rows with 2, 0 and 1 images": (
        [[1, ("image", 4), 2, ("image", 4), 3], [5, 6], [("image", 4), 7]],
        kept([3, 0], [1, 2], [0, 3]),
        [4, 4, 4],
    ),
    "images of different size and budget": (
        [[1, ("image", 3), ("image", 5), 2], [("image", 7), 3, 4, 5, 6]],
        kept([2], [4, 1, 0], [6, 5]),
        [3, 5, 7],
    ),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CASES)
def test_against_plain_python(name, side):
    rows, retained, num_tokens = CASES[name]
    ids, mask = batch(rows, side)
    plan = plan_compaction(ids == IMAGE, retained, num_tokens, mask)
    columns = expected_columns(ids, mask, retained, num_tokens)
    length = max(map(len, columns))
    assert plan.index.shape == (len(rows), length)
    assert plan.is_ragged == any(len(row) < length for row in columns)
    for row, expected in enumerate(columns):
        real = plan.is_real[row]
        assert plan.index[row][real].tolist() == expected
        padding = length - len(expected)
        assert real.tolist() == (
            [False] * padding + [True] * len(expected)
            if side == "left" or not (mask == 0).any()
            else [True] * len(expected) + [False] * padding
        )
    new_ids = plan.apply(ids, PAD)
    assert new_ids[plan.is_real].tolist() == [ids[r, c].item() for r, row in enumerate(columns) for c in row]
    assert (new_ids[~plan.is_real] == PAD).all()
    assert torch.equal(plan.attention_mask(mask), plan.is_real.long())
    states = torch.randn(*ids.shape, 2)
    kept_states = plan.apply_to_embeddings(states)
    for row, expected in enumerate(columns):
        assert torch.equal(kept_states[row][plan.is_real[row]], states[row, expected])
    positions = torch.arange(ids.numel() * 3).view(3, *ids.shape)  # M-RoPE has a leading dimension
    assert torch.equal(plan.apply(positions, 0)[1], plan.apply(positions[1], 0))


def test_without_padding_there_is_no_mask_to_make():
    ids, _ = batch([[1, ("image", 4), 2]], "left")
    assert plan_compaction(ids == IMAGE, kept([1, 3]), [4]).attention_mask(None) is None


def test_rows_that_become_ragged_get_a_mask():
    ids, mask = batch([[1, ("image", 4), 2], [1, 2, 3, 4, 5, 6]], "left")
    plan = plan_compaction(ids == IMAGE, kept([1, 3]), [4])
    assert plan.attention_mask(None).tolist() == [[0, 0, 1, 1, 1, 1], [1] * 6]


def test_padding_that_the_images_needed_is_dropped():
    """A long row pads its neighbour; once the long row is short, that padding would only cost time."""
    ids, mask = batch([[1, ("image", 40), 2], [1, 2, 3]], "left")
    assert plan_compaction(ids == IMAGE, kept([7]), [40], mask).index.shape == (2, 3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_masked_image_at_the_end_of_a_row_is_no_padding(side):
    row = [("image", 4), 1, 2, 3, 4] if side == "left" else [1, 2, 3, 4, ("image", 4)]
    ids, mask = batch([row, [5, 6, 7]], side)
    mask[ids == IMAGE] = 0
    plan = plan_compaction(ids == IMAGE, kept([0, 3]), [4], mask)
    expected = [0, 3, 4, 5, 6, 7] if side == "left" else [0, 1, 2, 3, 4, 7]
    assert plan.index[0].tolist() == expected and plan.is_real[0].all() and plan.is_real[1].sum() == 3


def test_a_prompt_with_the_kept_placeholders_is_taken_as_it_is():
    ids, mask = batch([[1, ("image", 2), 2], [("image", 2), 3]], "left")
    assert plan_compaction(ids == IMAGE, kept([1, 3], [0, 2]), [4, 4], mask) is None


@pytest.mark.parametrize("rows", [[[1, ("image", 5), 2]], [[1, 2]], [[("image", 6)], [("image", 2)]]])
def test_any_other_number_is_an_error_that_names_the_numbers(rows):
    ids, mask = batch(rows, "left")
    with pytest.raises(ValueError, match=r"image placeholders per row.*8 visual tokens \(4 after pruning\)"):
        plan_compaction(ids == IMAGE, kept([1, 3], [0, 2]), [4, 4], mask)
