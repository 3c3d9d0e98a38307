"""Training with pruning on: transformers' `Trainer`, gradient checkpointing, LoRA, methods inside the model."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from tests.support.family_cases import NUM_LAYERS, every_case, need_methods_inside
from tests.support.methods import ONE_OF_EACH_KIND
from transformers_litelvlm import PruningConfig


BUDGET = 12
LORA = {"target_modules": r".*language_model\.layers.*(q_proj|v_proj)"}
SETTINGS = [("litelvlm", {}), ("fastv", {"layer": 1})]  # before and inside the language model


@pytest.fixture
def trained(family):
    """A model that the test may change."""
    model = family.model(NUM_LAYERS).train()
    model.config.pruning_budget = BUDGET
    return model


def with_labels(model, inputs):
    """Labels for all text but the first token of a row, and the first after visual tokens: the columns before these
    may be padding, or pruned."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    tokens = [getattr(model.config, f"{modality}_token_id") for modality in model.model.modalities]
    is_text = (mask == 1) & ~torch.isin(ids, torch.tensor(tokens))
    follows_text = torch.nn.functional.pad(is_text[:, :-1], (1, 0), value=False)
    return {**inputs, "labels": ids.masked_fill(~(is_text & follows_text), -100)}


def batches(family, model):
    """Of different length, with as many labels in none as in another."""
    made = [family.lite_inputs("right"), family.row(0), family.row(1), family.row(2)]
    made = [with_labels(model, inputs) for inputs in made]
    assert len({batch["input_ids"].shape[1] for batch in made}) >= 3
    return made


def loss_on_kept_tokens(output, labels, **kwargs):
    """Cross entropy, summed, written by hand on the tokens that have logits, row by row."""
    total = 0.0
    for logits, targets in zip(output.logits, labels):
        kept = logits.detach().abs().sum(-1) > 0
        total += cross_entropy(logits[kept][:-1], targets[kept][1:], reduction="sum", **kwargs)
    return total


def num_labels(batch):
    return int((batch["labels"][:, 1:] != -100).sum())


