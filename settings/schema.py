"""The config's keys as JSON Schema for editors, as a page for readers, and their rules in words for error messages.

usage: python -m settings.schema      writes docs/config.schema.json and docs/config.md
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from settings import models as definitions
from settings.models import NAMESPACE, Model, Settings
from settings.way import Way

Node = Mapping[str, Any]
DOCS = Path(__file__).parent.parent / "docs"
SECRETS = ("privateKey",)
CHANGES = "x-changes"  # of a key: its way


@cache
def models() -> Node:
    """JSON Schema of the models, without the noise that pydantic adds: titles, null, defaults of whole models."""
    made = Settings.model_json_schema()
    for name, meanings in _meanings().items():
        if name not in (*made["$defs"], Settings.__name__):  # others have its fields
            continue
        properties = (made["$defs"].get(name) or made)["properties"]
        model: type[Model] = getattr(definitions, name)
        for field, meaning in meanings.items():
            properties[model.model_fields[field].alias]["description"] = meaning
        for key, way in _ways(model).items():
            properties[key][CHANGES] = way.value
    return cast(Node, _plain(made))


def _ways(model: type[Model]) -> dict[str, Way]:
    """Key -> what its change interrupts."""
    fields = model.model_fields.values()
    return {str(field.alias): way for field in fields for way in field.metadata if isinstance(way, Way)}


def _meanings() -> dict[str, dict[str, str]]:
    """Model -> field -> the docstring below the field.

    pydantic can read these docstrings too (use_attribute_docstrings), but does so at every import, in 0.1 s.
    """
    found: dict[str, dict[str, str]] = {}
    for model in ast.parse(Path(definitions.__file__).read_text()).body:
        if not isinstance(model, ast.ClassDef) or model.name == Model.__name__:
            continue
        meanings: dict[str, str] = {}
        for base in model.bases:
            meanings |= found.get(base.id, {}) if isinstance(base, ast.Name) else {}
        for field, doc in pairwise(model.body):
            match field, doc:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                    meanings[name] = " ".join(meaning.split())
                case _:
                    pass
        found[model.name] = meanings
    return found


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(n) for n in cast(list[Any], node)]
    if not isinstance(node, dict):
        return node
    plain = {k: _plain(v) for k, v in cast(dict[str, Any], node).items()}
    if isinstance(plain.get("title"), str):
        del plain["title"]
    if isinstance(plain.get("default", 0), dict | None):
        del plain["default"]
    choices = [n for n in plain.get("anyOf", []) if n != {"type": "null"}]
    if len(choices) == 1:
        del plain["anyOf"]
        plain = {**choices[0], **plain}
    return plain


def resolve(node: Node) -> Node:
    """`node`, or the definition that its `$ref` names."""
    if "$ref" not in node:
        return node
    return models()["$defs"][node["$ref"].rpartition("/")[2]]


def at(path: Sequence[str | int]) -> Node:
    """The schema of the key at `path`; {} if there is none.

    `path` is a `loc` of a pydantic error: below a choice of models comes the tag of the chosen one.
    """
    node = resolve(models())
    for part in path:
        if isinstance(part, int):
            node = node.get("items", {})
        elif choice := node.get("discriminator"):
            kinds = choice["mapping"]
            node = (
                {"$ref": kinds[part]}
                if part in kinds
                else {"type": "string", "enum": list(kinds), "default": next(iter(kinds))}
            )
        else:
            node = cast(Node, node.get("properties", {}).get(part) or node.get("additionalProperties") or {})
        node = resolve(node)
    return node


def rule(node: Node) -> str:
    """The rule that a value of `node` must keep, in words: "must be …"."""
    if "patternErrorMessage" in node:
        return node["patternErrorMessage"]
    if choice := node.get("enum") or ([node["const"]] if "const" in node else []):
        words = [json.dumps(value).strip('"') for value in choice]
        return f"must be {' or '.join(filter(None, [', '.join(words[:-1]), words[-1]]))}"
    match node.get("type"):
        case "integer":
            last = f" to {node['maximum']}" if "maximum" in node else " upwards"
            return (
                f"must be a whole number from {node['minimum']}{last}"
                if "minimum" in node
                else "must be a whole number"
            )
        case "boolean":
            return "must be true or false"
        case "string":
            return f"must be text like {node['pattern']}" if "pattern" in node else "must be text"
        case "array":
            return "must be a list"
        case "object" if node.get("additionalProperties"):
            return f"must be a map: {rule(node['additionalProperties']).removeprefix('must be ')} for each name"
        case _:
            return "must be a map of keys"


# --- for editors -----------------------------------------------------------------------------------------------------


def stack_file() -> Node:
    """JSON Schema of a stack's file, Pulumi.*.yaml. Pulumi writes a top-level number as text, and a secret as a map."""
    schema = cast(dict[str, Any], json.loads(json.dumps(models())))
    for node in (n for model in (schema, *schema["$defs"].values()) for n in model["properties"].values()):
        if CHANGES in node:  # editors show the description alone
            words = [node.get("description"), f"A change is {node[CHANGES]}: {Way(node[CHANGES]).meaning}."]
            node["description"] = " ".join(filter(None, words))
    for definition in schema["$defs"].values():
        for name, node in definition["properties"].items():
            if name in SECRETS:
                secure = {"type": "object", "properties": {"secure": {"type": "string"}}, "required": ["secure"]}
                definition["properties"][name] = {"anyOf": [node, {**secure, "additionalProperties": False}]}
    keys = schema["properties"]
    for name, node in keys.items():
        if node.get("type") == "integer":
            words = {k: node.pop(k) for k in ("default", "description", CHANGES)}
            text = {"type": "string", "pattern": "^[1-9][0-9]*$", "patternErrorMessage": rule(node)}
            keys[name] = {**words, "anyOf": [node, text]}
    config = {
        "type": "object",
        "properties": {f"{NAMESPACE}:{name}": node for name, node in keys.items()},
        "patternProperties": {f"^(?!{NAMESPACE}:)": True},
        "additionalProperties": False,
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Stack config of spdk-k8s",
        "description": "Written by python -m settings.schema.",
        "type": "object",
        "properties": {"config": config},
        "$defs": schema["$defs"],
    }


