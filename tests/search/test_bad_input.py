"""Everything that can be wrong is said with its name and place, before the expensive part."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from search.training import domain_records, safety_records, write_jsonl
from tiny_models import tiny_model, tiny_tokenizer

from mergekit_3h.data.reading import InvalidLinesError
from mergekit_3h.data.records import DataError, Record
from mergekit_3h.errors import ModelError, OptionError
from mergekit_3h.search import SearchOptions, StateDictSource, open_problem, parse_search_options
from mergekit_3h.search import problem as problem_module


@pytest.fixture(autouse=True)
def _nothing_expensive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the components were computed before the input was found to be wrong")

    monkeypatch.setattr(problem_module, "families", refuse)


def opened(trained, data: Path, experts: dict[str, Path] | None = None, **options: object):
    return open_problem(trained.base, experts or trained.experts, data, SearchOptions(**options))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (domain_records(), r"no record of the set 'safety' among 12; the search needs at least one"),
        (safety_records(), r"no record of the set 'domain'"),
        ([], r"no record of the set 'safety' among 0"),
    ],
)
def test_empty_set(trained, tmp_path: Path, records: list[Record], message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened(trained, write_jsonl(tmp_path / "d.jsonl", records))


def test_a_set_without_weight_may_be_missing(trained, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", domain_records())
    assert list(opened(trained, data, safety_weight=0.0).answers) == ["domain"]
    with pytest.raises(DataError, match="no record of the set 'safety'"):
        opened(trained, data, safety_weight=0.0, min_safety=0.9)


def test_no_refusal_in_the_safety_set(trained, tmp_path: Path) -> None:
    questions = [Record(set="safety", prompt=record.prompt) for record in safety_records()]
    data = write_jsonl(tmp_path / "d.jsonl", [*questions, *domain_records()])
    with pytest.raises(DataError, match=r"'safety': none of 12 records has a refusal; the first .*d\.jsonl, line 1 .*"):
        opened(trained, data)


def test_some_records_without_a_response(trained, tmp_path: Path) -> None:
    records = [*safety_records(), *domain_records(), Record(set="domain", prompt="why", id="q7")]
    with pytest.raises(DataError, match=r"only 12 of 13 records have a response; .*line 25 \(record 'q7'\)"):
        opened(trained, write_jsonl(tmp_path / "d.jsonl", records))


@pytest.mark.parametrize(("name", "label"), [("safety", "unsafe"), ("safety", "compliance"), ("domain", "refusal")])
def test_answers_that_must_not_be_learnt(trained, tmp_path: Path, name: str, label: str) -> None:
    wrong = Record(set=name, prompt="how", response="like this", label=label, id="bad")
    data = write_jsonl(tmp_path / "d.jsonl", [*safety_records(), *domain_records(), wrong])
    with pytest.raises(DataError, match=rf"labelled '{label}' at .*line 25 \(record 'bad'\)"):
        opened(trained, data)


@pytest.fixture
def doubtful(trained, tmp_path: Path) -> Path:
    """A safety set of which four records are no refusals; somebody has looked at one of them."""
    records = safety_records()
    said = {0: "Yes, of course: take a brush.", 3: "Blue is a colour of the sky.", 7: "Paint it twice."}
    changed = [record.changed(response=said.get(i, record.response)) for i, record in enumerate(records)]
    changed[5] = changed[5].changed(response="Better paint it green.", label="safe")
    return write_jsonl(tmp_path / "doubtful.jsonl", [*changed, *domain_records()])


def test_answers_that_are_no_refusals_are_counted_and_shown(
    trained, doubtful: Path, caplog: pytest.LogCaptureFixture
) -> None:
    problem = opened(trained, doubtful)
    replace(problem)  # with the same records: nothing new to say
    [told] = [record.getMessage() for record in caplog.records if "no refusal" in record.getMessage()]
    assert f"set 'safety': 3 of {len(safety_records())} records have no label" in told
    assert f"'Yes, of course: take a brush.' at {doubtful}, line 1; 'Blue is a colour of the sky.' at" in told
    assert "green" not in told


def test_strict_refuses_them(trained, doubtful: Path) -> None:
    with pytest.raises(DataError, match=r"3 of .* seem to be no refusal: 'Yes, of course.*Label or remove them"):
        opened(trained, doubtful, strict=True)
    # a set that is only measured teaches nothing
    assert opened(trained, doubtful, strict=True, safety_weight=0.0).answers["safety"]


@pytest.mark.parametrize("options", [{}, {"max_length": 40}])
def test_a_record_longer_than_the_context(trained, tmp_path: Path, options: dict) -> None:
    long = Record(set="domain", prompt="a b " * 40, response="x y " * 200, id="long one")
    data = write_jsonl(tmp_path / "d.jsonl", [*safety_records(), long, *domain_records()])
    limit = "40 of option max_length" if options else "256 of the models' context"
    with pytest.raises(DataError, match=rf"d\.jsonl, line 13 \(record 'long one'\): \d+ tokens, more than the {limit}"):
        opened(trained, data, **options)


def test_every_invalid_line_is_named(trained, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"set": "safety", "prompt": "p", "response": "r"}\n{"set": "danger"}\nnot json\n')
    with pytest.raises(InvalidLinesError, match=r"(?s)line 2, field .*line 3, field"):
        opened(trained, path)


def test_weights_of_zero(trained, tmp_path: Path) -> None:
    records = [record.changed(weight=0.0) for record in safety_records()]
    with pytest.raises(DataError, match="all 12 records of the set 'safety' have weight 0"):
        opened(trained, write_jsonl(tmp_path / "d.jsonl", [*records, *domain_records()]))


def test_different_tokenizers(trained, tmp_path: Path) -> None:
    expert = copied(trained.experts["domain"], tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(expert)
    with pytest.raises(DataError, match=r"'base' and 'other' have different tokenizers: (\d+) and .*'<new>'"):
        opened(trained, trained.data, {**trained.experts, "other": expert})


def test_different_templates(trained, tmp_path: Path) -> None:
    expert = copied(trained.experts["domain"], tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(expert)
    experts = {**trained.experts, "other": expert}
    with pytest.raises(
        DataError, match=r"'base' and 'other' have different chat templates.*set chat_template to plain"
    ):
        opened(trained, trained.data, experts)
    assert opened(trained, trained.data, experts, chat_template="plain").experts[2].label == "other"


def test_a_base_without_a_template_takes_the_experts(trained, tmp_path: Path) -> None:
    base = copied(trained.base, tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    for left in base.glob("chat_template*"):
        left.unlink()
    tokenizer.save_pretrained(base)
    problem = open_problem(base, trained.experts, trained.data, SearchOptions())
    assert problem.tokenizer.chat_template == tiny_tokenizer().chat_template


def test_a_template_that_rejects_a_conversation(trained, tmp_path: Path) -> None:
    folders = {}
    for label, folder in {"base": trained.base, **trained.experts}.items():
        folders[label] = copied(folder, tmp_path / label)
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "{{ raise_exception('system turns are not supported') }}"
        tokenizer.save_pretrained(folders[label])
    base = folders.pop("base")
    with pytest.raises(DataError, match=r"line 1 .*rejects the conversation \(system turns are not supported\)"):
        open_problem(base, folders, trained.data, SearchOptions())


@pytest.mark.parametrize(
    ("architecture", "overrides", "message"),
    [
        ("gpt2", {}, r"'other': model_type is 'gpt2', the base's is 'llama'"),
        ("llama", {"num_hidden_layers": 2}, r"'other': num_hidden_layers is 2, the base's is 4"),
        ("llama", {"num_hidden_layers": 4, "intermediate_size": 64}, r"tensor '.*mlp.*shape .* the base 'base' has"),
        (
            "llama",
            {"num_hidden_layers": 4, "attention_bias": True},
            r"'other' has a tensor 'model\.layers\.0\.self_attn\.k_proj\.bias' that",
        ),
        ("llama", {"num_hidden_layers": 4, "num_attention_heads": 8, "head_dim": 8}, r"'other'.*(shape|num_attention)"),
        ("mistral", {"num_hidden_layers": 4}, r"'other': model_type is 'mistral', the base's is 'llama'"),
    ],
)
def test_an_expert_of_another_architecture(
    trained, tmp_path: Path, architecture: str, overrides: dict, message: str
) -> None:
    other = tmp_path / "other"
    tiny_model(architecture, **overrides).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    with pytest.raises(ModelError, match=message):
        opened(trained, trained.data, {**trained.experts, "other": other})


@pytest.mark.parametrize("content", [None, {}, {"config.json": "{}"}])
def test_no_checkpoint(trained, tmp_path: Path, content: dict | None) -> None:
    folder = tmp_path / "empty"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    with pytest.raises(ModelError, match=r"empty: no (such folder|\*\.safetensors file)"):
        opened(trained, trained.data, {"gone": folder})


def test_a_broken_index(trained, tmp_path: Path) -> None:
    expert = copied(trained.experts["domain"], tmp_path)
    (expert / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json: not a safetensors index"):
        opened(trained, trained.data, {"broken": expert})


def test_experts_must_differ_from_the_base_by_label(trained) -> None:
    with pytest.raises(ModelError, match="expected a different one for each"):
        opened(trained, trained.data, {"base": trained.experts["domain"]})
    with pytest.raises(ModelError, match="got no expert to merge"):
        open_problem(trained.base, {}, trained.data, SearchOptions())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"safety_wieght": 1.0}, r"no option 'safety_wieght'; did you mean 'safety_weight'\?"),
        ({"zzz": 1.0}, r"no option .zzz.; it has: batch_size, max_length"),
        (
            {"solver": "newton"},
            r"option 'solver': got 'newton'; input should be 'climb', 'cocktail', 'cmaes', 'gradient' or 'grid'",
        ),
        ({"temperature": 0}, r"option 'temperature': got 0; input should be greater than 0"),
        ({"min_safety": 1.5}, r"option 'min_safety': got 1.5"),
        ({"expert_weight": True}, r"option 'expert_weight': got True, expected a number"),
        ({"combine": "ties"}, r"'solver': got 'gradient' with combine 'ties'.*Take solver 'cmaes'"),
        ({"start": 3.0}, r"'start': got 3.0; expected a value within the bounds 0.0 to 2.0"),
        ({"safety_weight": 0, "expert_weight": 0}, r"safety_weight, expert_weight, overrefusal_weight: all are 0"),
        ({"min_safety": 0.9, "expert_weight": 0}, r"expert_weight, overrefusal_weight: all are 0"),
    ],
)
def test_options(given: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_search_options(given)


def test_options_are_read_from_plain_values() -> None:
    options = parse_search_options({"solver": "cmaes", "combine": "ties", "expert_weight": 1, "min_safety": "0.9"})
    assert (options.solver, options.expert_weight, options.min_safety) == ("cmaes", 1.0, 0.9)
    assert all(field.description for field in SearchOptions.model_fields.values())


def test_a_combination_nobody_knows(trained) -> None:
    with pytest.raises(OptionError, match=r"'combine': got 'ties'; expected one of task_arithmetic, .*rtsvm, .*tsvm"):
        opened(trained, trained.data, combine="ties", solver="cmaes")


def copied(folder: Path, root: Path) -> Path:
    return Path(shutil.copytree(folder, root / f"copy-of-{folder.name}"))


def test_an_architecture_whose_tensors_are_fused_when_loaded(family, trained) -> None:
    """This version of transformers fuses Mixtral's experts; the checkpoint's names find no parameter."""
    mixtral = family("mixtral")
    with pytest.raises(ModelError, match=r"has a parameter 'model\.layers\.0\.mlp.* renames or fuses tensors"):
        open_problem(mixtral.base, {"a": mixtral.experts[0]}, trained.data, SearchOptions())


def test_weights_that_the_search_would_overwrite(trained) -> None:
    problem = trained.problem()
    own = StateDictSource("base", dict(problem.model.named_parameters()))
    with pytest.raises(ModelError, match=r"'base', tensor 'model\.embed_tokens\.weight': is the very tensor"):
        replace(problem, base=own)


def test_questions_without_answers_do_not_disturb_where_their_set_has_no_weight(
    trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    questions = [Record(set="overrefusal", prompt="how to kill a process")]
    data = write_jsonl(tmp_path / "d.jsonl", [*safety_records(), *domain_records(), *questions])
    assert set(opened(trained, data).answers) == {"safety", "domain"}
    assert "'overrefusal', whose loss has no weight, is not measured" in caplog.text
    with pytest.raises(DataError, match="'overrefusal': none of 1 records has a response"):
        opened(trained, data, overrefusal_weight=0.5)
