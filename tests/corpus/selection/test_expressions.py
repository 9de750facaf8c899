"""Promises of expressions over labels: a small safe language, absent values as said, rows and columns alike."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.corpus.selection.expressions import Expression, ExpressionError

LABELS: dict[str, Any] = {
    "language": "zh", "source": "peps/0008", "quality": 0.75, "words": 120, "clean": True, "spans": [0, 4, 9, 12],
    "perplexity": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('language == "zh" and source == "peps"', False),
        ('language == "zh" and startswith(source, "peps/")', True),
        ('language in ("en", "zh") and not clean', False),
        ("50 <= words < 200", True),
        ("50 <= words < 100", False),
        ("2 * quality + words / 100 - 0.2", 2.5),
        ("-words", -120.0),
        ("1 if quality > 0.5 else 0.25", 1),
        ("max(quality, 0.9, 0.1) > min(1, 0.95)", False),
        ("abs(0 - words)", 120.0),
        ("length(language) == 2 and length(spans) == 4", True),
        ('contains(source, "00") and endswith(source, "8")', True),
        ("default(perplexity, 500) > 400", True),
        ("words / 0", None),
        # an absent value
        ("perplexity", None),
        ("perplexity > 100", False),
        ("perplexity <= 100", False),
        ("not (perplexity > 100)", True),
        ("perplexity == None", True),
        ("perplexity is not None", False),
        ("perplexity != 3", True),
        ("perplexity not in (3, 4)", True),
        ("perplexity in (3, None)", True),
        ("perplexity + 1", None),
        ("min(perplexity, 1)", None),
        ("3 if perplexity else 4", 4),
        ('contains(perplexity, "x")', False),
    ],
)
def test_an_expression_has_the_value_its_docs_say_for_a_row_and_for_a_column(text: str, value: Any) -> None:
    expression = Expression.parse(text, LABELS)
    found = expression.evaluate(LABELS)
    assert found == value
    assert type(found) is type(value)
    table = pa.table({name: [label, label] for name, label in LABELS.items()})
    assert expression.column(table).to_pylist() == [value, value]


def test_names_are_the_labels_that_are_read_and_a_misspelt_one_names_the_nearest() -> None:
    assert Expression.parse('language == "zh" and (quality > 0 or words < 3)').names == {"language", "quality", "words"}
    with pytest.raises(ExpressionError, match="there is no label `langauge`; did you mean `language`"):
        Expression.parse('langauge == "zh"', LABELS)
    with pytest.raises(ExpressionError, match="did you mean `words`"):
        Expression.parse("word > 3").evaluate(LABELS)
    with pytest.raises(ExpressionError, match="did you mean `words`"):
        Expression.parse("word > 3").column(pa.table({"words": [1]}))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "language.upper()", "().__class__", "[x for x in (1, 2)]", "lambda: 1",
        "open('f')", "words ** 9", "f'{words}'", "words[0]", "(y := 3)", "print(words)", "words & 1", "b'x'", "1j",
        "...", "{1: 2}", "min(*spans)", "max(words, default=3)", "1e999", "9223372036854775808", "words is 3",
        "language in source", "contains(source, language)", "await words", "words if words", "a b", "", "abs()",
        "not", "clean = 3", "(" * 300 + "1" + ")" * 300, "-" * 200 + "1", "1 +" * 5000 + "1", "x\0",
    ],
)  # fmt: skip
def test_whatever_is_not_in_the_language_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        Expression.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "language > 3", "words == 'x'", "clean == 1", "clean + 1", "spans == 3", "language and clean", "not words",
        "abs(language)", "min(words, language)", "default(perplexity, 1) == 'x'", "1 if words else 2",
        "(1 if clean else 'x') == 1", "startswith(words, 'x')", "length(words) == 1", "words in ('a', 'b')",
    ],
)  # fmt: skip
def test_kinds_are_never_mixed_neither_in_a_row_nor_in_a_column(text: str) -> None:
    expression = Expression.parse(text, LABELS)
    with pytest.raises(ExpressionError, match=r"expected|compare it"):
        expression.evaluate(LABELS)
    with pytest.raises(ExpressionError, match=r"expected|compare it"):
        expression.column(pa.table({name: [label] for name, label in LABELS.items()}))


def test_a_decision_is_a_condition_and_false_where_it_is_absent() -> None:
    table = pa.table({"words": [1, None, 9], "clean": [True, None, False], "nothing": pa.nulls(3)})
    assert Expression.parse("words > 3").mask(table).tolist() == [False, False, True]
    assert Expression.parse("clean").mask(table).tolist() == [True, False, False]
    assert Expression.parse("nothing").mask(table).tolist() == [False] * 3
    assert Expression.parse("True").mask(table).tolist() == [True] * 3
    assert Expression.parse("clean").holds({"clean": None}) is False
    with pytest.raises(ExpressionError, match="expected a condition, such as `words > 0`"):
        Expression.parse("words").mask(table)
    with pytest.raises(ExpressionError, match="expected a condition"):
        Expression.parse("words").holds({"words": 3})


def test_columns_of_every_arrow_type_of_a_label_can_be_read() -> None:
    table = pa.table(
        {
            "a": pa.array(["x", "y", None]).dictionary_encode(),
            "b": pa.array([1, 2, 3], pa.uint8()),
            "c": pa.array([0.5, None, 2.5], pa.float32()),
            "d": pa.array(["x", "x", "x"], pa.large_string()),
        }
    )
    assert Expression.parse('a == d and b < 2 or c > b - 1 and a != "x"').mask(table).tolist() == [True, False, True]
    assert Expression.parse("b > c").mask(table.to_batches()[0]).tolist() == [True, False, True]
    with pytest.raises(ExpressionError, match="timestamp"):
        Expression.parse("t > 3").mask(pa.table({"t": pa.array([0], pa.timestamp("s"))}))


def test_expressions_travel_between_processes() -> None:
    expression = Expression.parse("words > 3", LABELS)
    assert pickle.loads(pickle.dumps(expression)) == expression


# --- any expression on any table -------------------------------------------------------------------------------------

COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "number": st.one_of(st.none(), st.floats(width=32), st.integers(-9, 9).map(float)),
    "count": st.one_of(st.none(), st.integers(-5, 5)),
    "text": st.one_of(st.none(), st.sampled_from(["", "a", "ab", "中", "中文", "é", "\U0001f600", "\uffff"])),
    "flag": st.one_of(st.none(), st.booleans()),
}


def texts() -> st.SearchStrategy[str]:
    return st.sampled_from(["text", "'a'", "'中文'", "None", "'\\uffff'", "default(text, 'b')"])


def numbers(depth: int) -> st.SearchStrategy[str]:
    leaves = st.sampled_from(["number", "count", "3", "0.5", "None", "length(text)"])
    if not depth:
        return leaves
    inner = numbers(depth - 1)
    return st.one_of(
        leaves,
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner),
        st.builds("({} if {} else {})".format, inner, conditions(depth - 1), inner),
        st.builds("{}({}, {})".format, st.sampled_from(["min", "max", "default"]), inner, inner),
        st.builds("abs({})".format, inner),
        st.builds("(-{})".format, inner),
    )


def conditions(depth: int) -> st.SearchStrategy[str]:
    signs = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
    leaves = st.one_of(
        st.sampled_from(["flag", "True", "None", "flag is None", "contains(text, 'a')", "startswith(text, '中')"]),
        st.builds("({} {} {})".format, texts(), signs, texts()),
        st.sampled_from(["text in ('a', None)", "count not in (1, 2)", "flag == None", "1 < count <= 3 != number"]),
    )
    if not depth:
        return leaves
    inner = conditions(depth - 1)
    return st.one_of(
        leaves,
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner),
        st.builds("(not {})".format, inner),
        st.builds("({} {} {})".format, numbers(depth - 1), signs, numbers(depth - 1)),
    )


@settings(max_examples=300, deadline=None)
@given(
    text=st.one_of(conditions(3), numbers(3)),
    rows=st.lists(st.fixed_dictionaries(COLUMNS), min_size=1, max_size=6),
)
def test_a_column_holds_what_each_row_alone_gives(text: str, rows: list[dict[str, Any]]) -> None:
    schema = pa.schema({"number": pa.float64(), "count": pa.int32(), "text": pa.string(), "flag": pa.bool_()})
    expression = Expression.parse(text, schema.names)
    found = expression.column(pa.Table.from_pylist(rows, schema=schema)).to_pylist()
    for ours, row in zip(found, rows, strict=True):
        expected = expression.evaluate(row)
        same_nan = isinstance(ours, float) and isinstance(expected, float) and math.isnan(ours) and math.isnan(expected)
        assert ours == expected or same_nan, (text, row)
        assert isinstance(ours, bool) == isinstance(expected, bool)


def test_a_hundred_thousand_documents_take_a_blink() -> None:
    count = 100_000
    table = pa.table({"language": ["en", "zh"] * (count // 2), "quality": np.linspace(0, 1, count)})
    assert Expression.parse('language == "zh" and quality >= 0.5').mask(table).sum() == count // 4


def test_parts_are_what_and_ties_together_at_the_top() -> None:
    text = "topic != '新闻 and 旧闻' and (words > 3\n or clean) and not (clean and words < 9)"
    parts = Expression.parse(text).parts()
    assert [part.text for part in parts] == [
        "topic != '新闻 and 旧闻'", "words > 3  or clean", "not (clean and words < 9)"
    ]  # fmt: skip
    assert [part.text for part in Expression.parse("words > 3 or clean").parts()] == ["words > 3 or clean"]


@given(st.fixed_dictionaries({"a": st.none() | st.floats(0, 2), "b": st.none() | st.booleans()}))
@pytest.mark.parametrize("text", ["a > 1 and b", "a is None and (b or a < 1) and not b", "(a > 1 and b) and a < 2"])
def test_an_expression_holds_where_all_its_parts_do(text: str, values: dict[str, Any]) -> None:
    expression = Expression.parse(text)
    assert expression.holds(values) == all(part.holds(values) for part in expression.parts())
