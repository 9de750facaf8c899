"""How expressions over labels are evaluated: the walk over the tree, and values as one document has them.

`expressions` tells the language and what an absent value means; `columns` evaluates whole tables by the same
walk, so that both agree.
"""

from __future__ import annotations

import ast
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import EllipsisType
from typing import Any

from chatloom.errors import ChatloomError
from chatloom.settings import nearest

Value = str | int | float | bool | None
ARITHMETIC: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip
TEXT_TESTS = ("startswith", "endswith", "contains")
NOTHING, TEXT, NUMBER, CONDITION, LIST = "nothing", "a text", "a number", "a condition", "a list"


class ExpressionError(ChatloomError):
    """An expression that cannot be read, names an unknown label, or mixes texts with numbers."""


class Interpreter(ABC):
    """What both ways of evaluating share: how an expression is made of smaller ones, and which kinds go together."""

    def __init__(self, text: str) -> None:
        self.text = text

    def value(self, node: ast.expr) -> Any:
        """Value of a checked tree."""
        match node:
            case ast.Name(id=name):
                return self.label(name)
            case ast.Constant(value=value):
                assert not isinstance(value, bytes | complex | EllipsisType)
                return self.constant(value)
            case ast.BoolOp(op=op, values=values):
                parts = [self.condition(item) for item in values]
                result = parts[0]
                for part in parts[1:]:
                    result = self.both(result, part) if isinstance(op, ast.And) else self.either(result, part)
                return result
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.opposite(self.condition(operand))
            case ast.UnaryOp(operand=operand):
                return self.arithmetic("-", self.constant(0), self.value(operand))
            case ast.BinOp(left=left, op=op, right=right):
                return self.arithmetic(ARITHMETIC[type(op)], self.value(left), self.value(right))
            case ast.IfExp(test=test, body=body, orelse=other):
                first, second = self.value(body), self.value(other)
                self.one_kind("if else", first, second)
                return self.choose(self.condition(test), first, second)
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self._chain(left, ops, others)
            case ast.Call(func=ast.Name(id=name), args=arguments):
                return self.call(name, [self.value(item) for item in arguments])
        raise TypeError(f"{node!r} passed the check")

    def _chain(self, left: ast.expr, ops: list[ast.cmpop], others: list[ast.expr]) -> Any:
        result = None
        first = self.value(left)
        for op, other in zip(ops, others, strict=True):
            second = first
            if isinstance(op, ast.In | ast.NotIn):
                assert isinstance(other, ast.Tuple | ast.List)
                part = self.constant(False)
                for item in other.elts:
                    part = self.either(part, self.compare("==", first, self.value(item)))
                part = self.opposite(part) if isinstance(op, ast.NotIn) else part
            elif isinstance(op, ast.Is | ast.IsNot):
                part = self.absent(first)
                part = self.opposite(part) if isinstance(op, ast.IsNot) else part
            else:
                second = self.value(other)
                name = _COMPARISONS[type(op)]
                part = self.compare("==" if name == "!=" else name, first, second)
                part = self.opposite(part) if name == "!=" else part
            result = part if result is None else self.both(result, part)
            first = second
        return result

    def condition(self, node: ast.expr) -> Any:
        """The value of a part that decides; raises ExpressionError when it is a text or a number."""
        value = self.value(node)
        if self.kind(value) not in (CONDITION, NOTHING):
            part = ast.get_source_segment(self.text.strip(), node) or self.text
            raise ExpressionError(f"`{self.text}`: `{part}` is {self.kind(value)}, not a condition; compare it")
        return self.truth(value)

    def compare(self, sign: str, a: Any, b: Any) -> Any:
        """A comparison; two absent values are equal."""
        self.one_kind(sign, a, b)
        result = self.ordered(sign, a, b)
        return self.either(result, self.both(self.absent(a), self.absent(b))) if sign == "==" else result

    def arithmetic(self, sign: str, a: Any, b: Any) -> Any:
        """A calculation with two numbers."""
        self.only(sign, (NUMBER,), a, b)
        return self.calculated(sign, a, b)

    def call(self, name: str, values: list[Any]) -> Any:
        """A function of checked values."""
        if name == "default":
            self.one_kind(name, *values)
        elif name == "length":
            self.only(name, (TEXT, LIST), *values)
        else:
            self.only(name, (TEXT,) if name in TEXT_TESTS else (NUMBER,), *values)
        return self.applied(name, values)

    def one_kind(self, what: str, a: Any, b: Any) -> None:
        """Raise ExpressionError when two values are of different kinds, or are lists."""
        kinds = [kind for kind in (self.kind(a), self.kind(b)) if kind != NOTHING]
        if len(set(kinds)) > 1 or LIST in kinds:
            raise ExpressionError(f"`{self.text}`: `{what}` between {' and '.join(kinds)}; expected two of one kind")

    def only(self, what: str, allowed: tuple[str, ...], *values: Any) -> None:
        """Raise ExpressionError for a value of another kind than `what` works on."""
        for kind in map(self.kind, values):
            if kind not in (*allowed, NOTHING):
                raise ExpressionError(f"`{self.text}`: `{what}` of {kind}; expected {' or '.join(allowed)}")

    def unknown(self, name: str, known: Any) -> ExpressionError:
        """The error for a label that is not there."""
        match = nearest(name, known)
        hint = f"did you mean `{match}`?" if match else f"labels are {', '.join(f'`{item}`' for item in known)}"
        return ExpressionError(f"`{self.text}`: there is no label `{name}`; {hint}")

    @abstractmethod
    def label(self, name: str) -> Any:
        """The value of a label."""

    @abstractmethod
    def constant(self, value: Value) -> Any:
        """A value that stands in the text."""

    @abstractmethod
    def kind(self, a: Any) -> str:
        """Which of the kinds a value is."""

    @abstractmethod
    def truth(self, a: Any) -> Any:
        """A condition, false where it is absent."""

    @abstractmethod
    def both(self, a: Any, b: Any) -> Any:
        """Logical and of two truths."""

    @abstractmethod
    def either(self, a: Any, b: Any) -> Any:
        """Logical or of two truths."""

    @abstractmethod
    def opposite(self, a: Any) -> Any:
        """Logical not of a truth."""

    @abstractmethod
    def absent(self, a: Any) -> Any:
        """Whether there is no value, as a truth."""

    @abstractmethod
    def choose(self, test: Any, a: Any, b: Any) -> Any:
        """`a` where the test holds, else `b`."""

    @abstractmethod
    def ordered(self, sign: str, a: Any, b: Any) -> Any:
        """A comparison as a truth, false with an absent value."""

    @abstractmethod
    def calculated(self, sign: str, a: Any, b: Any) -> Any:
        """The result of + - * or /."""

    @abstractmethod
    def applied(self, name: str, values: list[Any]) -> Any:
        """The result of a function."""


