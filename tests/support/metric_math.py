"""The parts of CloudWatch's metric math that exports use, over one data point of each metric.

Written from "Use metric math": arithmetic with a missing data point, or a division by zero, has no data point. A
comparison takes a missing data point for zero, unless both are missing. Lists leave missing data points out. Alarms
take ten metrics and ten expressions, of which one is returned (MetricDataQuery).
"""

from __future__ import annotations

import ast
import operator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_OPERATIONS: dict[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
}
MAX_METRICS = 10
MAX_EXPRESSIONS = 10


def evaluate(queries: Sequence[Mapping[str, Any]], points: Mapping[str, float]) -> float | None:
    """Return the value of the query that returns data; None without a data point.

    Args:
        queries: The ``Metrics`` of an alarm or of a scaling policy.
        points: The data points of its metrics by id. Metrics without one have no data.
    """
    metrics = [one["Id"] for one in queries if "MetricStat" in one]
    expressions = {one["Id"]: one["Expression"] for one in queries if "Expression" in one}
    assert len(metrics) <= MAX_METRICS
    assert len(expressions) <= MAX_EXPRESSIONS
    assert points.keys() <= set(metrics)
    [returned] = [one["Id"] for one in queries if one["ReturnData"]]
    known: dict[str, float | None] = {one: points.get(one) for one in metrics}
    for name, expression in expressions.items():  # each refers only to those before it
        known[name] = _evaluate(ast.parse(expression, mode="eval").body, known)
    return known[returned]


def _evaluate(node: ast.AST, known: Mapping[str, float | None]) -> float | None:
    match node:
        case ast.Constant(value=float() | int() as number):
            return number
        case ast.Name(id=name):
            return known[name]
        case ast.BinOp(left=left, op=operation, right=right):
            return _operate(operation, _evaluate(left, known), _evaluate(right, known))
        case ast.Compare(left=left, ops=[operation], comparators=[right]):
            return _compare(operation, _evaluate(left, known), _evaluate(right, known))
        case ast.Call(func=ast.Name(id="IF"), args=[condition, chosen, otherwise]):
            holds = _evaluate(condition, known)
            return None if holds is None else _evaluate(chosen if holds else otherwise, known)
        case ast.Call(
            func=ast.Name(id="FILL"), args=[ast.Name(id=name), ast.Constant(value=float() | int() as number)]
        ):
            found = known[name]
            return number if found is None else found
        case ast.Call(func=ast.Name(id="MAX"), args=[ast.List(elts=parts)]):
            values = [value for part in parts if (value := _evaluate(part, known)) is not None]
            return max(values, default=None)
    raise AssertionError(f"not a part of metric math: {ast.dump(node)}")


def _operate(operation: ast.AST, left: float | None, right: float | None) -> float | None:
    if left is None or right is None or (isinstance(operation, ast.Div) and right == 0):
        return None
    return float(_OPERATIONS[type(operation)](left, right))


def _compare(operation: ast.AST, left: float | None, right: float | None) -> float | None:
    if left is None and right is None:
        return None
    return float(_OPERATIONS[type(operation)](left or 0, right or 0))