# --- for readers -----------------------------------------------------------------------------------------------------

PAGE = """\
# Stack config

`python -m settings.schema` writes this page from [settings/models.py](../settings/models.py). Change the models, not \
this page.

Set a key with `pulumi config set numinst 5`. Add `--path` if its name has a dot: \
`pulumi config set --path vm.vcpus 4`. `pulumi config rm` restores the default.

A preview or `up` checks the whole config before it starts anything. It reports every error at once, each with the \
command that corrects it. Rules over several keys are in [settings/rules.py](../settings/rules.py). Editors that \
support YAML schemas complete and check `Pulumi.*.yaml` with [config.schema.json](config.schema.json).

What a change interrupts while the stack is up, at most:

| change | what happens |
| --- | --- |
WAYS
A change of several keys interrupts what the most severe of them does. A value that does not fit what runs is refused \
before anything changes: a port that another pod has, another size than that of the disk files, another place for an \
instance. These rules are in [settings/changes.py](../settings/changes.py).
""".replace("WAYS\n", "".join(f"| {way.value} | {way.meaning} |\n" for way in Way) + "\n")


def page() -> str:
    """The text of docs/config.md: a table for each model."""
    whole = models()["properties"]
    plain = [_row(name, node, required=False) for name, node in whole.items() if not {"$ref", "oneOf"} & node.keys()]
    sections = [PAGE, *_TABLE, *plain]
    for name, node in whole.items():
        choices = [resolve(choice) for choice in node.get("oneOf", [node])]
        for model in choices:
            if "properties" in model:
                kind = f" of kind {model['properties']['kind']['const']}" if len(choices) > 1 else ""
                sections += [f"\n## {name}{kind}\n\n{model['description']}\n", *_TABLE, *_rows(f"{name}.", model)]
    return "\n".join(sections) + "\n"


_TABLE = ["| key | default | value | change | meaning |", "| --- | --- | --- | --- | --- |"]


def _rows(prefix: str, model: Node) -> Iterator[str]:
    for name, node in model["properties"].items():
        found = resolve(node)
        items = resolve(found.get("items", {}))
        if "properties" in found:
            yield from _rows(f"{prefix}{name}.", found)
        elif "properties" in items:
            yield from _rows(f"{prefix}{name}[].", items)
        else:
            yield _row(prefix + name, found, required=name in model.get("required", ()))


def _row(key: str, node: Node, *, required: bool) -> str:
    value = node.get("default")
    default = "none" if value in (None, "", []) else f"`{value if isinstance(value, str) else json.dumps(value)}`"
    words = rule(node).removeprefix("must be ")
    cells = (f"`{key}`", "required" if required else default, words, node.get(CHANGES, ""), node.get("description", ""))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


FILES = {"config.schema.json": lambda: json.dumps(stack_file(), indent=1, ensure_ascii=False) + "\n", "config.md": page}


def main() -> None:
    for name, make in FILES.items():
        (DOCS / name).write_text(make())


if __name__ == "__main__":
    main()
