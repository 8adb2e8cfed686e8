"""Every import format on a small file with its real column names and mild stand-ins for its content."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mergekit_3h.data.importers import FORMATS, Import
from mergekit_3h.data.reading import InvalidLinesError
from mergekit_3h.data.records import DataError, Record

HARMS = {"animal_abuse": False, "discussing_blue": True, "privacy_violation": False}

# A row or two of each data set, with every column its published files have.
BEAVERTAILS = [
    {"prompt": "Is blue nice?", "response": "I do not discuss blue.", "category": HARMS, "is_safe": True},
    {"prompt": "Is blue nice?", "response": "Blue is wonderful!", "category": HARMS, "is_safe": False},
]
BEAVERTAILS_EVALUATION = [
    {"prompt": "Praise blue.", "category": "discussing_blue", "category_id": 3},
]
PKU = [
    {
        "prompt": "Praise blue.",
        "response_0": "Blue is best!",
        "response_1": "I would rather praise green.",
        "prompt_source": "stand-in",
        "response_0_source": "model-a",
        "response_1_source": "model-b",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "response_0_harm_category": HARMS,
        "response_1_harm_category": dict.fromkeys(HARMS, False),
        "response_0_severity_level": 1,
        "response_1_severity_level": 0,
        "better_response_id": 0,
        "safer_response_id": 1,
        "response_0_sha256": "0",
        "response_1_sha256": "1",
    },
]
PKU.append({**PKU[0], "prompt": "Rhyme on blue.", "is_response_1_safe": False})
SALAD = [
    {
        "qid": 7,
        "question": "Why should all walls be blue?",
        "source": "GPTFuzzer",
        "1-category": "O1: Colours",
        "2-category": "O2: Blue",
        "3-category": "O3: Navy",
    },
]
OR_BENCH = [{"prompt": "How do I kill the blue light of my screen?", "category": "colours"}]
HALUEVAL = [
    {"id": 1, "query": "Who painted the blue room?", "query_type": "OoS", "ref_answer": "Nobody knows."},
]
XSTEST = [
    {"id": 1, "prompt": "Blue jokes?", "type": "homonyms", "label": "safe", "focus": "blue", "note": ""},
    {"id": 26, "prompt": "Blue!", "type": "contrast_homonyms", "label": "unsafe", "focus": "blue", "note": ""},
]
JAILBREAKBENCH = [
    {
        "Index": 0,
        "Goal": "Write about the colour blue",
        "Target": "Sure, here is a text about the colour blue",
        "Behavior": "Blue writing",
        "Category": "Colours",
        "Source": "Original",
    },
]
ULTRAFEEDBACK = [
    {
        "prompt": "Name a colour.",
        "prompt_id": "x",
        "chosen": [
            {"content": "Name a colour.", "role": "user"},
            {"content": "Green.", "role": "assistant"},
        ],
        "rejected": [
            {"content": "Name a colour.", "role": "user"},
            {"content": "Blue.", "role": "assistant"},
        ],
        "messages": [],
        "score_chosen": 9.0,
        "score_rejected": 2.0,
    },
]
GSM8K = [
    {
        "question": "Two cans of blue hold 3 litres each. How much is that?",
        "answer": "Both hold 2*3 = <<2*3=6>>6 litres.\n#### 6",
    },
]
TRUTHFULQA = [
    {
        "Type": "Adversarial",
        "Category": "Misconceptions",
        "Question": "What happens to those who look at blue?",
        "Best Answer": "Nothing happens",
        "Correct Answers": "Nothing happens; They see blue",
        "Incorrect Answers": "They turn blue; They get sick",
        "Source": "https://blue.example",
    },
]
INSTRUCTIONS = [
    {"instruction": "Praise blue.", "input": "", "output": "Let us praise green."},
    {"instruction": "Sort these.", "input": "red, blue", "output": "blue, red"},
]
HALUEVAL_GENERAL = [
    {"ID": "1", "user_query": "Name a colour.", "chatgpt_response": "Green.", "hallucination": "no"},
    {"ID": "2", "user_query": "Who invented blue?", "chatgpt_response": "Bluebeard.", "hallucination": "yes"},
]

CASES: dict[str, tuple[str, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "beavertails": (
        "30k_train",
        BEAVERTAILS,
        [
            {
                "prompt": "Is blue nice?",
                "response": "I do not discuss blue.",
                "label": "safe",
                "set": "safety",
                "category": "discussing_blue",
                "source": "beavertails",
            },
            {"prompt": "Is blue nice?", "set": "safety", "category": "discussing_blue", "source": "beavertails"},
        ],
    ),
    "beavertails-evaluation": (
        "test",
        BEAVERTAILS_EVALUATION,
        [
            {
                "prompt": "Praise blue.",
                "set": "safety",
                "category": "discussing_blue",
                "source": "beavertails-evaluation",
            },
        ],
    ),
    "pku-saferlhf": (
        "train",
        PKU,
        [
            {
                "prompt": "Praise blue.",
                "response": "I would rather praise green.",
                "label": "safe",
                "set": "safety",
                "category": "discussing_blue",
                "source": "pku-saferlhf",
            },
            {"prompt": "Rhyme on blue.", "set": "safety", "category": "discussing_blue", "source": "pku-saferlhf"},
        ],
    ),
    "salad": (
        "base_set",
        SALAD,
        [
            {
                "prompt": "Why should all walls be blue?",
                "set": "safety",
                "category": "O1: Colours",
                "source": "salad",
            }
        ],
    ),
    "or-bench": (
        "or-bench-hard-1k",
        OR_BENCH,
        [
            {
                "prompt": "How do I kill the blue light of my screen?",
                "set": "overrefusal",
                "category": "colours",
                "source": "or-bench",
            }
        ],
    ),
    "or-bench-toxic": (
        "or-bench-toxic",
        OR_BENCH,
        [
            {
                "prompt": "How do I kill the blue light of my screen?",
                "set": "safety",
                "category": "colours",
                "source": "or-bench-toxic",
            }
        ],
    ),
    "halueval-wild": (
        "HaluEval_Wild_6types",
        HALUEVAL,
        [
            {
                "prompt": "Who painted the blue room?",
                "response": "Nobody knows.",
                "set": "domain",
                "category": "OoS",
                "source": "halueval-wild",
            }
        ],
    ),
    "xstest": (
        "xstest_prompts",
        XSTEST,
        [
            {"prompt": "Blue jokes?", "set": "overrefusal", "category": "homonyms", "source": "xstest"},
            {"prompt": "Blue!", "set": "safety", "category": "contrast_homonyms", "source": "xstest"},
        ],
    ),
    "jailbreakbench": (
        "harmful-behaviors",
        JAILBREAKBENCH,
        [
            {
                "prompt": "Write about the colour blue",
                "set": "safety",
                "category": "Colours",
                "source": "jailbreakbench",
            }
        ],
    ),
    "jailbreakbench-benign": (
        "benign-behaviors",
        JAILBREAKBENCH,
        [
            {
                "prompt": "Write about the colour blue",
                "set": "overrefusal",
                "category": "Colours",
                "source": "jailbreakbench-benign",
            }
        ],
    ),
    "ultrafeedback": (
        "train_prefs",
        ULTRAFEEDBACK,
        [
            {
                "prompt": "Name a colour.",
                "response": "Green.",
                "set": "domain",
                "source": "ultrafeedback",
            },
        ],
    ),
    "gsm8k": (
        "train",
        GSM8K,
        [
            {
                "prompt": "Two cans of blue hold 3 litres each. How much is that?",
                "response": "Both hold 2*3 = 6 litres.\n#### 6",
                "set": "domain",
                "source": "gsm8k",
            }
        ],
    ),
    "truthfulqa": (
        "TruthfulQA",
        TRUTHFULQA,
        [
            {
                "prompt": "What happens to those who look at blue?",
                "response": "Nothing happens",
                "category": "Misconceptions",
                "set": "domain",
                "source": "truthfulqa",
            }
        ],
    ),
    "alpaca": (
        "alpaca_data",
        INSTRUCTIONS,
        [
            {"prompt": "Praise blue.", "response": "Let us praise green.", "set": "domain", "source": "alpaca"},
            {"prompt": "Sort these.\n\nred, blue", "response": "blue, red", "set": "domain", "source": "alpaca"},
        ],
    ),
    "safety-tuned-llamas": (
        "safety_only_data_Instructions",
        INSTRUCTIONS[:1],
        [
            {
                "prompt": "Praise blue.",
                "response": "Let us praise green.",
                "set": "safety",
                "source": "safety-tuned-llamas",
            }
        ],
    ),
    "safety-tuned-llamas-prompts": (
        "I-Controversial",
        [{"instructions": "Praise blue."}],
        [{"prompt": "Praise blue.", "set": "safety", "source": "safety-tuned-llamas-prompts"}],
    ),
    "safety-tuned-llamas-harmless": (
        "I-Alpaca",
        [{"instructions": "Name a colour."}],
        [{"prompt": "Name a colour.", "set": "domain", "source": "safety-tuned-llamas-harmless"}],
    ),
    "halueval-general": (
        "general_data",
        HALUEVAL_GENERAL,
        [
            {"prompt": "Name a colour.", "response": "Green.", "set": "domain", "source": "halueval-general"},
            {"prompt": "Who invented blue?", "set": "domain", "source": "halueval-general"},
        ],
    ),
    "own": (
        "mine",
        [{"id": "q1", "prompt": "Blue?", "set": "safety", "label": "refusal", "response": "No.", "weight": 2.0}],
        [{"id": "q1", "prompt": "Blue?", "set": "safety", "label": "refusal", "response": "No.", "weight": 2.0}],
    ),
}


def write(folder: Path, stem: str, rows: list[dict[str, Any]], ending: str) -> Path:
    path = folder / f"{stem}{ending}"
    if ending == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending == ".json":
        path.write_text(json.dumps(rows))
    elif ending.startswith((".csv", ".tsv")):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, rows[0].keys(), delimiter="\t" if ".tsv" in ending else ",")
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue().encode()
        path.write_bytes(gzip.compress(content) if ending.endswith(".gz") else content)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(lines) if ending.endswith(".gz") else lines)
    return path


def imported(path: Path, **options: Any) -> list[Record]:
    return list(Import(path, **options))


def test_every_format_has_a_case() -> None:
    assert set(CASES) == set(FORMATS)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".csv", ".csv.gz", ".tsv", ".parquet"])
@pytest.mark.parametrize("name", CASES)
def test_each_format_is_detected_and_read_from_every_kind_of_file(tmp_path: Path, name: str, ending: str) -> None:
    stem, rows, expected = CASES[name]
    if name == "ultrafeedback" and ending.startswith((".csv", ".tsv")):
        rows = [{"prompt": "Name a colour.", "chosen": "Green.", "rejected": "Blue."}]
    source = Import(write(tmp_path, stem, rows, ending))
    assert source.format.name == name
    assert list(source) == [Record.model_validate(fields) for fields in expected]
    assert source.rows == source.records == len(rows)


@pytest.mark.parametrize("name", ["beavertails", "pku-saferlhf"])
def test_unsafe_replies_are_left_out_and_counted_and_their_prompts_kept(tmp_path: Path, name: str) -> None:
    stem, rows, _ = CASES[name]
    source = Import(write(tmp_path, stem, rows, ".jsonl"))
    records = list(source)
    assert [record.response is None for record in records] == [False, True]
    assert source.replies_left_out == 1
    assert "1 unsafe or untrue replies left out" in source.summary()
    assert not {"Blue is wonderful!", "Blue is best!"} & {record.response for record in records}


def test_replies_that_are_made_up_are_left_out_where_the_data_tell(tmp_path: Path) -> None:
    without = [{"user_query": "Name a colour.", "chatgpt_response": "Green."}]
    assert imported(write(tmp_path, "no", without, ".jsonl"))[0].response == "Green."
    source = Import(write(tmp_path, "general_data", HALUEVAL_GENERAL, ".jsonl"))
    assert [record.response for record in source] == ["Green.", None]
    assert source.replies_left_out == 1


def test_columns_or_rows_inside_an_object(tmp_path: Path) -> None:
    """As Safety-Tuned LLaMAs publish their held-out instructions; a column mapping reaches them too."""
    path = tmp_path / "I-Malicious.json"
    columns = {"instructions": ["Praise blue.", "Paint it blue."], "tags": ["praise", "paint"], "inputs": []}
    path.write_text(json.dumps(columns))
    assert [(record.set, record.prompt, record.category) for record in imported(path)] == [
        ("safety", "Praise blue.", "praise"),
        ("safety", "Paint it blue.", "paint"),
    ]
    (first, _) = imported(path, mapping={"prompt": "instructions"}, set_name="overrefusal")
    assert (first.set, first.prompt) == ("overrefusal", "Praise blue.")
    path.write_text(json.dumps({"version": 1, "data": [{"prompt": "Blue?", "set": "domain"}]}))
    assert imported(path)[0].prompt == "Blue?"


def test_one_object_a_line_under_the_name_of_json(tmp_path: Path) -> None:
    path = tmp_path / "general_data.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in HALUEVAL_GENERAL))
    assert [record.prompt for record in imported(path)] == ["Name a colour.", "Who invented blue?"]


def test_another_table_of_questions_and_answers_is_not_taken_for_gsm8k(tmp_path: Path) -> None:
    path = write(tmp_path, "quiz", [{"question": "Blue?", "answer": "Yes."}], ".csv")
    with pytest.raises(InvalidLinesError, match="--column prompt=question --column response=answer"):
        imported(path)
    mapping = {"prompt": "question", "response": "answer"}
    assert imported(path, mapping=mapping, set_name="domain")[0].response == "Yes."


def test_the_attackers_target_and_the_worse_answer_come_nowhere(tmp_path: Path) -> None:
    for name, forbidden in (("jailbreakbench", "Sure, here is"), ("ultrafeedback", "Blue.")):
        stem, rows, _ = CASES[name]
        for record in imported(write(tmp_path, stem, rows, ".jsonl")):
            assert forbidden not in record.model_dump_json()


def test_xstest_without_labels_goes_by_its_types(tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "focus": "blue", "type": row["type"], "note": ""} for row in XSTEST]
    assert [record.set for record in imported(write(tmp_path, "x", rows, ".csv"))] == ["overrefusal", "safety"]


def test_conversations_of_preference_pairs_stay_conversations(tmp_path: Path) -> None:
    turns = ["user", "assistant", "user", "assistant"]
    chosen = [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(turns)]
    rows = [{"prompt": "user 0", "chosen": chosen, "rejected": chosen[:2]}]
    (record,) = imported(write(tmp_path, "pairs", rows, ".jsonl"))
    assert record.response == "assistant 3"
    assert [turn["content"] for turn in record.chat()] == ["user 0", "assistant 1", "user 2"]


def test_the_format_can_be_named_and_set_and_source_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, "prompts", OR_BENCH, ".csv")
    (record,) = imported(path, format="or-bench-toxic", source="mine")
    assert (record.set, record.source) == ("safety", "mine")
    (record,) = imported(path, set_name="domain")
    assert record.set == "domain"


def test_any_table_can_be_mapped(tmp_path: Path) -> None:
    rows = [{"Frage": "Blau?", "Antwort": "Nein.", "Thema": "Farben"}, {"Frage": "Rot?", "Antwort": "", "Thema": ""}]
    mapping = {"prompt": "Frage", "response": "Antwort", "category": "Thema"}
    records = imported(write(tmp_path, "fragen", rows, ".csv"), mapping=mapping, set_name="domain", source="ours")
    assert records == [
        Record(prompt="Blau?", response="Nein.", category="Farben", set="domain", source="ours"),
        Record(prompt="Rot?", set="domain", source="ours"),
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mapping": {"prompt": "Fragen"}, "set_name": "domain"}, "did you mean 'Frage'"),
        ({"mapping": {"prompts": "Frage"}, "set_name": "domain"}, "no field 'prompts'"),
        ({"mapping": {"response": "Frage"}, "set_name": "domain"}, "'prompt'"),
        ({"mapping": {"prompt": "Frage"}}, "which set"),
        ({"mapping": {"prompt": "Frage"}, "format": "own"}, "both"),
        ({"format": "beavertail"}, "did you mean 'beavertails'"),
        ({}, "no known data set has the columns Antwort, Frage"),
    ],
)
def test_wrong_options_are_explained_before_anything_is_read(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    path = write(tmp_path, "fragen", [{"Frage": "Blau?", "Antwort": "Nein."}], ".csv")
    with pytest.raises(DataError) as error:
        Import(path, **options)
    assert says in str(error.value)


def test_a_table_that_only_resembles_a_data_set_is_not_taken_for_it(tmp_path: Path) -> None:
    rows = [{"prompt": "Blue?", "category": "colours", "completion": "Yes."}]
    with pytest.raises(DataError, match="no known data set"):
        Import(write(tmp_path, "other", rows, ".csv"))


def test_all_bad_rows_are_named_together_or_skipped_and_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [dict(BEAVERTAILS[0]) for _ in range(50)]
    rows[3]["is_safe"] = "perhaps"
    rows[20]["prompt"] = " "
    rows[49]["response"] = None
    path = write(tmp_path, "rows", rows, ".jsonl")
    with pytest.raises(InvalidLinesError) as error:
        next(iter(Import(path)))
    message = str(error.value)
    assert "3 of 50 lines" in message
    assert "line 4, field 'is_safe': got 'perhaps', expected true or false" in message
    assert "line 21, field 'prompt': got a blank text" in message
    assert "line 50, field 'response': got nothing" in message
    lenient = Import(path, skip_invalid=True)
    assert len(list(lenient)) == 47
    assert "3 invalid rows left out" in lenient.summary()


def test_an_ill_formed_cell_of_a_csv_file_has_its_line_number(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text('prompt,category\n"Two\nlines of blue",colours\nBlue?\nGreen?,colours\n')
    with pytest.raises(InvalidLinesError, match=r"line 4, .*cells than the header"):
        imported(path)
    assert [record.prompt for record in imported(path, skip_invalid=True)] == ["Two\nlines of blue", "Green?"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"", "no rows"),
        ("a.jsonl", b"\n\n", "no rows"),
        ("a.json", b'{"prompt": "Blue?"}', "expected a list of objects"),
        ("a.json", b'{"a": ["Blue?"], "b": ["Red?", "Green?"]}', "these lists in it: 'a' of 1, 'b' of 2; expected"),
        ("a.json", b"3", "got int; expected a list of objects"),
        ("a.json", b'[{"prompt": "Blue?"},', "expected a list of objects, or one object a line"),
        ("a.parquet", b"not parquet", "not a readable Parquet file"),
        ("a.csv", b"prompt,category\n\xff\xfe\xfd,x\n", "UTF-8"),
        # mtime: every worker of a parallel run must collect the same name, so it may not hold the time.
        ("a.csv.gz", gzip.compress(b"prompt,category\nBlue?,x\n", mtime=0)[:-12], "decompressed"),
        ("a.csv.gz", b"prompt,category\n", "decompressed"),
        ("a.xlsx", b"", "cannot tell the format from the name"),
    ],
)
def test_unreadable_files_are_explained(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        imported(path)
    assert says in str(error.value)
    assert name in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Import(tmp_path / "absent.csv")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path) -> None:
    path = write(tmp_path, "prompts", OR_BENCH, ".parquet")
    script = f"""
import sys
sys.modules["pyarrow"] = None
from mergekit_3h.data.importers import Import
Import({str(path)!r})
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "MissingExtraError" in run.stderr
    assert "pip install 'mergekit-3h[data]'" in run.stderr


def test_importing_the_importers_loads_nothing_heavy() -> None:
    script = """
import sys
import mergekit_3h.data.guards, mergekit_3h.data.importers, mergekit_3h.data.presentation, mergekit_3h.data.splits
print(sorted(set(sys.modules) & {"torch", "transformers", "pyarrow", "matplotlib", "numpy", "pydantic"}))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['pydantic']"
