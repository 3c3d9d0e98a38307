"""A scene as annotation tools have it in files, and the masks that the bundled model finds there."""

import io

from PIL import Image

from transformers_litelvlm.data import generate_scene


SCENE = generate_scene("test", 2)
PICTURE = Image.fromarray(SCENE.image)
SENTENCES = [SCENE.expressions[index].sentence for index in (0, 1, 5)]  # about different objects
# Upright; the second file lies on its side.
SIZES = [PICTURE.size, (200, 320)]


def files():
    """Name -> content: a PNG, and a JPEG of a phone that was turned."""
    upright, lying = io.BytesIO(), io.BytesIO()
    PICTURE.save(upright, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    tall = Image.fromarray(generate_scene("test", 1).image).resize(SIZES[1])
    tall.transpose(Image.Transpose.ROTATE_90).save(lying, "JPEG", exif=exif, quality=95)
    return {"scene.png": upright.getvalue(), "lying.jpg": lying.getvalue()}


def masks_alone(model, processor, content, sentences):
    """Sentence -> mask (H, W) of a file, those that are not empty."""
    with Image.open(io.BytesIO(content)) as picture:
        inputs = processor.segmentation_inputs(images=[picture], expressions=[sentences])
    masks = model.segment(**inputs).masks[0].numpy()
    return {sentence: mask for sentence, mask in zip(sentences, masks, strict=True) if mask.any()}
