"""Short expressions over labels, such as `language == "zh" and quality > 0.4`: what selection and mixtures decide with.

Python's syntax, a small safe part of it: it is parsed, checked and interpreted here, never run as code. The same
expression is evaluated for one document (`evaluate`) or for a whole table (`column`, `mask`), with equal results.

    names          labels; a misspelt one is an error that names the nearest
    values         numbers, "text", True, False, None
    logic          and, or, not, A if CONDITION else B
    comparisons    == != < <= > >=, chained; in, not in (...); is None, is not None
    arithmetic     + - * /
    functions      abs(x), min(x, y, ...), max(x, y, ...), length(text or list), startswith(text, "..."),
                   endswith(text, "..."), contains(text, "..."), default(label, value if it is absent)

Texts, numbers and conditions (true or false) are three kinds that are never mixed.

A label may be absent (None). `==` holds between two absent values only and `!=` is its opposite; every other comparison
and text function with an absent value is false, and so is an absent condition; arithmetic with one is absent, as is a
division by zero. So `not (perplexity > 100)` keeps documents without a perplexity, `perplexity <= 100` does not.
"""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chatloom.corpus.selection.columns import Columns
from chatloom.corpus.selection.values import ARITHMETIC, TEXT_TESTS, ExpressionError, OneRow, Value
from chatloom.settings import nearest

LONGEST = 10_000  # characters
# name -> fewest and most arguments
_FUNCTIONS: dict[str, tuple[int, float]] = {
    "abs": (1, 1), "min": (2, math.inf), "max": (2, math.inf), "length": (1, 1), "startswith": (2, 2),
    "endswith": (2, 2), "contains": (2, 2), "default": (2, 2),
}  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """A parsed expression; `names` are the labels it reads. Equal texts are equal expressions; it can be pickled."""

    text: str
    names: frozenset[str]

    @classmethod
    def parse(cls, text: str, names: Iterable[str] | None = None) -> Expression:
        """Check an expression; `names` are the labels there are (None: any).

        Raises ExpressionError that shows the place: bad syntax, something outside the small language, an unknown label
        with the nearest one there is.
        """
        tree = _tree(text)
        found = _Check(text).names(tree)
        if names is not None:
            known = list(names)
            for name in sorted(found - set(known)):
                match = nearest(name, known)
                listed = ", ".join(f"`{item}`" for item in sorted(known)) or "none at all"
                hint = f"did you mean `{match}`?" if match else f"labels are {listed}"
                raise ExpressionError(f"`{text}`: there is no label `{name}`; {hint}")
        return cls(text, frozenset(found))

    def parts(self) -> list[Expression]:
        """What `and` ties together at the top: the expression holds where all of them do."""
        tree, text = _tree(self.text), self.text.strip()
        found = [ast.get_source_segment(text, node) or "" for node in _conjuncts(tree)]
        return [Expression.parse(" ".join(part.split("\n"))) for part in found] if len(found) > 1 else [self]

    def evaluate(self, values: Mapping[str, Any]) -> Value:
        """The value for one document's labels; raises ExpressionError for a missing label or mixed types."""
        return OneRow(self.text, values).value(_tree(self.text))

    def holds(self, values: Mapping[str, Any]) -> bool:
        """`evaluate` as a decision; raises ExpressionError when the value is neither true, false nor absent."""
        value = self.evaluate(values)
        if value is not None and not isinstance(value, bool):
            raise ExpressionError(f"`{self.text}`: is {value!r}; expected a condition, such as `{self.text} > 0`")
        return bool(value)

    def column(self, table: pa.Table | pa.RecordBatch) -> pa.Array:
        """The value for every row of a table with one column a label, in order; null where absent."""
        result = Columns(self.text, table).value(_tree(self.text))
        if isinstance(result, pa.Scalar):
            result = pa.repeat(result, table.num_rows)
        return result.combine_chunks() if isinstance(result, pa.ChunkedArray) else result

    def mask(self, table: pa.Table | pa.RecordBatch) -> np.ndarray:
        """`column` as a decision: bool [rows], false where absent."""
        column = self.column(table)
        if pa.types.is_null(column.type):
            return np.zeros(len(column), dtype=bool)
        if not pa.types.is_boolean(column.type):
            raise ExpressionError(
                f"`{self.text}`: is a column of {column.type}; expected a condition, such as `{self.text} > 0`"
            )
        return np.asarray(pc.fill_null(column, False).to_numpy(zero_copy_only=False), dtype=bool)


