"""`make test-browser`: what a user does with the page of `litelvlm demo`, in a real browser on the bundled checkpoint.

With LITELVLM_SCREENSHOTS, a folder, the page is also saved there as a user sees it: light, dark and on a phone.
"""

import io
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect

from transformers_litelvlm import DEFAULT_CHECKPOINT
from transformers_litelvlm.configuration_pruning import PruningConfig
from transformers_litelvlm.data import decode_mask
from transformers_litelvlm.models.auto import config_for_segmentation, load_for_segmentation


DEMO = str(Path(__file__).parents[2] / "examples" / "assets" / "demo.png")
SENTENCES = ["the red triangle", "the dotted triangle right of the red triangle"]
expect.set_options(timeout=60_000)
SCREENSHOTS = os.environ.get("LITELVLM_SCREENSHOTS")


@pytest.fixture(scope="module")
def segment():
    """Masks of the example picture by `model.segment`, without anything of the demo."""
    config = config_for_segmentation(DEFAULT_CHECKPOINT)
    config.set_pruning(pruning_preset="balanced")
    model, processor = load_for_segmentation(DEFAULT_CHECKPOINT, config)

    def masks(budget: int | None, **changes) -> np.ndarray:
        pruning: PruningConfig = config.pruning_config.replace(budget=budget, retention_ratio=None, **changes)
        inputs = processor.segmentation_inputs(images=[Image.open(DEMO)], expressions=[SENTENCES])
        with torch.inference_mode():
            return model.segment(**inputs, pruning_config=pruning).masks[0].numpy()

    return masks


def upload(page, path=DEMO, says="Press “Compare”."):
    page.set_input_files("#picture input[type=file]", path)
    expect(page.locator("#status p")).to_have_text(says)


def ask(page, sentences=SENTENCES):
    page.locator("#sentences textarea").fill("\n".join(sentences))


def set_budget(page, value):
    field = page.locator("#budget input[type=number]")
    field.fill(str(value))
    field.press("Tab")


def compare(page, says=re.compile("^Kept|^Nothing was pruned")):
    page.locator("#compare").click()
    expect(page.locator("#status p")).to_have_text(says)


def shown_ious(page):
    return [float(text) for text in page.locator('#masks td[data-label="IoU"]').all_inner_texts()]


def download(page):
    with page.expect_download() as waiting:
        page.locator("#download").click()
    return zipfile.ZipFile(waiting.value.path())


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def screenshot(page, name):
    if SCREENSHOTS:
        page.wait_for_timeout(500)  # pictures fade in
        page.screenshot(path=Path(SCREENSHOTS, f"demo_{name}.png"), full_page=True)


def test_two_budgets_and_a_download(open_page, segment):
    page = open_page()
    upload(page)
    ask(page)
    set_budget(page, 48)
    compare(page, re.compile("^Kept 48 of 144 visual tokens"))
    first = shown_ious(page)
    set_budget(page, 16)
    compare(page, re.compile("^Kept 16 of 144 visual tokens"))
    shown = shown_ious(page)
    assert page.locator("#times").get_by_text("known from before").count() == 1, "the picture was encoded again"
    whole, few = segment(None), segment(16)
    assert first == pytest.approx([iou(*pair) for pair in zip(segment(48), whole)], abs=5e-4)
    assert shown == pytest.approx([iou(*pair) for pair in zip(few, whole)], abs=5e-4)
    assert first != shown
    with download(page) as archive:
        result = json.loads(archive.read("result.json"))
        assert [len(kept) for kept in result["pruned"]["retained_indices"]] == [16]
        for name, expected in (("pruned", few), ("unpruned", whole)):
            found = [decode_mask(mask["mask"]) for mask in result[name]["masks"]]
            drawn = [
                np.asarray(Image.open(io.BytesIO(archive.read(f"masks/{name}_{index}.png")))) for index in range(2)
            ]
            assert np.array_equal(found, expected) and np.array_equal(np.array(drawn) == 255, expected)
        assert result["iou_with_unpruned"] == pytest.approx(shown, abs=5e-4)
        assert {"pruned.png", "unpruned.png", "kept.png"} <= set(archive.namelist())


def test_a_preset_and_another_method(open_page, segment):
    page = open_page()
    upload(page)
    ask(page)
    page.locator("#preset input").click()
    page.get_by_role("option", name="fast", exact=True).click()
    expect(page.locator("#budget input[type=number]")).to_have_value("16")
    page.locator("#method input").click()
    page.get_by_role("option", name="divprune", exact=True).click()
    compare(page, re.compile("^Kept 16 of 144 .* divprune"))
    expected = zip(segment(16, method="divprune"), segment(None))
    assert shown_ious(page) == pytest.approx([iou(*pair) for pair in expected], abs=5e-4)


def test_an_example_is_one_click(open_page):
    page = open_page()
    page.locator("#examples button").first.click()
    expect(page.locator("#status p")).to_have_text(re.compile("^Kept 32 of 144"))
    assert len(shown_ious(page)) == 2


