"""Guards from operators that devices cannot run, or that answer differently each time."""

from pathlib import Path

import onnx
import pytest
from onnx import helper

from fleet_server.releases import limits, operators
from fleet_server.releases.states import Refusal

DOCUMENT = Path(__file__).parents[3] / "docs" / "reference" / "operators.md"


def _check(operator: str, domain: str = "", functions: tuple[onnx.FunctionProto, ...] = ()) -> None:
    operators.check([helper.make_node(operator, ["x"], ["y"], domain=domain)], functions)


@pytest.mark.parametrize(
    ("operator", "domain"),
    [
        *(("RandomNormal", ""), ("Bernoulli", ""), ("Multinomial", ""), ("ImageDecoder", "")),
        *(("StringNormalizer", ""), ("TfIdfVectorizer", ""), ("ZipMap", "ai.onnx.ml")),
        *(("Gemm", "ai.onnx.ml"), ("Adam", "ai.onnx.preview.training"), ("Gelu", "com.microsoft")),
        *(("Invented", ""), ("", "")),
    ],
)
def test_operator_that_is_not_on_the_list(operator: str, domain: str) -> None:
    with pytest.raises(Refusal) as caught:
        _check(operator, domain)
    problem = caught.value.problem
    assert (problem.gate, problem.code) == ("examination", "operator_not_allowed")
    assert operator in problem.detail


def test_function_of_the_model_itself() -> None:
    body = [helper.make_node("Relu", ["x"], ["y"])]
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "Twist", ["x"], ["y"], body, opsets)
    _check("Twist", "own", (function,))
    with pytest.raises(Refusal):
        _check("Turn", "own", (function,))
    posing = helper.make_function("", "RandomNormal", ["x"], ["y"], body, opsets)
    with pytest.raises(Refusal):
        _check("RandomNormal", "", (posing,))


def test_all_that_are_allowed_exist() -> None:
    known = {(item.domain, item.name) for item in onnx.defs.get_all_schemas_with_history()}
    for domain in ("", "ai.onnx.ml"):
        assert {name for name in operators.ALLOWED[domain] if (domain, name) not in known} == set()
    assert limits.OPSET >= 26


def test_document_lists_what_is_allowed() -> None:
    text = DOCUMENT.read_text()
    said = [set(part.split("`")[1::2]) for part in text.split("\n## ")[1:3]]
    assert said == [set(operators.ONNX), set(operators.ONNX_ML)]
