"""What the coverage table says is what the export does, operator by operator, against MXNet."""

import dataclasses
import json

import numpy as np
import pytest
from export_cases import CASES, both_of, embedded

from ddl_plugin.export.coverage import coverage_table
from ddl_plugin.export.ops import OPERATORS
from ddl_plugin.mxnet_setup import mx

TEXTS = {case: embedded(body).tojson() for case, body in CASES.items()}
ALSO_NEEDED = {"_contrib_SyncBatchNorm": {"key": "0"}}


def operators_of(text):
    return [node["op"] for node in json.loads(text)["nodes"]]


def cases_under(name):
    """(case, its JSON) of every case with an operator that is converted as `name` is, under that name."""
    for case, text in TEXTS.items():
        content = json.loads(text)
        alike = [node for node in content["nodes"] if OPERATORS.get(node["op"]) == OPERATORS[name]]
        if name in operators_of(text) or not alike:
            continue
        for node in alike:
            node["op"] = name
            node["attrs"] = {**node.get("attrs", {}), **ALSO_NEEDED.get(name, {})}
        yield case, json.dumps(content)


@pytest.fixture
def written(monkeypatch):
    """{MXNet operator: ONNX operators that were written for it} of whatever is converted."""
    found = {}

    def watched(name, operator):
        def convert(build, node, inputs):
            before = len(build.nodes)
            result = operator.convert(build, node, inputs)
            found.setdefault(name, set()).update(added.op_type for added in build.nodes[before:])
            return result

        return dataclasses.replace(operator, convert=convert)

    for name, operator in OPERATORS.items():
        monkeypatch.setitem(OPERATORS, name, watched(name, operator))
    return found


CANONICAL = {name for text in TEXTS.values() for name in operators_of(text)} - {"null"}


def test_every_operator_that_mxnet_writes_has_a_case():
    """The cases are compared with MXNet in test_convert; other names of the same operators are compared below."""
    alike = {name for name in OPERATORS for other in CANONICAL if OPERATORS[other] == OPERATORS[name]}
    assert alike == set(OPERATORS)


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - CANONICAL))
def test_other_names_of_an_operator_equal_mxnet(name):
    """Old symbols have them: `_Plus`, `_MinusScalar`. MXNet itself says what each means."""
    compared = 0
    for case, text in cases_under(name):
        try:
            expected, found, _ = both_of(text)
        except mx.base.MXNetError:  # it takes fewer shapes or attributes than its sibling
            continue
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=case)
        compared += 1
    assert compared


def test_the_table_names_exactly_what_is_written(written):
    for text in TEXTS.values():
        both_of(text)
    assert {name: set(OPERATORS[name].becomes) for name in written} == written


def test_every_operator_stands_in_the_table_once():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in coverage_table().splitlines()[2:]
    ]
    assert sorted(name for row in rows for name in row[0].split(", ")) == sorted(OPERATORS)
    for names, becomes, takes in rows:
        for name in names.split(", "):
            assert becomes == (", ".join(OPERATORS[name].becomes) or "nothing: falls away")
            assert takes == (OPERATORS[name].takes or "always")
