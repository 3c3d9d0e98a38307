"""What the page says about a comparison, as HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence

from transformers_litelvlm.demo.comparing import Comparison


def message(text: str, is_error: bool = False) -> str:
    """A line above the results; screen readers read it out."""
    role = 'role="alert" class="litelvlm-error"' if is_error else 'role="status"'
    return f"<p {role}>{html.escape(text)}</p>"


def summary(comparison: Comparison) -> str:
    """What was kept, and how far the masks agree, in a line."""
    total = comparison.num_tokens
    if not comparison.is_pruned:
        return message(f"Nothing was pruned: the budget is not below the {total} visual tokens of this image.")
    counts = sorted({len(kept) for kept in comparison.pruned.kept})
    mean = sum(comparison.ious) / len(comparison.ious)
    return message(
        f"Kept {' or '.join(map(str, counts))} of {total} visual tokens ({counts[-1] / total:.0%}) with the method "
        f"{' and then '.join(comparison.job.pruning.methods)}. Mean IoU with the unpruned masks: {mean:.3f}."
    )


def sentence_table(comparison: Comparison) -> str:
    """For each sentence: IoU, scores and areas, pruned and unpruned."""
    pruned, unpruned = comparison.pruned, comparison.unpruned
    rows = [
        [
            f"{index}  {sentence}",
            f"{comparison.ious[index]:.3f}",
            *(f"{answer.scores[index]:.2f}" for answer in (pruned, unpruned)),
            *(f"{int(answer.masks[index].sum()):,}" for answer in (pruned, unpruned)),
        ]
        for index, sentence in enumerate(comparison.job.sentences)
    ]
    head = ["Sentence", "IoU", "Score, pruned", "Score, unpruned", "Pixels, pruned", "Pixels, unpruned"]
    note = (
        "IoU compares the pruned with the unpruned mask: it says what pruning changed, not which mask is right. "
        "The score is the mean probability inside the mask, not correctness."
    )
    return _table("Masks", head, rows, note)


def time_table(comparison: Comparison) -> str:
    """Milliseconds by stage, pruned and unpruned."""
    pruned, unpruned, once = comparison.pruned, comparison.unpruned, "shared"
    encoded = "known from before" if unpruned.was_known else f"{unpruned.times['encode']:.1f}"
    chosen = f"{pruned.times['encode']:.1f}{'' if pruned.was_known else ', with encoding'}"
    rows = [
        ["Read and prepare the image", f"{unpruned.times['prepare']:.1f}", once],
        ["Encode the image", encoded, once],
        ["Select visual tokens", "none", chosen if comparison.is_pruned else "none"],
        ["Language model and masks", f"{unpruned.times['model']:.1f}", f"{pruned.times['model']:.1f}"],
        ["Visual tokens", str(comparison.num_tokens), " or ".join(sorted({str(len(k)) for k in pruned.kept}))],
    ]
    note = "One run each. <code>litelvlm benchmark</code> measures with repetitions and intervals."
    return _table("Times in ms, and tokens", ["Stage", "Unpruned", "Pruned"], rows, note)


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    """A table whose cells are text; on a narrow screen, each row is a block and each cell says its column."""
    columns = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "".join(
        "<tr>"
        + f'<th scope="row">{html.escape(row[0])}</th>'
        + "".join(f'<td data-label="{html.escape(n)}">{html.escape(c)}</td>' for n, c in zip(head[1:], row[1:]))
        + "</tr>"
        for row in rows
    )
    return (
        f'<table class="litelvlm-table"><caption>{html.escape(caption)}</caption><thead><tr>{columns}</tr></thead>'
        f"<tbody>{body}</tbody></table><p>{note}</p>"
    )
