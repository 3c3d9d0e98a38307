"""Panels beside one another."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from transformers_litelvlm.visualization import draw_masks, draw_retained_tokens, draw_scores, side_by_side
from transformers_litelvlm.visualization.layout import GAP, LegendEntry, with_legend


def test_pictures_stand_in_rows_and_do_not_overlap():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    pictures = [Image.new("RGB", size, colour) for size, colour in zip([(30, 20), (10, 40), (50, 5)], colours)]
    pixels = np.asarray(side_by_side(pictures, columns=2))
    assert pixels.shape == (40 + GAP + 5, 50 + GAP + 10, 3)
    for picture, colour, (x, y) in zip(pictures, colours, [(0, 0), (50 + GAP, 0), (0, 40 + GAP)]):
        assert np.argwhere((pixels == colour).all(-1)).min(0).tolist() == [y, x]
        assert (pixels == colour).all(-1).sum() == picture.width * picture.height


def test_a_title_stands_above():
    picture = Image.new("RGB", (900, 20), (200, 0, 0))
    titled = np.asarray(side_by_side([picture], "litelvlm, 48 of 144 visual tokens " * 9))
    top = np.argwhere((titled == (200, 0, 0)).all(-1)).min(0)[0]
    assert top > 30 and (titled[:top].min(axis=(0, 2)) < 100).sum() > 400, "ink all along the line"
    assert titled[:top, -8:].min() == 255, "and not beyond it"


def test_no_pictures():
    with pytest.raises(ValueError, match="`pictures` is empty"):
        side_by_side([])


GRID = (3, 4)
MASK = np.zeros((1, 48, 64), bool)
MASK[0, 4:20, 4:20] = True
WEIGHTS = torch.linspace(0, 1, 24).reshape(2, 12)
DRAW = {
    "masks": lambda image: draw_masks(image, MASK, ["the square"]),
    "tokens": lambda image: draw_retained_tokens(image, [0, 5], GRID, None, MASK),
    "scores": lambda image: draw_scores(image, np.arange(12), GRID, None, [0, 5], MASK[0]),
    "panels": lambda image: side_by_side([image, draw_masks(image, MASK)]),
}
# How an upright picture is stored for the value of EXIF 0x0112.
STORED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 5: Image.Transpose.TRANSPOSE}


def scene():
    image = Image.new("RGB", (64, 48), (200, 200, 200))
    ImageDraw.Draw(image).rectangle((4, 4, 19, 19), fill=(180, 30, 30))
    return image


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("orientation", STORED)
def test_a_photo_is_drawn_upright_from_its_file_and_as_a_picture(name, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    scene().transpose(STORED[orientation]).save(tmp_path / "photo.png", exif=exif)
    expected = np.asarray(DRAW[name](scene()))
    with Image.open(tmp_path / "photo.png") as photo:
        stored = photo.tobytes()
        assert np.array_equal(DRAW[name](photo), expected)
        assert photo.tobytes() == stored, "it is not changed"
    assert np.array_equal(DRAW[name](tmp_path / "photo.png"), expected)
    assert np.array_equal(DRAW[name](np.asarray(scene())), expected)


@pytest.mark.parametrize("name", sorted(DRAW.keys() - {"scores"}))
def test_16_bit_grey_is_as_bright_as_in_8_bits(name):
    levels = np.arange(64 * 48).reshape(48, 64) % 256
    deep, plain = Image.fromarray((levels * 257).astype(np.uint16)), Image.fromarray(levels.astype(np.uint8))
    assert deep.mode == "I;16" and np.array_equal(DRAW[name](deep), DRAW[name](plain))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float64])
def test_tensors_of_any_floating_type(dtype):
    image, numbers = scene(), WEIGHTS.to(dtype)
    same = numbers.double().numpy()
    for draw in (
        lambda values: draw_masks(image, (values[0].float() > 0.2).repeat(256).reshape(1, 48, 64).to(values.dtype)),
        lambda values: draw_scores(image, values[0], GRID),
        lambda values: draw_scores(image, list(values[1]), GRID),
        lambda values: draw_retained_tokens(image, [0, 5], GRID, merge_weights=values),
    ):
        drawn, expected = draw(numbers), draw(torch.from_numpy(same))
        assert drawn.tobytes() == expected.tobytes()


@pytest.mark.parametrize("draw", ["tokens", "scores"])
def test_masks_of_another_picture_are_not_stretched(draw):
    with pytest.raises(
        ValueError, match=r"`masks?` must have the shape of the upright image, \(64, 48\), got \(48, 64\)"
    ):
        DRAW[draw](Image.new("RGB", (48, 64)))


def test_a_long_text_is_cut_at_the_last_letter_that_fits():
    canvas, font = Image.new("RGB", (500, 4), "red"), ImageFont.load_default(16)
    room = 500 - 3 * 8 - 16  # between the swatch and the right edge
    word = "".join(np.random.default_rng(0).choice(list("AVTofil.,W"), 400))
    fits = max(end for end in range(400) if font.getlength(word[:end] + "…") <= room)
    drawn = [with_legend(canvas, [LegendEntry((1, 2, 3), text)]) for text in (word, word[:fits] + "…")]
    assert 20 < fits < 100 and drawn[0].tobytes() == drawn[1].tobytes()


def test_a_long_text_is_measured_a_few_times(monkeypatch):
    measured = []
    getlength = ImageFont.FreeTypeFont.getlength
    monkeypatch.setattr(
        ImageFont.FreeTypeFont, "getlength", lambda font, text: (measured.append(text), getlength(font, text))[1]
    )
    with_legend(Image.new("RGB", (500, 4)), [LegendEntry((1, 2, 3), "x" * 4000)])
    assert 2 <= len(measured) < 20
