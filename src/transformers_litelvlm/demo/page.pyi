"""The page: what stands on it, and which part of the package each button calls."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from transformers_litelvlm.demo import report
from transformers_litelvlm.demo.comparing import Comparer, Comparison
from transformers_litelvlm.demo.pictures import draw_answer, draw_kept, write_examples
from transformers_litelvlm.demo.results import write_zip
from transformers_litelvlm.serving.errors import ServiceError
from transformers_litelvlm.serving.limits import Limits


logger = logging.getLogger(__name__)

# Choices that change nothing, and their value for `Comparer`.
OF_THE_MODEL, OF_THE_PRESET = ("as the demo was started", None), ("as the preset", None)
HIDDEN = "private"  # no event is an address of an API; `litelvlm serve` has one
# Files are looked for so often and deleted after so long, in seconds.
DELETE_EVERY, DELETE_AFTER = 600, 3600
STYLES = Path(__file__).with_name("page.css")

from gradio.events import Dependency

class Picture(gr.Image):
    """An image whose file is read by this package, with its limits and messages, and never fetched from an address."""

    is_template = True  # in the browser it is an Image

    def preprocess(self, payload: Any) -> str | None:
        return None if payload is None else payload.path

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
        if str(url_or_file_path).startswith(("http:", "https:")):
            raise gr.Error("The demo does not fetch images. Upload the file.")
        return await super().async_move_resource_to_block_cache(url_or_file_path)
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


def build_page(comparer: Comparer, about: str, folder: Path) -> gr.Blocks:
    """The page.

    Args:
        comparer: computes.
        about: Markdown about the checkpoint.
        folder: for the examples; it must live as long as the page.
    """
    examples = write_examples(folder)
    total = comparer.count_tokens(examples[0][0])
    with gr.Blocks(
        title="litelvlm demo", analytics_enabled=False, delete_cache=(DELETE_EVERY, DELETE_AFTER), fill_width=True
    ) as page:
        gr.Markdown(f"# Masks with fewer visual tokens\n\n{about}", elem_id="about")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                asked = _add_questions(comparer, total)
                button = gr.Button("Compare", variant="primary", elem_id="compare")
                shown = gr.Examples(
                    examples, [asked["picture"], asked["text"]], label="Drawn examples", cache_examples=False
                )
            with gr.Column(scale=3, min_width=300):
                results = _add_results()
        _connect(comparer, asked, results, [button.click, asked["text"].submit, shown.load_input_event.then])
    return page.queue(max_size=comparer.limits.max_queue, default_concurrency_limit=1)


def page_options(limits: Limits) -> dict[str, Any]:
    """Keywords of `launch` and of `gradio.mount_gradio_app`: fonts of this machine, no links, limits, own messages."""
    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return {
        "theme": gr.themes.Default(font=fonts, font_mono=mono),
        "css": STYLES.read_text(encoding="utf-8"),
        "footer_links": [],
        "run_history": False,
        "max_file_size": limits.max_request_bytes,
        "ssr_mode": False,
        "show_error": False,
    }


def _add_questions(comparer: Comparer, total: int) -> dict[str, Any]:
    """What the user fills in."""
    limits = comparer.limits
    return {
        "picture": Picture(
            label=f"Image: upload, paste or webcam, up to {limits.max_pixels / 1e6:g} megapixels",
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard", "webcam"],
            height=280,
            elem_id="picture",
        ),
        "text": gr.Textbox(
            label="Sentences, one a line",
            info=f"Up to {limits.max_sentences}. They share the budget.",
            placeholder="the red circle\nthe star left of the blue square",
            lines=3,
            max_lines=8,
            elem_id="sentences",
        ),
        "preset": gr.Dropdown(
            [OF_THE_MODEL, *((name, name) for name in comparer.presets)],
            value=None,
            label="Preset",
            info="A saved setting.",
            elem_id="preset",
        ),
        "method": gr.Dropdown(
            [OF_THE_PRESET, *((name, name) for name in comparer.methods)],
            value=None,
            label="Method",
            info="Another one has its default options.",
            elem_id="method",
        ),
        "budget": gr.Slider(
            1,
            total,
            value=comparer.budget_of(None, total),
            step=1,
            label=f"Budget: visual tokens to keep of {total}",
            elem_id="budget",
        ),
        "total": gr.State(total),
    }


def _add_results() -> dict[str, Any]:
    """What a comparison fills in; hidden until there is one."""
    status = gr.HTML(report.message("Choose an image and write what to find, or choose an example."), elem_id="status")
    with gr.Column(visible=False) as group:
        with gr.Row():
            pruned, unpruned = (
                gr.Image(
                    label=label, format="png", interactive=False, elem_id=name, alt_text=f"Masks, {name}", min_width=260
                )
                for label, name in (("Pruned", "pruned"), ("Unpruned", "unpruned"))
            )
        masks = gr.HTML(elem_id="masks")
        kept = gr.Image(
            label="Kept visual tokens", format="png", interactive=False, elem_id="kept", alt_text="Kept visual tokens"
        )
        times = gr.HTML(elem_id="times")
        file = gr.DownloadButton("Download masks (PNG and COCO RLE) as ZIP", elem_id="download")
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


def _connect(comparer: Comparer, asked: dict[str, Any], results: dict[str, Any], starts: list[Callable]) -> None:
    """Which event calls what."""
    picture, preset, budget, total = asked["picture"], asked["preset"], asked["budget"], asked["total"]
    hide = {results["group"]: gr.Column(visible=False)}

    def look_at(file: str | None, before: int) -> dict[Any, Any]:
        if file is None:
            return {results["status"]: report.message("Choose an image."), **hide}
        count = comparer.count_tokens(file)
        ready = {results["status"]: report.message("Press “Compare”."), total: count, **hide}
        if count != before:
            label, value = f"Budget: visual tokens to keep of {count}", comparer.budget_of(None, count)
            ready[budget] = gr.Slider(maximum=count, value=value, label=label)
        return ready

    def compare(file: str | None, text: str, *setting: Any) -> dict[Any, Any]:
        comparison = comparer.compare(file, text, *setting)
        path = Path(results["file"].GRADIO_CACHE, uuid.uuid4().hex, "litelvlm_masks.zip")
        return _filled(comparison, path, results)

    def told(work: Callable) -> Callable:
        """What is wrong is said above the results, instead of by an exception."""

        def work_or_tell(*arguments: Any) -> dict[Any, Any]:
            try:
                return work(*arguments)
            except ServiceError as error:
                text = str(error).replace("`image` in the request", "The image").replace("`", "")
            except Exception:
                logger.exception("the demo failed")
                text = "A fault of the demo. The terminal in which it runs says more."
            return {results["status"]: report.message(text, is_error=True), **hide}

        return work_or_tell

    picture.change(
        told(look_at),
        [picture, total],
        [results["status"], results["group"], budget, total],
        api_visibility=HIDDEN,
        show_progress="hidden",
    )
    preset.input(
        lambda name, count: (comparer.budget_of(name, count), None),
        [preset, total],
        [budget, asked["method"]],
        api_visibility=HIDDEN,
        show_progress="hidden",
    )
    inputs = [picture, asked["text"], preset, asked["method"], budget]
    for start in starts:
        start(told(compare), inputs, list(results.values()), api_visibility=HIDDEN, concurrency_id="model")


def _filled(comparison: Comparison, path: Path, results: dict[str, Any]) -> dict[Any, Any]:
    path.parent.mkdir(parents=True)
    write_zip(comparison, path)
    return {
        results["status"]: report.summary(comparison),
        results["group"]: gr.Column(visible=True),
        results["pruned"]: draw_answer(comparison, comparison.pruned),
        results["unpruned"]: draw_answer(comparison, comparison.unpruned),
        results["masks"]: report.sentence_table(comparison),
        results["kept"]: draw_kept(comparison),
        results["times"]: report.time_table(comparison),
        results["file"]: str(path),
    }