"""Load a stack's config: from the text that Pulumi gives to Settings, or to a ConfigError with every broken rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from settings import rules, schema
from settings.models import CONFIG_VERSION, NAMESPACE, Settings
from settings.qos import BadLimit
from settings.rules import Problem, put, remove


class ConfigError(ValueError):
    """The config breaks rules. problems: a line for each, with key, value, rule and remedy."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(
            "the stack's config cannot be used; nothing was started:\n" + "\n".join(f"  - {p}" for p in problems)
        )


def load(
    raw: Mapping[str, str],
    *,
    cpus: int | None = None,
    preview: bool = False,
    is_secret: Callable[[str], bool] = lambda key: True,
) -> Settings:
    """Return the settings of a stack. Raises ConfigError with every broken rule at once.

    raw: the stack's config, full key -> text as Pulumi gives it (JSON for structures); other namespaces are ignored.
    cpus: number of CPUs of this machine; None: unknown.
    preview: no machine will be reached, so private SSH keys may be missing.
    is_secret: whether the stack's file keeps the value of a full key, or a part of it, encrypted.
    """
    values = {
        key.removeprefix(f"{NAMESPACE}:"): _parse(text) for key, text in raw.items() if key.startswith(f"{NAMESPACE}:")
    }
    version = values.get("configVersion")
    if isinstance(version, int) and version > CONFIG_VERSION:  # its other keys may be unknown here
        rule = f"is newer than this checkout, which knows version {CONFIG_VERSION}"
        raise ConfigError([str(Problem("configVersion", version, rule, "git pull && make setup"))])
    machines = values.get("machines")
    if isinstance(machines, dict):
        cast(dict[str, Any], machines).setdefault("kind", "containers")
    problems: list[Problem] = []
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        problems += map(_explain, found)
        settings = _mended(values, found)
    if settings:
        problems += rules.broken(settings, cpus, preview=preview, secret=is_secret(f"{NAMESPACE}:machines"))
    if problems or not settings:
        raise ConfigError([str(problem) for problem in problems])
    return settings


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _explain(item: ErrorDetails) -> Problem:
    place = _place(item)
    key, node = _key(place), schema.at(place)
    if item["type"] == "extra_forbidden":
        known = list[str](schema.at(place[:-1]).get("properties", ()))
        near = get_close_matches(str(place[-1]), known, n=1)
        also = f" (did you mean {NAMESPACE}:{_key((*place[:-1], *near))}?)" if near else ""
        return Problem(key, None, f"there is no such key in this version{also}", remove(key))
    if item["type"] == "missing":
        return Problem(key, None, "is required", _mend(place, missing=True))
    # A structure, a list of them, or a value where one should be, may hold a private key: do not show it.
    of = schema.resolve(node.get("items", node))
    hidden = "type" not in of or of["type"] == "object" or place[-1] in schema.SECRETS
    value = item["input"]
    if item["type"] == "union_tag_invalid":
        value, hidden = value["kind"], False
    rule = item["msg"].removeprefix("Value error, ") if item["type"] == "value_error" else schema.rule(node)
    wrong = item.get("ctx", {}).get("error")
    mend = put(key, wrong.instead) if isinstance(wrong, BadLimit) and wrong.instead else _mend(place)
    return Problem(key, HIDDEN if hidden else value, rule, mend)


HIDDEN = "(hidden)"


def _mend(place: Place, *, missing: bool = False) -> str:
    """The command that corrects the value at `place`: it sets the default, or an example where there is no default.

    missing: the key is required and absent; for a structure, the command sets each of its required keys.
    """
    key, node = _key(place), schema.at(place)
    if missing and "properties" in node:
        return " && ".join(_mend((*place, name), missing=True) for name in node.get("required", ()))
    if place[-1] in KEYS:
        return put(key, "")
    default = node.get("default")
    # Not for booleans: `pulumi config set KEY true` keeps a text if the old value was text. Removing the key works.
    if isinstance(default, (str, int)) and not isinstance(default, bool):
        return put(key, default)
    if isinstance(place[-1], int) and "properties" in node:
        return remove(key)
    if missing or isinstance(place[-1], int) or ("properties" not in node and _required(place)):
        return put(key, next(iter(node.get("examples", ())), "…"))
    return remove(key)


KEYS = ("hostKey", "privateKey")  # `put` reads them from the host or a file


def _required(place: Place) -> bool:
    return place[-1] in schema.at(place[:-1]).get("required", ())


Place = tuple[str | int, ...]
"""Where a value is in the models: a `loc` of a pydantic error. It includes the kind of the machines, a key does not."""


def _place(item: ErrorDetails) -> Place:
    return (*item["loc"], "kind") if item["type"] == "union_tag_invalid" else item["loc"]


def _keys(place: Place) -> Place:
    """`place` as keys of the config, without the kind."""
    return tuple(part for i, part in enumerate(place) if "discriminator" not in schema.at(place[:i]) or part == "kind")


def _key(place: Place) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in _keys(place)).lstrip(".")


def _mended(values: dict[str, Any], found: list[ErrorDetails]) -> Settings | None:
    """Settings of `values` without the wrong ones, so that rules over several keys can be checked in the same run.

    None if a required key is missing.
    """
    for item in found:
        place = list(_keys(_place(item)))
        while isinstance(place[-1], int):  # a wrong item takes its whole list along
            place.pop()
        *outer, last = place
        if last in ("storage", "vms", "worker1", "worker2"):  # rules would say that they are missing
            return None
        inside: Any = values
        for part in outer:
            inside = inside[part] if isinstance(part, int) else inside.get(part, {})
        inside.pop(last, None)
    try:
        return Settings.model_validate(values)
    except ValidationError:
        return None
