"""Mutations change the code as they say, one at a time, and leave alone what is not behaviour."""

import ast

from tests.mutants.mutations import mutations

CODE = '''
"""A module."""
def f(a: int, b: int = 2) -> int:
    """Text."""
    logger.info("a", 1)
    if not a < b and True:
        raise ValueError(f"{a + 1}")
    a += 1
    simd.prefetch(a, b)
    a = max(a, 512)
    return g(a, b) * -h(a, a)
'''


def test_each_mutation_changes_one_place_and_can_be_taken_back() -> None:
    tree = ast.parse(CODE)
    before, seen = ast.unparse(tree), []
    for mutation in mutations(tree):
        old, name = mutation.apply(), mutation.text
        (changed,) = set(ast.unparse(tree).splitlines()) - set(before.splitlines()) or {""}
        seen.append((mutation.line, name.split(" → ")[0], changed.strip()))
        type(mutation)(0, "", mutation.node, mutation.name, mutation.index, old).apply()
        assert ast.unparse(tree) == before
    assert sorted(seen) == sorted(
        [
            (3, "2", "def f(a: int, b: int=3) -> int:"),
            (3, "2", "def f(a: int, b: int=1) -> int:"),
            (6, "statement", "pass"),
            (6, "not a < b and True", "if not a < b or True:"),
            (6, "not a < b", "if a < b and True:"),
            (6, "a < b", "if not a <= b and True:"),
            (6, "True", "if not a < b and False:"),
            (8, "statement", "pass"),
            (8, "1", "a += 2"),
            (8, "1", "a += 0"),
            (10, "512", "a = max(a, 1024)"),
            (10, "512", "a = max(a, 256)"),
            (11, "g(a, b) * -h(a, a)", "return g(a, b) / -h(a, a)"),
            (11, "g(a, b)", "return g(b, a) * -h(a, a)"),
            (11, "-h(a, a)", "return g(a, b) * h(a, a)"),
        ]
    )
