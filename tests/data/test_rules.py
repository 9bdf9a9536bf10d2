"""Rules against Python's own evaluation of the same text, row by row; what is not a rule, by message."""

import numpy as np
import pytest

from ddl_plugin.data.rules import select
from ddl_plugin.errors import UserError, did_you_mean

COLUMNS = {
    "yaw": np.array([-50.0, -45, -9, 0, 10, 45, 60]),
    "pitch": np.array([0.0, 5, 10, -10, 20, 0, 1]),
    "race": np.array(["a", "b", "c", "a", "b", "c", "d"]),
    "frontal": np.array([False, False, True, True, True, False, False]),
}


def column(name):
    if name not in COLUMNS:
        raise UserError(f"table.csv: no column {name!r}{did_you_mean(name, COLUMNS)}")
    return COLUMNS[name]


@pytest.mark.parametrize(
    "rule",
    [
        "abs(yaw) > 45",
        "abs(yaw) >= 45",
        "yaw < -9 or yaw == 60",
        "-10 <= yaw < 45",
        "0 > yaw > -46 > -100",
        "not yaw < 0",
        "not (yaw < 0 or pitch > 5) and race != 'a'",
        "yaw < 0 and pitch > 1 or race == 'd'",
        "race in ['a', 'd']",
        "race not in ('a', 'd')",
        "yaw in [-9, 10.0, +60]",
        "yaw not in {0}",
        "'b' <= race < 'd'",
        "frontal",
        "frontal == True and not frontal == False",
        "frontal == (yaw > 0)",
        "(yaw + pitch * 2) / 4 - 1 > -yaw",
        "abs(yaw - 2 * -pitch) < 30 / 2 + .5",
        "pitch != 0 and True",
        "  yaw > 0  ",
        "yaw > 1e1",
    ],
)
def test_same_as_python(rule):
    rows = [
        dict(zip(COLUMNS, row, strict=True))
        for row in zip(*(c.tolist() for c in COLUMNS.values()), strict=True)
    ]
    expected = [bool(eval(rule.strip(), {"__builtins__": {"abs": abs}}, row)) for row in rows]
    result = select(rule, column)
    assert result.dtype == bool and result.tolist() == expected
    assert 0 < sum(expected) < len(expected), "the case shows nothing"


def test_division_by_zero_compares_as_in_floating_point():
    assert select("1 / pitch > 1000", column).tolist() == [True, False, False, False, False, True, False]
    assert not select("yaw > 1 / 0", column).any()


def test_columns_are_asked_for_once():
    asked = []

    def counted(name):
        asked.append(name)
        return column(name)

    select("yaw < 1 and yaw > -20 and pitch < yaw", counted)
    assert sorted(asked) == ["pitch", "yaw"]


