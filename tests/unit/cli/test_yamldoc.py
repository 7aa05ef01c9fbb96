"""YAML is read as plain data, with the line of every value and without surprises."""

import pytest

from parallax_cli.yamldoc import MAX_DEPTH, MAX_VALUES, Mark, read_yaml


def data_of(text: str) -> object:
    node, problems = read_yaml(text)
    assert not problems
    assert node is not None
    return node.data()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("off", "off"),
        ("2001-01-01", "2001-01-01"),
        ("12:30:00", "12:30:00"),
        ("0o17", "0o17"),
        ("017", "017"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        (".inf", ".inf"),
        ("1e999", "1e999"),
        ("1" * 30, 1e29 * 10 / 9),
        ("12", 12),
        ("-3", -3),
        ("0.5", 0.5),
        ("1e-3", 0.001),
        ("true", True),
        ("null", None),
        ("~", None),
        ("'12'", "12"),
        ('"true"', "true"),
        ("|\n  a\n  b\n", "a\nb\n"),
    ],
)
def test_only_json_values_are_not_strings(text: str, value: object) -> None:
    if isinstance(value, float):
        value = pytest.approx(value)
    assert data_of(f"key: {text}") == {"key": value}


def test_places_are_those_of_keys_and_items() -> None:
    node, _ = read_yaml("name: x\nlist:\n  - a\n  - {b: 1, c: 2}\n")
    assert node is not None
    assert node.place([]) == Mark(1, 1)
    assert node.place(["name"]) == Mark(1, 1)
    assert node.place(["list", "0"]) == Mark(3, 5)
    assert node.place(["list", "1", "c"]) == Mark(4, 12)
    assert node.place(["list", "1", "absent"]) == Mark(4, 5)
    assert node.place(["list", "9"]) == Mark(2, 1)


@pytest.mark.parametrize(
    ("text", "mark", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", Mark(3, 1), "key 'a' was already given on line 1"),
        ("a: !!python/object:os.system {}\n", Mark(1, 4), "tag 'tag:yaml.org,2002:python/object:os.system' is not"),
        ("a: !!timestamp 2001-01-01\n", Mark(1, 4), "tag 'tag:yaml.org,2002:timestamp' is not allowed"),
        ("a: *nowhere\n", Mark(1, 4), "unknown alias *nowhere"),
        ("a: &x [*x]\n", Mark(1, 8), "alias *x contains itself"),
        ("[1]: 2\n", Mark(1, 1), "a key must be plain text"),
        ("&k a: 1\n? *k\n: 2\n", Mark(2, 3), "alias"),
        ("a: 1\n---\nb: 2\n", Mark(2, 1), "a second document starts here; one file holds one job"),
        ("a: [1, 2\nb: 3\n", Mark(2, 2), "is not YAML"),
        ("a: \x07\n", Mark(1, 1), "is not YAML"),
        ("", Mark(1, 1), "is empty"),
        ("[" * (MAX_DEPTH + 1), Mark(1, MAX_DEPTH + 1), f"is nested deeper than {MAX_DEPTH} levels"),
    ],
)
def test_what_is_refused(text: str, mark: Mark, message: str) -> None:
    _, problems = read_yaml(text)
    assert [problem.mark for problem in problems] == [mark]
    assert message in problems[0].message


def test_a_small_file_cannot_unfold_into_a_huge_one() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    node, problems = read_yaml("\n".join(lines))
    assert node is None
    assert str(MAX_VALUES) in problems[0].message


def test_aliases_within_bounds_are_values() -> None:
    assert data_of("a: &x {b: [1]}\nc: *x\n") == {"a": {"b": [1]}, "c": {"b": [1]}}