class OneRow(Interpreter):
    """Values are plain Python ones."""

    def __init__(self, text: str, values: Mapping[str, Any]) -> None:
        super().__init__(text)
        self._values = values

    def label(self, name: str) -> Any:
        """A document's label; raises ExpressionError when it has none of that name."""
        if name not in self._values:
            raise self.unknown(name, self._values)
        return self._values[name]

    def constant(self, value: Value) -> Any:
        """Itself."""
        return value

    def kind(self, a: Any) -> str:
        """Which of the kinds a value is."""
        if a is None:
            return NOTHING
        if isinstance(a, bool):
            return CONDITION
        if isinstance(a, int | float):
            return NUMBER
        return TEXT if isinstance(a, str) else LIST

    def truth(self, a: Any) -> Any:
        """False for an absent condition."""
        return bool(a)

    def both(self, a: Any, b: Any) -> Any:
        """Logical and."""
        return a and b

    def either(self, a: Any, b: Any) -> Any:
        """Logical or."""
        return a or b

    def opposite(self, a: Any) -> Any:
        """Logical not."""
        return not a

    def absent(self, a: Any) -> Any:
        """Whether there is no value."""
        return a is None

    def choose(self, test: Any, a: Any, b: Any) -> Any:
        """`a` where the test holds."""
        return a if test else b

    def ordered(self, sign: str, a: Any, b: Any) -> Any:
        """A comparison of two values of one kind; false with an absent one."""
        if a is None or b is None:
            return False
        if isinstance(a, float) or isinstance(b, float):
            a, b = float(a), float(b)
        return {"==": a == b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[sign]

    def calculated(self, sign: str, a: Any, b: Any) -> Any:
        """Sum, difference, product or quotient, as a float."""
        if a is None or b is None or (sign == "/" and b == 0):
            return None
        a, b = float(a), float(b)
        if sign == "/":
            return a / b
        return a + b if sign == "+" else a - b if sign == "-" else a * b

    def applied(self, name: str, values: list[Any]) -> Any:
        """A function's value."""
        first = values[0]
        if name == "default":
            return values[1] if first is None else first
        if name in TEXT_TESTS:
            if first is None:
                return False
            part = values[1]
            return part in first if name == "contains" else getattr(first, name)(part)
        if any(value is None for value in values):
            return None
        if name == "length":
            return len(first)
        if name == "abs":
            return abs(float(first))
        numbers = [float(value) for value in values if not math.isnan(value)]
        return (min if name == "min" else max)(numbers) if numbers else math.nan
