"""Lines of keys: whatever way TOML lets a key be written, its line is found."""

import random
import tomllib
from typing import Any

import pytest
import tomlkit

from lorapod.recipe.locate import KeyPath, locate


def all_paths(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    found = {path} if path else set()
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= all_paths(inner, (*path, key))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            found |= all_paths(inner, (*path, index))
    return found


TRICKY = '''\
# a comment with [brackets] = "and quotes
top = "a # no comment" # a comment
"quoted key" = 1
'literal.key' = 2
"tab\\tand \\u00e9" = 3
dotted.inner . deep = 4
when = 1979-05-27 07:32:00
text = """
first = "not a key"
[nor.a.table] \\""" still text
end with two quotes"""""
raw = \'\'\'
x = 1
'quoted'\'\'\'\'
empty = ""
none = []
numbers = [ 1, # one ]
  2,
  [3, "4,]"],
  { a = 5, b.c = [6] },
]
inline = { x = 1, "y z" = { deep = "}" }, list = [
  1,
] }
[table]
key = 1
[table.sub]  # header comment
key = 2
[[many]]
name = "first"
[many.below]
key = 3
[[many.nested]]
key = 4
[[many.nested]]
key = 5
[[many]]
name = "second"
  [[many.nested]]
  key = 6
[ "a b" . 'c' ]
last = true'''


def test_every_key_of_a_tricky_document_is_found():
    assert set(locate(TRICKY).lines) == all_paths(tomllib.loads(TRICKY))
    assert locate(TRICKY).repeated == []


@pytest.mark.parametrize(
    ("path", "start"),
    [
        (("top",), "top ="),
        (("quoted key",), '"quoted key"'),
        (("literal.key",), "'literal.key'"),
        (("tab\tand é",), '"tab'),
        (("dotted", "inner", "deep"), "dotted.inner"),
        (("raw",), "raw ="),
        (("numbers", 1), "  2,"),
        (("numbers", 2, 1), "  [3"),
        (("numbers", 3, "b", "c", 0), "  { a"),
        (("inline", "y z", "deep"), "inline"),
        (("inline", "list", 0), "  1,"),
        (("table", "sub"), "[table.sub]"),
        (("many", 0, "nested", 1, "key"), "key = 5"),
        (("many", 1), '[[many]]\nname = "second"'),
        (("many", 1, "nested", 0, "key"), "  key = 6"),
        (("a b", "c", "last"), "last"),
    ],
)
def test_line_of_a_key(path: KeyPath, start: str):
    line = locate(TRICKY).line(path)
    assert line is not None
    assert "\n".join(TRICKY.split("\n")[line - 1 :]).startswith(start)


def test_a_missing_key_is_placed_at_the_table_that_lacks_it():
    found = locate("[[datasets]]\nrepeats = 1\n\n[[datasets]]\nrepeats = 2\n")
    assert found.line(("datasets", 1, "path")) == 4
    assert found.line(("adapter",)) is None


def test_windows_line_ends_count_once():
    assert locate("a = 1\r\n[b]\r\nc = '''x\r\ny'''\r\nd = 2\r\n").line(("b", "d")) == 5


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("a = 1\nb = 2\na = 3", ("a",), 3),
        ("[t]\nx = 1\n[u]\n[t]\ny = 2", ("t",), 4),
        ("[d]\nx = 1\n[[d]]", ("d",), 3),
        ("[[d]]\nx = 1\n[d]", ("d",), 3),
        ("d = 1\n[[d]]\nx = 1", ("d",), 2),
        ("[[d]]\nx = 1\n[[d]]\nx = 2\nx = 3", ("d", 1, "x"), 5),
    ],
)
def test_a_repeated_key_is_found_at_its_second_place(text: str, path: KeyPath, line: int):
    assert locate(text).repeated == [(path, line)]


def test_a_table_may_be_written_after_its_sub_table():
    assert locate("[a.b]\nx = 1\n[a]\ny = 2\n").repeated == []


def random_value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(8 if depth else 5)
    if kind < 5:
        text = "".join(rng.choices("ab\"'\\\n\t#[]{}=,.é ", k=rng.randrange(8)))
        return [rng.randrange(-9, 9), rng.random(), True, text, text * 3][kind]
    if kind == 5:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return [random_table(rng, depth - 1) for _ in range(rng.randrange(1, 3))]
    return random_table(rng, depth - 1)


def random_table(rng: random.Random, depth: int) -> dict[str, Any]:
    keys = rng.sample(["a", "b-1", "c d", "e.f", "", "'", '"', "é", "\\"], rng.randrange(4))
    return {key: random_value(rng, depth) for key in keys}


def test_every_key_of_random_documents_is_found():
    rng = random.Random(7)
    for _ in range(200):
        text = tomlkit.dumps(random_table(rng, 3))
        assert set(locate(text).lines) == all_paths(tomllib.loads(text)), text
