"""How a mistyped name is answered."""

from ddl_plugin.errors import did_you_mean


def test_the_nearest_name_or_else_all_of_them():
    assert did_you_mean("max_step", ["lr", "max_steps"]) == "; did you mean 'max_steps'?"
    assert did_you_mean("zzz", ["lr", "max_steps", "b"]) == "; known: b, lr, max_steps"
    assert did_you_mean("m", []) == "; known: none"


def test_what_is_no_text_is_answered_too():
    assert did_you_mean(("kl",), ["kl", "js"]) == "; known: js, kl"
    assert did_you_mean(None, iter(["js"])) == "; known: js"