def trainer_for(model, folder, data, **kwargs):
    """A `Trainer` that takes a whole batch at a time, with steps that are easy to repeat by hand."""
    for_arguments = {
        "optim": "sgd",
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    names = set(TrainingArguments.__dataclass_fields__)
    for_arguments |= {name: kwargs.pop(name) for name in list(kwargs) if name in names}
    arguments = TrainingArguments(str(folder), **for_arguments)
    return Trainer(
        model, arguments, data_collator=lambda rows: rows[0], train_dataset=data, eval_dataset=data, **kwargs
    )


# ---- Trainer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, options", SETTINGS)
def test_accumulated_steps_are_those_of_the_loss_on_kept_tokens(family, trained, tmp_path, method, options):
    """Also that `Trainer` hands on everything that pruning needs, though it removes columns that `forward` has not."""
    if method == "fastv":
        need_methods_inside(family)
    trained.config.set_pruning(pruning_method=method, pruning_method_options=options)
    by_hand, data = copy.deepcopy(trained), batches(family, trained)[:2]
    # A class may say that it takes no counts, as some of upstream's do: then batches weigh the same.
    counts = [sum(map(num_labels, data))] * 2
    if not getattr(family.stock_class, "accepts_loss_kwargs", True):
        counts = [2 * num_labels(batch) for batch in data]
    losses = [loss_on_kept_tokens(by_hand(**batch), batch["labels"]) / n for batch, n in zip(data, counts)]
    loss = sum(losses)
    loss.backward()
    trainer = trainer_for(trained, tmp_path, data, gradient_accumulation_steps=2, max_steps=1)
    assert trainer.train().training_loss == pytest.approx(loss.item(), rel=1e-5)
    moved = 0.0
    for (name, new), old in zip(trained.named_parameters(), by_hand.parameters(), strict=True):
        expected = old if old.grad is None else old - 0.5 * old.grad
        torch.testing.assert_close(new, expected, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        moved += (new - old).abs().sum().item()
    assert moved > 1


def test_metrics_get_the_columns_that_were_passed(family, trained, tmp_path):
    data, seen = batches(family, trained), {}

    def compute_metrics(prediction):
        seen.update(logits=prediction.predictions, labels=prediction.label_ids)
        right = prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]
        return {"accuracy": right[prediction.label_ids[:, 1:] != -100].mean()}

    trainer = trainer_for(trained, tmp_path, data, compute_metrics=compute_metrics)
    metrics = trainer.evaluate()
    trained.eval()
    with torch.no_grad():
        outputs = [trained(**batch) for batch in data]
    longest = max(batch["input_ids"].shape[1] for batch in data)
    expected = [torch.nn.functional.pad(o.logits, (0, 0, 0, longest - o.logits.shape[1]), value=-100) for o in outputs]
    np.testing.assert_allclose(seen["logits"], torch.cat(expected), atol=1e-5)
    labels = [torch.nn.functional.pad(b["labels"], (0, longest - b["labels"].shape[1]), value=-100) for b in data]
    assert seen["labels"].tolist() == torch.cat(labels).tolist()
    hits = [(o.logits[:, :-1].argmax(-1) == b["labels"][:, 1:]).sum() for o, b in zip(outputs, data)]
    assert metrics["eval_accuracy"] == pytest.approx(float(sum(hits) / sum(map(num_labels, data))))
    losses = [o.loss.item() for o in outputs]
    assert losses == pytest.approx(
        [loss_on_kept_tokens(o, b["labels"]).item() / num_labels(b) for o, b in zip(outputs, data)], rel=1e-5
    )
    assert metrics["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("method, options", SETTINGS)
def test_smoothed_labels(family, trained, tmp_path, method, options):
    """`Trainer` computes this loss itself, from logits with the columns of its labels. As for the stock classes, it
    does not shift labels unless told to: docs/training.md has the loss function that does."""
    if method == "fastv":
        need_methods_inside(family)
    trained.config.set_pruning(pruning_method=method, pruning_method_options=options)

    def smoothed(output, labels, num_items_in_batch=None):
        logits, targets = output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return cross_entropy(logits, targets, label_smoothing=0.1, reduction="sum") / num_items_in_batch

    batch = batches(family, trained)[0]
    output, labels, count = trained(**batch), batch["labels"], num_labels(batch)
    shifted = loss_on_kept_tokens(output, labels, label_smoothing=0.1) / count
    own = trainer_for(trained, tmp_path, [batch], compute_loss_func=smoothed, max_steps=1, learning_rate=0.0)
    assert own.train().training_loss == pytest.approx(shifted.item(), rel=1e-5)
    unshifted = cross_entropy(output.logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1, reduction="sum")
    trainer = trainer_for(trained, tmp_path, [batch], label_smoothing_factor=0.1, max_steps=1, learning_rate=0.0)
    assert trainer.train().training_loss == pytest.approx(unshifted.item() / count, rel=1e-5)
    assert abs(unshifted - shifted * count) > 1e-2


@pytest.mark.parametrize("keep", [4, torch.tensor([1, -2])], ids=["last", "columns"])
def test_labels_and_logits_to_keep(family, trained, keep):
    """The loss is that of all columns, whatever is returned of them."""
    batch = batches(family, trained)[0]
    everything, some = trained(**batch), trained(**batch, logits_to_keep=keep)
    torch.testing.assert_close(some.loss, everything.loss)
    columns = everything.logits[:, keep if isinstance(keep, torch.Tensor) else slice(-keep, None)]
    torch.testing.assert_close(some.logits, columns)
    assert columns.abs().sum() > 0


@pytest.mark.parametrize("method, options", SETTINGS)
def test_labels_of_another_length_are_refused(family, trained, method, options):
    """Longer ones would be read at the columns of the prompt, without a word."""
    if method == "fastv":
        need_methods_inside(family)
    trained.config.set_pruning(pruning_method=method, pruning_method_options=options)
    batch = batches(family, trained)[0]
    length = batch["input_ids"].shape[1]
    for change in (3, -3):
        labels = torch.nn.functional.pad(batch["labels"], (change, 0), value=-100)
        with pytest.raises(ValueError, match=f"`labels` has {length + change} columns, the prompt {length}"):
            trained(**{**batch, "labels": labels})
        positions = torch.arange(length + change)[None]
        with pytest.raises(ValueError, match=f"`position_ids` has {length + change} columns"):
            trained(**batch, position_ids=positions)


def test_packed_sequences_are_refused(family, trained):
    """Upstream tells them apart by positions that start again; what is shortened would read one another."""
    inputs = {name: value for name, value in family.row(1).items() if name != "attention_mask"}
    length = inputs["input_ids"].shape[1]
    positions = torch.arange(length)[None]
    assert trained(**inputs, position_ids=positions, pruning_config={"budget": 3}).retained_indices is not None
    packed = torch.cat((positions[:, : length - 2], positions[:, :2]), dim=1)
    with pytest.raises(ValueError, match="`position_ids` start again within a row.*Give each sequence a row"):
        trained(**inputs, position_ids=packed, pruning_config={"budget": 3})
    assert trained(**inputs, position_ids=packed, pruning_config={"budget": None}).logits.isfinite().all()


# ---- gradient checkpointing, every kind of method -------------------------------------------------------------------


def gradients(model, batch):
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_every_kind_of_method_trains_and_checkpoints(family, trained):
    """In evaluation and training mode alike, and with layers that are computed again for the backward pass."""
    cases = {name: options for name, options in every_case(family) if name in ONE_OF_EACH_KIND}
    assert {"litelvlm", *([] if family.is_recurrent else ["fastv"])} <= set(cases)
    batch = batches(family, trained)[0]
    for name, options in cases.items():
        trained.config.set_pruning(pruning_method=name, pruning_method_options=options)
        plain, checkpointed = copy.deepcopy(trained), copy.deepcopy(trained)
        checkpointed.activation_checkpointing_enable()
        loss, expected = gradients(plain, batch)
        torch.testing.assert_close(loss, plain.eval()(**batch).loss)
        assert not plain(**batch, pruning_config={"budget": None}).loss.isclose(loss), name
        again, actual = gradients(checkpointed, batch)
        torch.testing.assert_close(again, loss)
        assert actual.keys() == expected.keys() and len(actual) > 20
        for parameter, gradient in expected.items():
            torch.testing.assert_close(actual[parameter], gradient, atol=1e-5, rtol=1e-3)


# ---- LoRA -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapted(trained):
    torch.manual_seed(0)
    return get_peft_model(trained.eval(), LoraConfig(**LORA, init_lora_weights=False))


def test_only_adapters_learn(family, adapted, tmp_path):
    batch = batches(family, adapted.get_base_model())[0]
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    trainer = trainer_for(adapted, tmp_path, [batch], max_steps=2, activation_checkpointing=True)
    trainer.train()
    changed = {name for name, p in adapted.named_parameters() if not torch.equal(p, before[name])}
    with_attention = NUM_LAYERS // 2 if family.is_recurrent else NUM_LAYERS
    assert changed == {name for name in before if "lora_" in name} and len(changed) == with_attention * 2 * 2


def test_an_adapter_comes_back(family, adapted, tmp_path):
    inputs = family.lite_inputs()
    with torch.no_grad():
        expected = adapted(**inputs).logits
        adapted.save_pretrained(tmp_path)
        base = family.model(NUM_LAYERS)
        base.config.pruning_budget = BUDGET
        plain = base(**inputs).logits
        again = PeftModel.from_pretrained(base, tmp_path).eval()
        assert torch.equal(again(**inputs).logits, expected)
        assert (plain - expected).abs().max() > 0.1
        merged = again.merge_and_unload()
        assert type(merged) is family.model_class
        torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
@torch.no_grad()
def test_pruning_settings_act_through_the_wrapper(family, trained, task_type):
    torch.manual_seed(0)
    base = trained.eval()
    adapted = get_peft_model(base, LoraConfig(**LORA, init_lora_weights=False, task_type=task_type))
    inputs, length = family.lite_inputs(), family.lite_inputs()["input_ids"].shape[1]
    found = set()
    for budget in (3, 7, None):
        expected = base(**inputs, pruning_config=PruningConfig(budget=budget))
        new = base.generate(**inputs, pruning_config=PruningConfig(budget=budget), max_new_tokens=4, do_sample=False)
        actual = adapted(**inputs, pruning_config=PruningConfig(budget=budget))
        assert torch.equal(actual.logits, expected.logits)
        generated = adapted.generate(
            **inputs, pruning_config=PruningConfig(budget=budget), max_new_tokens=4, do_sample=False
        )
        assert torch.equal(generated, new) and new.shape[1] > length
        adapted.config.pruning_budget = budget
        assert torch.equal(adapted(**inputs).logits, expected.logits)
        assert torch.equal(adapted.generate(**inputs, max_new_tokens=4, do_sample=False), new)
        kept = actual.retained_indices
        found.add(None if kept is None else tuple(map(len, kept)))
    assert None in found and len(found) == 3
    with adapted.disable_adapter():
        assert not torch.allclose(adapted(**inputs).logits, expected.logits, atol=1e-2)
