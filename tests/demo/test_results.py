"""What can be downloaded, and the examples."""

import io
import json
import zipfile

import numpy as np
from PIL import Image

from transformers_litelvlm.data import decode_mask
from transformers_litelvlm.demo.pictures import draw_kept, write_examples
from transformers_litelvlm.demo.results import write_results


def test_the_archive_has_the_masks_twice(comparer, scene, tmp_path):
    comparison = comparer.compare(scene[0], "\n".join(scene[1]), budget=16)
    files = write_results(comparison, tmp_path)
    assert set(files) == {"pruned", "unpruned", "kept", "archive"}
    with zipfile.ZipFile(files["archive"]) as archive:
        assert archive.testzip() is None
        result = json.loads(archive.read("result.json"))
        for name, answer in (("pruned", comparison.pruned), ("unpruned", comparison.unpruned)):
            for index, mask in enumerate(answer.masks):
                png = np.asarray(Image.open(io.BytesIO(archive.read(f"masks/{name}_{index}.png"))))
                assert np.array_equal(png, mask * 255)
                assert np.array_equal(decode_mask(result[name]["masks"][index]["mask"]), mask)
            assert archive.read(f"{name}.png") == files[name].read_bytes()
    assert result["iou_with_unpruned"] == comparison.ious
    assert result["setting"]["budget"] == 16 and result["setting"]["method"] == "litelvlm"
    assert result["pruned"]["retained_indices"] == comparison.pruned.kept
    assert result["unpruned"]["method"] is None and result["unpruned"]["timings_ms"]["model"] > 0


def test_the_kept_tokens_are_drawn(comparer, scene):
    few, many = (comparer.compare(scene[0], scene[1][0], budget=budget) for budget in (4, 140))
    brightness = [np.asarray(draw_kept(each).convert("L")).mean() for each in (few, many)]
    assert brightness[0] < brightness[1] - 20, "pruned tokens are dimmed"


def test_several_dialogues_are_drawn_side_by_side(comparer, scene):
    found = comparer.compare(scene[0], scene[1][0], budget=16)
    one = draw_kept(found)
    found.pruned.kept.append(found.pruned.kept[0][:8])
    assert draw_kept(found).width > 2 * one.width


def test_examples_are_pictures_with_sentences(tmp_path, comparer):
    examples = write_examples(tmp_path)
    assert len(examples) == len({path for path, _ in examples}) >= 3
    assert comparer.count_tokens(examples[0][0]) == 144
    assert all(1 <= len(text.splitlines()) <= 3 and text.startswith("the ") for _, text in examples)
