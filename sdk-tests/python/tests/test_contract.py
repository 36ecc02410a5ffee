"""Compares the server's OpenAPI document with the generated client in the official SDK.

The generated client is an independent description of the API.
"""

import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass

import httpx
import pytest
from e2b.api.client import api as operations_package
from e2b.api.client import models as models_package

from journeys import API_URL

# Statuses that the SDK handles and the server does not send yet, with the reason.
LATER = {
    ("POST", "/sandboxes/{}/connect"): {201: "nothing is paused, so nothing is resumed"},
    ("POST", "/v2/sandboxes/{}/connect"): {201: "nothing is paused, so nothing is resumed"},
}


@dataclass
class Operation:
    """Operation as described by the source of its module in the SDK."""

    method: str
    path: str
    parameters: set[str]
    request: type | None
    # By status; `None` if there is no body, or a body without a model.
    responses: dict[int, type | None]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def _model(name: str) -> type:
    return getattr(models_package, name)


def _operation(module) -> Operation:
    kwargs, parse = inspect.getsource(module._get_kwargs), inspect.getsource(module._parse_response)
    body = inspect.signature(module._get_kwargs).parameters.get("body")
    responses = {}
    for status, block in re.findall(r"status_code == (\d+):\n(.*?)(?=\n    if |\Z)", parse, re.DOTALL):
        found = re.search(r"(\w+)\.from_dict\(", block)
        responses[int(status)] = _model(found[1]) if found else None
    return Operation(
        method=re.search(r'"method": "(\w+)"', kwargs)[1].upper(),
        path=re.sub(r"\{[^}]*\}", "{}", re.search(r'"url": f?"([^"]+)"', kwargs)[1]),
        parameters=set(re.findall(r'(?:params|headers)\["([^"]+)"\]', kwargs)) - {"Content-Type"},
        request=body.annotation if body and inspect.isclass(body.annotation) else None,
        responses=responses,
    )


def _operations() -> list[Operation]:
    modules = pkgutil.walk_packages(operations_package.__path__, operations_package.__name__ + ".")
    return [_operation(importlib.import_module(module.name)) for module in modules if not module.ispkg]


@dataclass
class Member:
    required: bool
    # Models of its value.
    models: list[type]


def _members(model: type) -> dict[str, Member]:
    """Returns the members of a model by their names on the wire."""
    source = inspect.getsource(model.from_dict)
    members = {}
    for attribute, wire, default in re.findall(r'(?m)^ +_?(\w+) = .*?d\.pop\("([^"]+)"(, UNSET)?\)', source):
        annotation = str(model.__annotations__.get(attribute, ""))
        names = [name for name in re.findall(r"[A-Z]\w+", annotation) if hasattr(models_package, name)]
        models = [_model(name) for name in names if hasattr(_model(name), "from_dict")]
        members[wire] = Member(required=not default, models=models)
    return members


class Document:
    def __init__(self, json: dict):
        self.json = json
        paths = json["paths"].items()
        self.operations = {
            (method.upper(), re.sub(r"\{[^}]*\}", "{}", path)): operation
            for path, item in paths
            for method, operation in item.items()
        }

    def resolve(self, value: dict) -> dict:
        while "$ref" in value:
            found = self.json
            for part in value["$ref"].removeprefix("#/").split("/"):
                found = found[part]
            value = found
        return value

    def object(self, schema: dict) -> tuple[dict, set[str]]:
        """Returns members and required members of an object, of a list's items, or of a nullable object."""
        schema = self.resolve(schema)
        if schema.get("type") == "array":
            return self.object(schema["items"])
        members, required = dict(schema.get("properties", {})), set(schema.get("required", []))
        for part in [*schema.get("allOf", []), *schema.get("oneOf", [])]:
            more, more_required = self.object(part)
            members |= more
            required |= more_required
        return members, required

    def content(self, described: dict) -> dict | None:
        content = self.resolve(described).get("content", {})
        return content["application/json"]["schema"] if "application/json" in content else None


@pytest.fixture(scope="module")
def document() -> Document:
    return Document(httpx.get(f"{API_URL}/openapi.json").raise_for_status().json())


def _compare_answer(document: Document, model: type, schema: dict, where: str) -> None:
    members, required = document.object(schema)
    if not members:
        # A free-form object.
        return
    for name, member in _members(model).items():
        assert name in required or not member.required, f"{where}.{name} is optional, and the SDK requires it"
        for nested in member.models if name in members else []:
            _compare_answer(document, nested, members[name], f"{where}.{name}")


def _compare_request(document: Document, model: type, schema: dict, where: str) -> None:
    members, required = document.object(schema)
    if not members:
        return
    sent = _members(model)
    assert required <= {name for name, member in sent.items() if member.required}, f"{where} requires members that the SDK may omit"
    for name, member in sent.items():
        assert name in members, f"{where}.{name} is sent by the SDK and not in the document"
        for nested in member.models:
            _compare_request(document, nested, members[name], f"{where}.{name}")


def test_the_sdk_is_parsed_correctly() -> None:
    operations = {str(operation): operation for operation in _operations()}
    assert len(operations) > 40
    create = operations["POST /v2/sandboxes"]
    assert create.parameters == {"Idempotency-Key"} and create.request is models_package.NewSandboxV2
    assert create.responses[201] is models_package.Sandbox and create.responses[401] is models_package.Error
    members = _members(models_package.SandboxDetail)
    assert members["sandboxID"].required and not members["alias"].required
    assert members["lifecycle"].models == [models_package.SandboxLifecycle]


@pytest.mark.parametrize("operation", _operations(), ids=str)
def test_the_document_agrees_with_the_sdk(document: Document, operation: Operation) -> None:
    described_operation = document.operations[(operation.method, operation.path)]
    if described_operation.get("x-not-supported"):
        assert not [status for status in described_operation["responses"] if status < "400"]
        return
    responses = {int(status): response for status, response in described_operation["responses"].items()}
    expected = {status for status in operation.responses if status < 400}
    later = LATER.get((operation.method, operation.path), {}).keys()
    assert {status for status in responses if status < 400} == expected - later
    for status in expected - later:
        schema, model = document.content(responses[status]), operation.responses[status]
        assert model is None or schema is not None, f"{status} has no body, and the SDK expects one"
        if model is not None:
            _compare_answer(document, model, schema, str(status))
    for status, model in operation.responses.items():
        if status >= 400 and status in responses and model is not None:
            _compare_answer(document, model, document.content(responses[status]), str(status))
    described = {document.resolve(parameter)["name"] for parameter in described_operation.get("parameters", [])}
    assert operation.parameters <= described
    if operation.request is not None:
        _compare_request(document, operation.request, document.content(described_operation["requestBody"]), "body")
