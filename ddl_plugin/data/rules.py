"""Rules that select images by their attributes: 'abs(yaw) > 45 and race in ["a", "b"]'.

A rule is Python's expression syntax with little of its meaning: numbers, texts, True and False, names of
columns, abs(), + - * /, comparisons (also chained), `in` and `not in` a list, and, or, not. It is parsed into
a syntax tree and walked here over whole columns; nothing of it is ever executed.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable

import numpy as np

from ddl_plugin.errors import UserError

_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_LANGUAGE = (
    "a rule has numbers, texts, columns, abs(), + - * /, comparisons, 'in' and 'not in' a list, and, or, not"
)
#: What a user wrote, in plain words.
_NAMES = {
    ast.Call: "a call",
    ast.Attribute: "an attribute (a dot after a name)",
    ast.Subscript: "an index in brackets",
    ast.Lambda: "a lambda",
    ast.IfExp: "an if-else",
    ast.NamedExpr: "an assignment",
    ast.List: "a list outside of 'in'",
    ast.Tuple: "a comma",
    ast.Set: "a set outside of 'in'",
    ast.Dict: "a dict",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.JoinedStr: "an f-string",
    ast.Starred: "a starred expression",
    ast.Await: "an await",
    ast.Yield: "a yield",
    ast.YieldFrom: "a yield",
    ast.BitAnd: "'&' (write 'and', with each side in parentheses)",
    ast.BitOr: "'|' (write 'or', with each side in parentheses)",
    ast.BitXor: "'^'",
    ast.Invert: "'~' (write 'not')",
    ast.Pow: "'**'",
    ast.Mod: "'%'",
    ast.FloorDiv: "'//'",
    ast.MatMult: "'@'",
    ast.LShift: "'<<'",
    ast.RShift: "'>>'",
    ast.Is: "'is' (write '==')",
    ast.IsNot: "'is not' (write '!=')",
}


def select(rule: str, column: Callable[[str], np.ndarray]) -> np.ndarray:
    """Which images satisfy `rule`: bool (N,).

    column: name -> (N,) numbers, texts or booleans; it raises `UserError` for a name it does not know.

    Raises `UserError` with the rule's text for anything that is not in the language, for a comparison of a
    text with a number, and for a rule that is not a comparison or names no column.
    """
    try:
        tree = ast.parse(rule.strip(), mode="eval")
        with np.errstate(all="ignore"):
            result = _Walk(rule, column).value(tree.body)
    except SyntaxError as error:
        hint = "; write '==' to compare" if re.search(r"(?<![=<>!])=(?!=)", rule) else ""
        raise UserError(
            f"rule {rule!r}: expected an expression such as 'abs(yaw) > 45', got {error.msg} "
            f"at character {error.offset}{hint}"
        ) from error
    except ValueError as error:  # the parser's answer to a null character
        raise UserError(f"rule {rule!r}: expected text, got {error}") from error
    except (RecursionError, MemoryError) as error:  # its answers to deep nesting
        raise UserError(
            f"rule {rule[:60]!r}...: expected a shorter rule, got one nested too deeply"
        ) from error
    if result.dtype != bool:
        raise UserError(f"rule {rule!r}: a rule must compare, such as 'abs(yaw) > 45', got {_kind(result)}")
    if result.ndim == 0:
        raise UserError(f"rule {rule!r}: expected the name of a column in it, got none")
    return result


class _Walk:
    """Evaluates one rule's tree; every value is an array of numbers, texts or booleans, or such a scalar."""

    def __init__(self, rule: str, column: Callable[[str], np.ndarray]):
        self.rule = rule
        self.column = column
        self.known: dict[str, np.ndarray] = {}

    def value(self, node: ast.AST) -> np.ndarray:
        handlers = {
            ast.Constant: self.constant,
            ast.Name: self.name,
            ast.Call: self.absolute,
            ast.UnaryOp: self.unary,
            ast.BinOp: self.arithmetic,
            ast.BoolOp: self.logic,
            ast.Compare: self.comparison,
        }
        if type(node) not in handlers:
            raise self.refused(node)
        return handlers[type(node)](node)

    def constant(self, node: ast.Constant) -> np.ndarray:
        if isinstance(node.value, (bool, str)):
            return np.array(node.value)
        if isinstance(node.value, (int, float)):
            try:
                return np.array(float(node.value))
            except OverflowError as error:
                raise self.error("expected a number below 1e308, got a larger one") from error
        raise self.error(f"expected a number or a text in quotes, got {ast.unparse(node)}")

    def name(self, node: ast.Name) -> np.ndarray:
        if node.id not in self.known:
            try:
                self.known[node.id] = np.asarray(self.column(node.id))
            except UserError as error:
                raise self.error(str(error)) from error
        return self.known[node.id]

    def absolute(self, node: ast.Call) -> np.ndarray:
        if not (isinstance(node.func, ast.Name) and node.func.id == "abs") or node.keywords:
            raise self.refused(node)
        if len(node.args) != 1:
            raise self.error(f"expected one value in abs(), got {len(node.args)}")
        return np.abs(self.number(node.args[0], "in abs()"))

    def unary(self, node: ast.UnaryOp) -> np.ndarray:
        if isinstance(node.op, ast.Not):
            return np.logical_not(self.boolean(node.operand, "after 'not'"))
        if isinstance(node.op, ast.USub):
            return np.negative(self.number(node.operand, "after '-'"))
        if isinstance(node.op, ast.UAdd):
            return self.number(node.operand, "after '+'")
        raise self.refused(node.op)

    def arithmetic(self, node: ast.BinOp) -> np.ndarray:
        if type(node.op) not in _ARITHMETIC:
            raise self.refused(node.op)
        where = f"in {ast.unparse(node)!r}"
        return np.asarray(
            _ARITHMETIC[type(node.op)](self.number(node.left, where), self.number(node.right, where))
        )

    def logic(self, node: ast.BoolOp) -> np.ndarray:
        word = "and" if isinstance(node.op, ast.And) else "or"
        combine = np.logical_and if word == "and" else np.logical_or
        result = self.boolean(node.values[0], f"beside '{word}'")
        for operand in node.values[1:]:
            result = combine(result, self.boolean(operand, f"beside '{word}'"))
        return np.asarray(result)

    def comparison(self, node: ast.Compare) -> np.ndarray:
        """a < b < c is (a < b) and (b < c), as in Python."""
        result = np.array(True)
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, (ast.In, ast.NotIn)):
                found = self.membership(left, right)
                holds = ~found if isinstance(op, ast.NotIn) else found
            elif type(op) in _COMPARISONS:
                a, b = self.value(left), self.value(right)
                self.comparable(left, a, right, b)
                holds = _COMPARISONS[type(op)](a, b)
            else:
                raise self.refused(op)
            result = np.logical_and(result, holds)
            left = right
        return np.asarray(result)

    def membership(self, left: ast.AST, right: ast.AST) -> np.ndarray:
        if not isinstance(right, (ast.List, ast.Tuple, ast.Set)) or not right.elts:
            raise self.error(f"expected a list such as [1, 2] after 'in', got {ast.unparse(right)}")
        a = self.value(left)
        found = np.zeros(a.shape, bool)
        for element in right.elts:
            if not isinstance(element, (ast.Constant, ast.UnaryOp)):
                raise self.error(
                    f"expected numbers or texts in the list after 'in', got {ast.unparse(element)}"
                )
            b = self.value(element)
            self.comparable(left, a, element, b)
            found |= a == b
        return found

    def comparable(self, left: ast.AST, a: np.ndarray, right: ast.AST, b: np.ndarray) -> None:
        if (a.dtype.kind == "U") != (b.dtype.kind == "U"):
            raise self.error(
                f"expected two numbers or two texts to compare, got {_described(left, a)} "
                f"and {_described(right, b)}"
            )

    def number(self, node: ast.AST, where: str) -> np.ndarray:
        value = self.value(node)
        if value.dtype.kind not in "iuf":
            raise self.error(f"expected a number {where}, got {_described(node, value)}")
        return value

    def boolean(self, node: ast.AST, where: str) -> np.ndarray:
        value = self.value(node)
        if value.dtype != bool:
            raise self.error(f"expected a comparison {where}, got {_described(node, value)}")
        return value

    def refused(self, node: ast.AST) -> UserError:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            what = f"a call of {node.func.id}()"
        else:
            what = _NAMES.get(type(node), type(node).__name__)
        return self.error(f"{what} is not allowed; {_LANGUAGE}")

    def error(self, text: str) -> UserError:
        return UserError(f"rule {self.rule!r}: {text}")


def _kind(value: np.ndarray) -> str:
    return "text" if value.dtype.kind == "U" else "a number"


def _described(node: ast.AST, value: np.ndarray) -> str:
    """'the column yaw, which is text such as 'left'': a cell that is no number makes a column text."""
    source = ast.unparse(node)
    if not isinstance(node, ast.Name):
        return f"the {'text' if value.dtype.kind == 'U' else 'value'} {source}"
    if value.dtype.kind != "U":
        return f"the column {source}, which is {'true or false' if value.dtype == bool else 'numbers'}"
    sample = next((text for text in value if not _is_number(text)), value[0] if len(value) else "")
    return f"the column {source}, which is text such as {str(sample)!r}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