def test_all_tokens(open_page):
    page = open_page()
    upload(page)
    ask(page)
    set_budget(page, 144)
    compare(page, "Nothing was pruned: the budget is not below the 144 visual tokens of this image.")
    assert shown_ious(page) == [1.0, 1.0]


def test_a_budget_above_the_tokens_is_all_of_them(open_page):
    page = open_page()
    upload(page)
    ask(page)
    set_budget(page, 5000)
    compare(page, re.compile("^Nothing was pruned"))
    expect(page.locator("#budget input[type=number]")).to_have_value("144")


def test_nothing_was_given(open_page):
    page = open_page()
    compare(page, "Choose an image first.")
    upload(page)
    ask(page, ["", "  "])
    compare(page, re.compile("^Write what to find, one sentence a line"))
    expect(page.locator("#download")).to_be_hidden()


def test_too_many_sentences(open_page):
    page = open_page()
    upload(page)
    ask(page, [f"the circle number {index}" for index in range(20)])
    compare(page, "There are 20 sentences. Write at most 16.")


def test_a_text_that_is_called_a_picture(open_page, tmp_path):
    page, path = open_page(), tmp_path / "wrong.png"
    path.write_text("not a picture")
    upload(page, str(path), re.compile("^The image cannot be read as a picture .unknown format.\\. "))
    ask(page)
    compare(page, re.compile("^The image cannot be read as a picture .unknown format.\\. "))
    expect(page.locator("#status p[role=alert]")).to_be_visible()
    upload_again(page)


def upload_again(page):
    """After a fault, the page goes on."""
    page.get_by_label("Clear").or_(page.get_by_label("Remove")).first.click()
    upload(page)
    compare(page, re.compile("^Kept 32 of 144"))


def test_a_picture_of_20_megapixels(open_page, tmp_path):
    page, path = open_page(), tmp_path / "large.png"
    Image.new("L", (5000, 4000)).save(path)
    says = "The image has 5000 x 4000 pixels, more than 16000000: scale it down."
    upload(page, str(path), says)
    ask(page)
    compare(page, says)


def test_a_sentence_is_text_and_no_html(open_page):
    page = open_page()
    upload(page)
    ask(page, ['<img src="x" onerror="alert(1)">the <b>red</b> triangle'])
    compare(page)
    assert page.locator("#masks img, #masks b").count() == 0
    expect(page.locator("#masks th[scope=row]")).to_contain_text("the <b>red</b> triangle")


def test_the_keyboard_alone(open_page):
    """Tab and Enter from the upload to the download, without a click."""
    page = open_page()

    def tab_to(selector, most=40):
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.closest(selector) !== null", selector):
                return
        pytest.fail(f"Tab never reaches {selector}")

    tab_to("#picture button")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(DEMO)
    expect(page.locator("#status p")).to_have_text("Press “Compare”.")
    tab_to("#sentences textarea")
    page.keyboard.type("the red triangle")
    tab_to("#budget input[type=number]")
    page.keyboard.press("Control+A")
    page.keyboard.type("16")
    tab_to("#compare")
    page.keyboard.press("Enter")
    expect(page.locator("#status p")).to_have_text(re.compile("^Kept 16 of 144"))
    tab_to("#download")
    with page.expect_download() as waiting:
        page.keyboard.press("Enter")
    assert zipfile.is_zipfile(waiting.value.path())


@pytest.mark.parametrize(("width", "colours"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_nothing_is_cut_off(open_page, width, colours):
    page = open_page(width, 844, colours)
    assert overflow(page) <= 0
    upload(page)
    ask(page)
    compare(page)
    page.locator("#kept").scroll_into_view_if_needed()  # pictures load when they are near
    page.locator("#kept img").wait_for()
    screenshot(page, f"{width}_{colours}")
    ask(page, [*SENTENCES, "a" * 300])
    compare(page)
    expect(page.locator("#masks tbody tr")).to_have_count(3)
    assert overflow(page) <= 0
    outside = page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, td, th, img, p')]
            .filter(one => one.checkVisibility() && one.getBoundingClientRect().right > window.innerWidth + 1)
            .map(one => one.outerHTML.slice(0, 200))"""
    )
    assert outside == []


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_text_can_be_read(open_page, colours):
    """The contrast that WCAG 2 asks for (AA): 4.5 to 1."""
    page = open_page(colours=colours)
    upload(page)
    ask(page)
    compare(page)
    page.mouse.move(1, 1)  # a button below the mouse has another colour
    page.wait_for_timeout(1000)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 40 and page.evaluate("document.body.classList.contains('dark')") == (colours == "dark")
    assert [(text, ratio) for text, ratio in found if ratio < 4.5] == []


CONTRASTS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const parse = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = one => {
    for (; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  return [...document.querySelectorAll('main *, .gradio-container *')]
    .filter(one => one.checkVisibility() && [...one.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
    .map(one => {
      const [a, b] = [light(parse(getComputedStyle(one).color)), light(ground(one))].sort((x, y) => y - x);
      return [one.textContent.trim().slice(0, 60), Math.round((a + 0.05) / (b + 0.05) * 100) / 100];
    });
}"""
