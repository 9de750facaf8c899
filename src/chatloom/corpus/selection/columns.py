"""Expressions over labels evaluated for all rows of a table at once, with Arrow's functions."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from chatloom.corpus.selection.values import (
    CONDITION,
    LIST,
    NOTHING,
    NUMBER,
    TEXT,
    ExpressionError,
    Interpreter,
    Value,
)

_ORDERINGS = {"==": pc.equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}
_TEXT_TESTS = {"startswith": pc.starts_with, "endswith": pc.ends_with, "contains": pc.match_substring}


class Columns(Interpreter):
    """Values are Arrow arrays, one place a row, or scalars."""

    def __init__(self, text: str, table: pa.Table | pa.RecordBatch) -> None:
        super().__init__(text)
        self._table = table

    def label(self, name: str) -> Any:
        """A label's column, of one type for each kind; raises ExpressionError when there is none of that name."""
        if name not in self._table.schema.names:
            raise self.unknown(name, self._table.schema.names)
        column = self._table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_integer(column.type):
            return column.cast(pa.int64())
        if pa.types.is_floating(column.type):
            return column.cast(pa.float64())
        if pa.types.is_string(column.type):
            return column.cast(pa.large_string())
        return column

    def constant(self, value: Value) -> Any:
        """A scalar."""
        return pa.scalar(value, pa.large_string()) if isinstance(value, str) else pa.scalar(value)

    def kind(self, a: Any) -> str:
        """Which of the kinds a column is; raises ExpressionError for types that labels do not have."""
        tests = {NOTHING: pa.types.is_null, TEXT: pa.types.is_large_string, CONDITION: pa.types.is_boolean}
        tests |= {NUMBER: lambda t: pa.types.is_int64(t) or pa.types.is_float64(t), LIST: pa.types.is_list}
        for kind, test in tests.items():
            if test(a.type):
                return kind
        raise ExpressionError(f"`{self.text}`: a column of type {a.type} cannot be used in an expression")

    def truth(self, a: Any) -> Any:
        """False for an absent condition."""
        return pc.fill_null(a.cast(pa.bool_()), False)

    def both(self, a: Any, b: Any) -> Any:
        """Logical and."""
        return pc.and_(a, b)

    def either(self, a: Any, b: Any) -> Any:
        """Logical or."""
        return pc.or_(a, b)

    def opposite(self, a: Any) -> Any:
        """Logical not."""
        return pc.invert(a)

    def absent(self, a: Any) -> Any:
        """Whether there is no value; NaN is one."""
        return pc.is_null(a)

    def choose(self, test: Any, a: Any, b: Any) -> Any:
        """`a` where the test holds."""
        return pc.if_else(test, *_alike(a, b))

    def ordered(self, sign: str, a: Any, b: Any) -> Any:
        """A comparison of two values of one kind; false with an absent one."""
        return pc.fill_null(_ORDERINGS[sign](*_alike(a, b)), False)

    def calculated(self, sign: str, a: Any, b: Any) -> Any:
        """Sum, difference, product or quotient, as float64."""
        a, b = a.cast(pa.float64()), b.cast(pa.float64())
        if sign == "/":
            b = pc.if_else(pc.equal(b, 0.0), pa.scalar(None, pa.float64()), b)
            return pc.divide(a, b)
        return {"+": pc.add, "-": pc.subtract, "*": pc.multiply}[sign](a, b)

    def applied(self, name: str, values: list[Any]) -> Any:
        """A function's value."""
        first = values[0]
        if name == "default":
            return pc.coalesce(*_alike(*values))
        if name in _TEXT_TESTS:
            return pc.fill_null(_TEXT_TESTS[name](first.cast(pa.large_string()), pattern=values[1].as_py()), False)
        if name == "length":
            if pa.types.is_null(first.type):
                return first
            count = pc.utf8_length if pa.types.is_large_string(first.type) else pc.list_value_length
            return count(first).cast(pa.int64())
        numbers = [value.cast(pa.float64()) for value in values]
        if name == "abs":
            return pc.abs(numbers[0])
        return (pc.min_element_wise if name == "min" else pc.max_element_wise)(*numbers, skip_nulls=False)


def _alike(a: Any, b: Any) -> tuple[Any, Any]:
    """Two values of one kind with one type."""
    if a.type == b.type and not pa.types.is_null(a.type):
        return a, b
    if pa.types.is_null(a.type) and not pa.types.is_null(b.type):
        return a.cast(b.type), b
    if pa.types.is_null(b.type) and not pa.types.is_null(a.type):
        return a, b.cast(a.type)
    return a.cast(pa.float64()), b.cast(pa.float64())
