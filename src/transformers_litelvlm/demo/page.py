"""The page: what stands on it, and which part of the package each button calls."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from transformers_litelvlm.demo import report
from transformers_litelvlm.demo.comparing import Comparer, Comparison
from transformers_litelvlm.demo.pictures import write_examples
from transformers_litelvlm.demo.results import write_results
from transformers_litelvlm.serving.errors import ServiceError
from transformers_litelvlm.serving.limits import Limits


logger = logging.getLogger(__name__)

# Choices that change nothing. A list cannot show `None` as chosen, so they are the empty text.
OF_THE_MODEL, OF_THE_PRESET = ("as the demo was started", ""), ("as the preset", "")
HIDDEN = "private"  # no event is an address of an API; `litelvlm serve` has one
# Files are looked for so often and deleted after so long, in seconds.
DELETE_EVERY, DELETE_AFTER = 600, 3600
STYLES = Path(__file__).with_name("page.css")


def build_page(comparer: Comparer, about: str, folder: Path) -> gr.Blocks:
    """The page, with Markdown `about` the checkpoint; the examples are in `folder`, which must live as long as the
    page."""
    examples = write_examples(folder)
    total = comparer.count_tokens(examples[0][0])
    with gr.Blocks(
        title="litelvlm demo", analytics_enabled=False, delete_cache=(DELETE_EVERY, DELETE_AFTER), fill_width=True
    ) as page:
        gr.Markdown(f"# Masks with fewer visual tokens\n\n{about}", elem_id="about")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                asked, chosen = _add_questions(comparer, total, examples)
                button = gr.Button("Compare", variant="primary", elem_id="compare")
            with gr.Column(scale=3, min_width=300):
                results = _add_results()
        _connect(comparer, asked, results, [button.click, asked["text"].submit, chosen.then])
    return page.queue(max_size=comparer.limits.max_queue, default_concurrency_limit=1)


def page_options(limits: Limits) -> dict[str, Any]:
    """Keywords of `launch`: fonts of this machine, nothing shared, no links, limits, own messages."""
    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    # Darker than the defaults, which are hard to read: 4.5 to 1 at least.
    theme = gr.themes.Default(primary_hue="blue", font=fonts, font_mono=mono).set(
        block_info_text_color="*neutral_600",
        body_text_color_subdued="*neutral_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )
    return {
        "theme": theme,
        "css": STYLES.read_text(encoding="utf-8"),
        "footer_links": [],
        "run_history": False,
        "max_file_size": limits.max_request_bytes,
        "ssr_mode": False,
        "share": False,
        "show_error": False,
    }


def _add_questions(comparer: Comparer, total: int, examples: list[list[str]]) -> tuple[dict[str, Any], Any]:
    """What the user fills in, and the event of an example that was chosen."""
    limits = comparer.limits
    picture = gr.Image(
        label=f"Image, up to {limits.max_pixels / 1e6:g} megapixels",
        sources=["upload", "clipboard", "webcam"],
        height=280,
        elem_id="picture",
    )
    text = gr.Textbox(
        label="Sentences, one a line",
        info=f"Up to {limits.max_sentences}. They share the budget.",
        placeholder="the red circle\nthe star left of the blue square",
        lines=3,
        max_lines=8,
        elem_id="sentences",
        render=False,
    )
    with gr.Column(elem_id="examples"):
        shown = gr.Examples(
            examples, [picture, text], label="Drawn examples", cache_examples=False, visible_columns=[0]
        )
    text.render()
    preset, method = (
        gr.Dropdown([unchanged, *((name, name) for name in names)], value="", label=label, elem_id=label.lower())
        for label, unchanged, names in (
            ("Preset", OF_THE_MODEL, comparer.presets),
            ("Method", OF_THE_PRESET, comparer.methods),
        )
    )
    budget = gr.Slider(1, total, comparer.budget_of(None, total), step=1, label=_budget_label(total), elem_id="budget")
    asked = {"picture": picture, "text": text, "preset": preset, "method": method, "budget": budget}
    return asked | {"total": gr.State(total)}, shown.load_input_event


def _budget_label(total: int) -> str:
    return f"Budget: visual tokens to keep, of {total}"


def _add_results() -> dict[str, Any]:
    """What a comparison fills in; hidden until there is one."""
    first = report.message("Choose an image and write what to find, or choose an example.")
    status = gr.HTML(first, apply_default_css=False, elem_id="status")
    with gr.Column(visible=False) as group:
        with gr.Row():
            pruned, unpruned = _drawing("pruned", "Masks, pruned"), _drawing("unpruned", "Masks, unpruned")
        masks = gr.HTML(apply_default_css=False, elem_id="masks")
        file = gr.DownloadButton("Download the masks as ZIP (PNG and COCO RLE)", elem_id="download")
        kept = _drawing("kept", "Kept visual tokens", height=480)
        times = gr.HTML(apply_default_css=False, elem_id="times")
    return {
        "status": status,
        "group": group,
        "pruned": pruned,
        "unpruned": unpruned,
        "masks": masks,
        "kept": kept,
        "times": times,
        "file": file,
    }


def _drawing(name: str, label: str, **size: int) -> gr.Image:
    return gr.Image(
        label=label,
        alt_text=label,
        elem_id=name,
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],  # not "share", which uploads to the Hub
        min_width=260,
        **size,
    )


def _connect(comparer: Comparer, asked: dict[str, Any], results: dict[str, Any], starts: list[Callable]) -> None:
    """Which event calls what."""
    picture, preset, budget, total = asked["picture"], asked["preset"], asked["budget"], asked["total"]
    hide = {results["group"]: gr.Column(visible=False)}

    def look_at(image: dict[str, Any] | None, before: int) -> dict[Any, Any]:
        if image is None:
            return {results["status"]: report.message("Choose an image."), **hide}
        count = comparer.count_tokens(_uploaded(image, picture.GRADIO_CACHE))
        ready = {results["status"]: report.message("Press “Compare”."), total: count, **hide}
        if count != before:
            value = comparer.budget_of(None, count)
            ready[budget] = gr.Slider(maximum=count, value=value, label=_budget_label(count))
        return ready

    def compare(image: dict[str, Any] | None, text: str, *setting: Any) -> dict[Any, Any]:
        name, method, count = setting
        path = _uploaded(image, picture.GRADIO_CACHE)
        return _filled(comparer.compare(path, text, name or None, method or None, count), results)

    def told(work: Callable) -> Callable:
        """What is wrong is said above the results, instead of by an exception."""

        def work_or_tell(*arguments: Any) -> dict[Any, Any]:
            try:
                return work(*arguments)
            except ServiceError as error:
                text = re.sub("^`image`( in the request)?", "The image", str(error)).replace("`", "")
            except Exception:
                logger.exception("the demo failed")
                text = "A fault of the demo. The terminal in which it runs says more."
            return {results["status"]: report.message(text, is_error=True), **hide}

        return work_or_tell

    # Without `preprocess`, Gradio does not decode the image: this package does, with its limits and messages.
    picture.change(
        told(look_at),
        [picture, total],
        [results["status"], results["group"], budget, total],
        preprocess=False,
        api_visibility=HIDDEN,
        show_progress="hidden",
    )
    preset.change(  # not `input`, which the keyboard causes by passing through
        lambda name, count: (comparer.budget_of(name or None, count), ""),
        [preset, total],
        [budget, asked["method"]],
        api_visibility=HIDDEN,
        show_progress="hidden",
    )
    inputs = [picture, asked["text"], preset, asked["method"], budget]
    for start in starts:
        start(
            told(compare),
            inputs,
            list(results.values()),
            preprocess=False,
            api_visibility=HIDDEN,
            concurrency_id="model",
            scroll_to_output=True,
        )


def _uploaded(image: dict[str, Any] | None, folder: str) -> str | None:
    """Its path, in the folder of uploads. Gradio checks where a file lies only if the client says that it is one."""
    if not image or not image["path"]:
        return None
    path = Path(image["path"]).resolve()
    if not (path.is_relative_to(Path(folder).resolve()) and path.is_file()):
        raise ServiceError("invalid", "The image is no upload, or was deleted: choose it again.")
    return str(path)


def _filled(comparison: Comparison, results: dict[str, Any]) -> dict[Any, Any]:
    folder = Path(results["file"].GRADIO_CACHE, uuid.uuid4().hex)  # of which Gradio deletes what is old
    folder.mkdir(parents=True)
    files = write_results(comparison, folder)
    return {
        results["status"]: report.summary(comparison),
        results["group"]: gr.Column(visible=True),
        results["pruned"]: str(files["pruned"]),
        results["unpruned"]: str(files["unpruned"]),
        results["masks"]: report.sentence_table(comparison),
        results["kept"]: str(files["kept"]),
        results["times"]: report.time_table(comparison),
        results["file"]: str(files["archive"]),
    }
