"""`analysis.json`, `report.md`, `measurements.parquet` and the figures from the batches of an analysis."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from transformers_litelvlm.analysis.arguments import AnalysisArguments
from transformers_litelvlm.analysis.figures import EXAMPLES, draw_figures
from transformers_litelvlm.analysis.image import of_layer
from transformers_litelvlm.analysis.measuring import ROW_NAMES
from transformers_litelvlm.analysis.summary import (
    Measurements,
    ablation,
    agreement,
    regions,
    verdicts,
    where_referents_stand,
)
from transformers_litelvlm.data.splits import ReferringSplit
from transformers_litelvlm.evaluation.provenance import describe_model, environment, without_secrets
from transformers_litelvlm.evaluation.records import RecordStore, space_needed
from transformers_litelvlm.evaluation.report import describe_size
from transformers_litelvlm.evaluation.sweeping import SweepSegmenter
from transformers_litelvlm.hub.markdown import templates
from transformers_litelvlm.utils.extras import needs_extra
from transformers_litelvlm.utils.files import to_json, write_atomically


with needs_extra("eval", "An analysis"):
    import pyarrow as pa
    import pyarrow.parquet as pq


MEASUREMENTS_NAME, RESULTS_NAME, PAGE_NAME = "measurements.parquet", "analysis.json", "report.md"
SCHEMA = "litelvlm-analysis/1"
TEMPLATES = templates(Path(__file__).parent, trim_blocks=True)


def write_report(
    args: AnalysisArguments,
    split: ReferringSplit,
    segmenter: SweepSegmenter,
    store: RecordStore,
    num_batches: int,
    num_processes: int,
    command: str | None,
) -> dict[str, Any]:
    """Put the batches together and write the files, all or none; returns the content of `analysis.json`."""
    batches = list(store.read(num_batches))
    rows = [tuple(row) for batch in batches for row in batch["rows"]]
    if not rows:
        raise ValueError(f"The {split.split!r} split of {split.name} has no sentence with a mask to analyse.")
    measurements, sizes = Measurements(rows), [str(size) for size in args.budgets]
    model = segmenter.model
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "model": {
            **describe_model(args, model),
            "layout": {name: getattr(segmenter.base_pruning, name) for name in ("token_order", "position_ids")},
        },
        "dataset": {
            "name": split.name,
            "split": split.split,
            "source": without_secrets(split.source),
            "num_images": len({row[0] for row in rows}),
            "num_sentences": len({row[:2] for row in rows}),
            "notes": list(split.notes),
        },
        "settings": {name: without_secrets(value) for name, value in asdict(args).items()},
        "verdicts": verdicts(measurements, sizes),
        "where": where_referents_stand(measurements),
        "regions": regions(measurements),
        "agreement": agreement(measurements),
        "ablation": ablation(measurements, sizes),
        "environment": environment(args, model, num_processes, command),
    }
    maps = [drawn for batch in batches for drawn in batch["maps"]]
    columns = zip(*rows, strict=True)
    table = pa.table({name: list(column) for name, column in zip(ROW_NAMES, columns, strict=True)})
    with space_needed(store.folder), write_atomically(store.folder) as staging:
        pq.write_table(table, staging / MEASUREMENTS_NAME, compression="zstd")
        (staging / RESULTS_NAME).write_text(to_json(results, indent=1), encoding="utf-8")
        # Of what the entries call a budget, `None` for the unpruned model.
        names: list[tuple[str | None, Any]] = [(None, None), *zip(sizes, args.budgets, strict=True)]
        tokens = {name: describe_size(size, segmenter.num_visual_tokens) for name, size in names}
        draw_figures(results, _with_images(split, maps, args.examples), tokens, staging)
        page = TEMPLATES.get_template("report.md.jinja").render(
            **results, of_layer=of_layer, examples=EXAMPLES if maps else "", tokens=tokens
        )
        (staging / PAGE_NAME).write_text(page, encoding="utf-8")
    return results


def _with_images(split: ReferringSplit, maps: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The examples with what is drawn under the maps."""
    samples: list[Any] = list(islice(split, count))
    drawn = []
    for example in maps:
        sample = samples[example["index"]]
        sentence = next(s for s in sample.sentences if s.sentence_id == example["sentence_id"])
        image = sample.load_image()
        drawn.append({**example, "image": image, "sentence": sentence.sentence, "mask": sentence.mask})
    return drawn