@functools.lru_cache(maxsize=256)  # the same few expressions are asked for every document
def _tree(text: str) -> ast.expr:
    if not text.strip():
        raise ExpressionError('the expression is empty; write a condition over labels, such as `language == "zh"`')
    if len(text) > LONGEST:
        raise ExpressionError(f"the expression has {len(text)} characters; the limit is {LONGEST}")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        place = f" at character {error.offset}" if error.offset else ""
        raise ExpressionError(f"`{text}`: cannot be read{place}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"the expression cannot be read: {error or type(error).__name__}") from None


def _conjuncts(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        return [part for value in node.values for part in _conjuncts(value)]
    return [node]


class _Check:
    """Walks a tree once, refuses what the language has not, and collects the names."""

    def __init__(self, text: str) -> None:
        self.text = text

    def names(self, tree: ast.expr) -> set[str]:
        """Names of all labels in the tree."""
        found: set[str] = set()
        try:
            self._walk(tree, found, 0)
        except RecursionError:
            raise ExpressionError(f"`{self.text[:80]} ...`: too deeply nested") from None
        return found

    def _walk(self, node: ast.expr, found: set[str], depth: int) -> None:
        if depth > 100:
            raise ExpressionError(f"`{self.text[:80]} ...`: nested more than 100 deep")
        for child in self._children(node, found):
            self._walk(child, found, depth + 1)

    def _children(self, node: ast.expr, found: set[str]) -> list[ast.expr]:
        match node:
            case ast.Name(id=name):
                found.add(name)
                return []
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                if isinstance(value, int | float) and not abs(value) < 2**63:
                    raise self._refuse(node, "the number is too large")
                return []
            case ast.BoolOp(values=values):
                return list(values)
            case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
                return [operand]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                return [left, right]
            case ast.IfExp(test=test, body=body, orelse=other):
                return [test, body, other]
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self._comparison(node, left, ops, others)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
                fewest, most = _FUNCTIONS[name]
                if not fewest <= len(arguments) <= most or any(isinstance(item, ast.Starred) for item in arguments):
                    wanted = fewest if fewest == most else f"at least {fewest}"
                    raise self._refuse(node, f"`{name}` takes {wanted} values, found {len(arguments)}")
                if name in TEXT_TESTS and not _is_text(arguments[1]):
                    raise self._refuse(node, f'`{name}` looks for a text in quotes, as in {name}(url, "wiki")')
                return arguments
            case ast.Call():
                raise self._refuse(node, f"this call; functions are {', '.join(_FUNCTIONS)}")
        raise self._refuse(node, "what labels cannot be compared with")

    def _comparison(
        self, node: ast.expr, left: ast.expr, ops: list[ast.cmpop], others: list[ast.expr]
    ) -> list[ast.expr]:
        children = [left]
        for op, other in zip(ops, others, strict=True):
            if isinstance(op, ast.In | ast.NotIn):
                if not isinstance(other, ast.Tuple | ast.List) or not all(
                    isinstance(item, ast.Constant) for item in other.elts
                ):
                    raise self._refuse(node, '`in` takes a list of values, as in language in ("en", "zh")')
                children += other.elts
            elif isinstance(op, ast.Is | ast.IsNot):
                if not (isinstance(other, ast.Constant) and other.value is None):
                    raise self._refuse(node, "`is` takes None only; compare with ==")
            else:
                children.append(other)
        return children

    def _refuse(self, node: ast.expr, why: str) -> ExpressionError:
        part = ast.get_source_segment(self.text.strip(), node) or ""
        return ExpressionError(f"`{self.text}`: `{part}` is not understood: {why}")


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
