"""What the page says."""

from dataclasses import replace

import pytest

from transformers_litelvlm.demo import report


@pytest.fixture
def comparison(comparer, scene):
    return comparer.compare(scene[0], "\n".join(scene[1]), budget=16)


def test_the_summary_counts(comparison):
    mean = sum(comparison.ious) / 2
    assert report.summary(comparison) == (
        '<p role="status">Kept 16 of 144 visual tokens (11%) with the method litelvlm. '
        f"Mean IoU with the unpruned masks: {mean:.3f}.</p>"
    )


def test_the_summary_names_a_second_method(comparison):
    pruning = comparison.job.pruning.replace(then={"method": "fastv", "retention_ratio": 0.5})
    both = replace(comparison, job=replace(comparison.job, pruning=pruning))
    assert "(11%) with the method litelvlm and then fastv. Mean" in report.summary(both)


def test_nothing_pruned(comparison):
    whole = replace(comparison, pruned=comparison.unpruned, ious=[1.0, 1.0])
    assert "Nothing was pruned: the budget is not below the 144 visual tokens" in report.summary(whole)
    assert 'Select visual tokens</th><td data-label="Unpruned">none</td><td data-label="Pruned">none' in (
        report.time_table(whole)
    )


def test_the_tables(comparison):
    masks, times = report.sentence_table(comparison), report.time_table(comparison)
    for index, sentence in enumerate(comparison.job.sentences):
        assert f"{index}  {sentence}" in masks and f">{comparison.ious[index]:.3f}<" in masks
        assert f">{comparison.pruned.masks[index].sum():,}<" in masks
    assert (
        f">{comparison.pruned.times['model']:.1f}<" in times and f">{comparison.unpruned.times['model']:.1f}<" in times
    )
    assert "known from before" not in times  # a first call
    known = replace(comparison, unpruned=replace(comparison.unpruned, was_known=True))
    assert "known from before" in report.time_table(known)


def test_what_users_write_is_text(comparer, scene):
    comparison = comparer.compare(scene[0], "<script>alert(1)</script> & a star", budget=16)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; a star" in report.sentence_table(comparison)
    assert report.message("<b>", is_error=True) == '<p role="alert" class="litelvlm-error">&lt;b&gt;</p>'
