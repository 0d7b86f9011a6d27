"""Small changes of a module's code, each of which should make a test fail."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_SWAPPED = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult},
}
_IGNORED = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)  # what errors and log messages say is for other tests
_COMMUTATIVE = ("max", "min", "np.maximum", "np.minimum", "simd.add", "simd.multiply", "simd.maximum")
_LARGE = 64  # one more or less of it, such as of a buffer's rows or of channels that are rounded, seldom matters
_IGNORED_KEYWORDS = ("strict", "cache", "nogil")  # they change no result


@dataclass(frozen=True)
class Mutation:
    """A change: `new` in place of the attribute of `node`, or of the item of a list there. Undoing it restores what was there."""

    line: int
    text: str
    node: ast.AST
    name: str
    index: int | None
    new: Any

    def apply(self) -> Any:
        """Make the change in the tree, and return what was there."""
        if self.index is None:
            old = getattr(self.node, self.name)
            setattr(self.node, self.name, self.new)
        else:
            items = getattr(self.node, self.name)
            old, items[self.index] = items[self.index], self.new
        return old


def mutations(tree: ast.AST) -> list[Mutation]:
    """List the mutations of a module in the order of its code: the same for the same code."""
    return sorted(_below(tree), key=lambda mutation: (mutation.line, mutation.text))


def _below(parent: ast.AST) -> Iterator[Mutation]:
    """Yield the mutations of the children of a node, and of all nodes below them."""
    for name, value in ast.iter_fields(parent):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, _IGNORED) or _is_log_or_docstring(child):
                continue
            if isinstance(child, ast.keyword) and child.arg in _IGNORED_KEYWORDS:
                continue
            for text, new in _replacements(child):
                ast.copy_location(new, child)
                before = "statement" if isinstance(new, ast.Pass) else ast.unparse(child)
                yield Mutation(child.lineno, f"{before} → {text}", parent, name, index, ast.fix_missing_locations(new))
            yield from _below(child)


def _is_log_or_docstring(node: ast.AST) -> bool:
    """Return whether a node is a docstring, a log message, a hint to the processor, or code for type checkers alone."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    if not isinstance(node, ast.Expr):
        return False
    return isinstance(node.value, ast.Constant) or ast.unparse(node).startswith(("logger.", "simd.prefetch("))


def _replacements(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """Yield what may stand in place of a node, with its text."""
    made: list[ast.AST] = []
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            if new := _SWAPPED.get(type(operator)):
                made.append(ast.Compare(node.left, [*node.ops[:i], new(), *node.ops[i + 1 :]], node.comparators))
    elif isinstance(node, ast.BinOp) and type(node.op) in _SWAPPED:
        made.append(ast.BinOp(node.left, _SWAPPED[type(node.op)](), node.right))
    elif isinstance(node, ast.BoolOp):
        made.append(ast.BoolOp(_SWAPPED[type(node.op)](), node.values))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        made.append(node.operand)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        made.append(ast.Constant(not node.value))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        large = node.value >= _LARGE and node.value == int(node.value)
        others = (node.value * 2, node.value // 2) if large else (node.value + 1, node.value - 1)
        made += [ast.Constant(other) for other in others]
    elif isinstance(node, ast.Call) and len(node.args) > 1 and not any(isinstance(a, ast.Starred) for a in node.args[:2]):
        if len(node.args) == 2 and ast.unparse(node.func) in _COMMUTATIVE:
            return
        if ast.unparse(node.args[0]) == ast.unparse(node.args[1]):
            return
        made.append(ast.Call(node.func, [node.args[1], node.args[0], *node.args[2:]], node.keywords))
    elif isinstance(node, ast.AugAssign | ast.Expr) or (isinstance(node, ast.If) and not node.orelse):
        yield f"removed: {ast.unparse(node).splitlines()[0]}", ast.Pass()
    for new in made:
        yield ast.unparse(ast.fix_missing_locations(new)), new