def test_columns_are_left_as_they_are():
    before = {name: values.copy() for name, values in COLUMNS.items()}
    select("abs(yaw) > 5 and not frontal and race in ['a', 'b']", column)
    assert all(np.array_equal(before[name], COLUMNS[name]) for name in COLUMNS)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("abs(jaw) > 4", r"rule 'abs\(jaw\) > 4': table\.csv: no column 'jaw'; did you mean 'yaw'\?"),
        ("abs(yaw) >", r"expected an expression such as 'abs\(yaw\) > 45', got invalid syntax at character"),
        ("yaw = 4", r"expected an expression .* got invalid syntax.*=="),
        ("", r"expected an expression such as"),
        ("yaw > 4)", r"got unmatched '\)' at character 8"),
        ("yaw > 4; import os", r"got invalid syntax"),
        ("yaw > 4\nyaw < 2", r"got invalid syntax"),
        ("import os", r"got invalid syntax"),
        ("yaw\0 > 4", r"null"),
        ("__import__('os').system('true')", r"a call.* is not allowed; a rule has numbers"),
        ("max(yaw, 3) > 2", r"a call of max\(\) is not allowed"),
        ("yaw.any()", r"a call is not allowed"),
        ("yaw.size > 3", r"an attribute \(a dot after a name\) is not allowed"),
        ("yaw[0] > 3", r"an index in brackets is not allowed"),
        ("(lambda: yaw)", r"a lambda is not allowed"),
        ("yaw if frontal else pitch", r"an if-else is not allowed"),
        ("(x := yaw) > 1", r"an assignment is not allowed"),
        ("[y for y in yaw]", r"a comprehension is not allowed"),
        ("f'{yaw}' == 'a'", r"an f-string is not allowed"),
        ("yaw > 1, pitch > 1", r"a comma is not allowed"),
        ("(yaw > 1) & (pitch > 1)", r"'&' \(write 'and', with each side in parentheses\) is not allowed"),
        ("(yaw > 1) | (pitch > 1)", r"'\|' \(write 'or'"),
        ("~(yaw > 1)", r"'~' \(write 'not'\) is not allowed"),
        ("yaw ** 2 > 1", r"'\*\*' is not allowed"),
        ("yaw % 2 == 1", r"'%' is not allowed"),
        ("yaw is True", r"'is' \(write '=='\) is not allowed"),
        ("yaw == None", r"expected a number or a text in quotes, got None"),
        ("yaw == 1j", r"expected a number or a text in quotes, got 1j"),
        ("race == b'a'", r"expected a number or a text in quotes, got b'a'"),
        ("yaw > 1" + "0" * 400, r"expected a number below 1e308"),
        ("abs(yaw, 3) > 2", r"expected one value in abs\(\), got 2"),
        ("abs(x=yaw) > 2", r"a call of abs\(\) is not allowed|expected one value"),
        ("abs > 2", r"no column 'abs'"),
        ("yaw", r"a rule must compare, such as 'abs\(yaw\) > 45', got a number"),
        ("race", r"a rule must compare, .* got text"),
        ("45", r"a rule must compare"),
        ("1 < 2", r"expected the name of a column in it, got none"),
        ("yaw and frontal", r"expected a comparison beside 'and', got the column yaw, which is numbers"),
        ("frontal or 1", r"expected a comparison beside 'or', got the value 1"),
        ("not race", r"expected a comparison after 'not', got the column race, which is text such as 'a'"),
        (
            "race > 3",
            r"two numbers or two texts to compare, got the column race, which is text such as 'a' and the value 3",
        ),
        ("yaw == '45'", r"got the column yaw, which is numbers and the text '45'"),
        ("race in ['a', 3]", r"two numbers or two texts to compare"),
        ("yaw in [frontal < 'a']", r"expected numbers or texts in the list after 'in', got frontal < 'a'"),
        ("'a' in race", r"expected a list such as \[1, 2\] after 'in', got race"),
        ("yaw in []", r"expected a list such as \[1, 2\] after 'in', got \[\]"),
        ("race == ['a']", r"a list outside of 'in' is not allowed"),
        ("-race < 3", r"expected a number after '-', got the column race"),
        ("-frontal", r"expected a number after '-', got the column frontal, which is true or false"),
        ("abs(race) < 3", r"expected a number in abs\(\)"),
        ("yaw + race > 3", r"expected a number in 'yaw \+ race', got the column race"),
        ("(yaw > 1) + 1 > 1", r"expected a number in '\(yaw > 1\) \+ 1', got the value yaw > 1"),
    ],
)
def test_not_a_rule(rule, message):
    with pytest.raises(UserError, match=message) as caught:
        select(rule, column)
    assert "rule " in str(caught.value)
    if len(rule) < 100:
        assert repr(rule) in str(caught.value)


def test_column_with_one_cell_that_is_no_number():
    with pytest.raises(UserError, match=r"the column yaw, which is text such as 'n/a' and the value 3"):
        select("yaw > 3", lambda name: np.array(["1", "2.5", "n/a", "4"]))


@pytest.mark.parametrize(
    "rule",
    [
        "(" * 5000 + "yaw" + ")" * 5000 + " > 1",
        "not " * 50_000 + "frontal",
        "-" * 50_000 + "yaw > 1",
        "1+" * 20_000 + "yaw > 1",
    ],
)
def test_rules_nested_too_deeply(rule):
    with pytest.raises(UserError, match=r"nested|too many nested|complex"):
        select(rule, column)
