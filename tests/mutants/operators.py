"""The changes that are made to the source: operators of cosmic-ray, and two of our own."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator
from parso.python.tree import Keyword, Name
from parso.tree import search_ancestor

if TYPE_CHECKING:
    from collections.abc import Iterator

    Position = tuple[int, int]

SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any"}
CALLS = {"power", "atom_expr", "await_expr"}
OPERATORS = {
    "arithmetic": ["Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_Add", "Pow_Mul"],
    "comparison": [
        "Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt",
        "Is_IsNot", "IsNot_Is",
    ],
    "condition": ["AddNot", "ReplaceAndWithOr", "ReplaceOrWithAnd"],
    "boolean": ["ReplaceTrueWithFalse", "ReplaceFalseWithTrue"],
    "loop": ["ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"],
    "exception": ["ExceptionReplacer"],
    "number": ["NumberReplacer"],
}  # fmt: skip
"""The operators of cosmic-ray that are used, by family. Of those that replace an operator of Python, only replacements
that a person could write by mistake: changes such as ``+`` to ``>>`` raise TypeError in every test."""
PREFIXES = {"arithmetic": "ReplaceBinaryOperator_", "comparison": "ReplaceComparisonOperator_"}


class SwapFunction(Operator):  # type: ignore[misc]
    """Replace ``min`` with ``max``, ``any`` with ``all``, and the reverse."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        if isinstance(node, Name) and node.value in SWAPPED and node.get_next_leaf() == "(":  # type: ignore[no-untyped-call, unused-ignore]
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, _index: int) -> Any:
        node.value = SWAPPED[node.value]
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class RemoveStatement(Operator):  # type: ignore[misc]
    """Remove a call, or an assignment to an attribute or an item. A removed local variable would be a NameError."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        if node.type == "simple_stmt" and search_ancestor(node, "funcdef") and _has_effect(node.children[0]):
            yield node.start_pos, node.children[0].end_pos

    def mutate(self, node: Any, _index: int) -> Any:
        first = node.get_first_leaf()
        node.children[0] = Keyword("pass", first.start_pos, prefix=first.prefix)
        node.children[0].parent = node
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


def _has_effect(statement: Any) -> bool:
    if statement.type in CALLS:
        return not statement.get_code(include_prefix=False).startswith("log.")
    if statement.type != "expr_stmt":
        return False
    target, operator = statement.children[0], statement.children[1]
    return target.type in CALLS or (str(getattr(operator, "value", "")).endswith("=") and operator != "=")


@cache
def list_operators() -> dict[str, tuple[str, Any]]:
    """Return the family and an instance of each operator by its name."""
    found: dict[str, tuple[str, Any]] = {
        "SwapFunction": ("function", SwapFunction()),
        "RemoveStatement": ("statement", RemoveStatement()),
    }
    for family, names in OPERATORS.items():
        for name in names:
            found[name] = (family, get_operator(f"core/{PREFIXES.get(family, '')}{name}")())
    return found
