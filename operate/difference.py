"""How a resource's inputs differ, in lines for people: values by their path, a script by its assignments."""

from __future__ import annotations

import difflib
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from operate.cli import SPECIAL

UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"  # the engine's word for a string that only `up` will know
KNOWN_AT_UP = "(known at up)"
NONE = "(none)"
MASKED = "[secret]"
LONGEST = 60  # characters of a value
FEW = 3  # values of an item, from which it is shown as a whole
MOST = 8  # lines of one value: a preview fits a screen

State = dict[str, Any]  # of a resource, in the engine's words: type, parent, inputs, outputs


@dataclass(frozen=True)
class Difference:
    """lines: of the values that differ. unknown: paths of the values that only `up` will know."""

    lines: list[str] = field(default_factory=list[str])
    unknown: list[str] = field(default_factory=list[str])

    @property
    def perhaps(self) -> bool:
        """Whether `up` may find that nothing differs."""
        return bool(self.unknown) and not self.lines


@dataclass(frozen=True)
class Step:
    """What the engine does to a resource: its operation (create, update, replace, delete, same), and the resource's
    state before and after. differs: paths of the inputs that differ, as the engine says, secret ones too."""

    op: str
    old: State
    new: State
    differs: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        return self.new or self.old

    @property
    def kind(self) -> str:
        """Type of the resource: "kubernetes:apps/v1:StatefulSet"."""
        return str(self.state.get("type", ""))

    @cached_property
    def difference(self) -> Difference:
        """Of the inputs of a resource that was there before and stays."""
        if self.op not in ("update", "replace"):
            return Difference()
        return between(self.old.get("inputs") or {}, self.new.get("inputs") or {}, self.differs)


def between(old: Any, new: Any, differs: Iterable[str] = ()) -> Difference:
    """Of two values, such as the inputs of a resource. differs: paths that differ, secret ones too."""
    before, after = dict(flat(old)), dict(flat(new))
    unknown = [p for p in before.keys() | after.keys() if KNOWN_AT_UP in (before.get(p), after.get(p))]
    known = [
        p
        for p in before.keys() | after.keys()
        if p not in unknown and not any(_is_below(p, above) for above in unknown)
    ]
    items = dict.fromkeys(_items(after, before), "added") | dict.fromkeys(_items(before, after), "removed")
    values = {path for path in known if not any(_is_below(path, item) for item in items)}
    lines: list[str] = []
    for path in sorted(values | items.keys(), key=by_number):
        if path in items:
            lines.append(f"{path}: {items[path]}")
        else:
            lines += _lines(path, before.get(path, NONE), after.get(path, NONE))
    lines += [f"{path}: changed (secret)" for path in differs if before.get(path) == after.get(path) == MASKED]
    return Difference(lines, sorted(p for p in unknown if before.get(p) != after.get(p)))


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every value with its path, as "spec.replicas"."""
    if isinstance(value, dict) and SPECIAL in value:
        yield path, MASKED
    elif isinstance(value, dict):
        for key, below in cast(dict[str, Any], value).items():
            yield from flat(below, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        items = cast(list[Any], value)
        for label, below in zip(_labels(items), items, strict=True):
            yield from flat(below, f"{path}[{label}]")
    elif value is not None:
        # a step that compares clocks is told the time: no difference between two previews
        yield path, KNOWN_AT_UP if value == UNKNOWN else re.sub(r"\bNOW=\d+", "NOW=…", str(value))


def _labels(items: list[Any]) -> list[Any]:
    """What the items of a list are called: by name where each has one of its own, so that none seems another one where
    one before it is gone."""
    for key in ("name", "ordinal"):
        names = [cast(dict[str, Any], item).get(key) if isinstance(item, dict) else None for item in items]
        if None not in names and len(set(map(str, names))) == len(names):
            return names
    return list(range(len(items)))


def _items(here: Iterable[str], there: Iterable[str]) -> set[str]:
    """Paths of the items of lists, of some values each, that only one side has: they are one line."""

    def items(path: str) -> list[str]:
        return [path[: end.start() + 1] for end in re.finditer(r"\]\.", path)]

    known = {item for path in there for item in items(path)}
    counts = Counter(next((item for item in items(path) if item not in known), "") for path in here)
    return {item for item, count in counts.items() if item and count >= FEW}


def by_number(path: str) -> list[tuple[bool, int | str]]:
    """To sort by: "disk-9" comes before "disk-10"."""
    return [(part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", path)]


def _is_below(path: str, above: str) -> bool:
    return path.startswith((f"{above}.", f"{above}["))


def _lines(path: str, a: str, b: str) -> list[str]:
    """Of one value, "spec.replicas: 3 → 24"; a long one only where it differs."""
    if a == b:
        return []
    if "\n" not in a + b:
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        return [f"{path}: {_around(a, same)} → {_around(b, same)}"]
    if path == "stdin" and NONE not in (a, b):
        return list(_script(a, b))
    with_paths = _json(path, a, b)
    if with_paths is not None:
        more = len(with_paths) - MOST
        return with_paths if more <= 0 else [*with_paths[:MOST], f"… and {more} more values of {path}"]
    found = _changed_lines(a, b)
    if len(found) > MOST:
        return [f"{path}: {len(found)} lines differ"]
    return [f"{path}:", *(f"  {line[:120]}" for line in found)]


def _around(value: str, at: int) -> str:
    start = 0 if len(value) <= LONGEST else max(0, at - LONGEST // 3)
    end = start + LONGEST
    return ("…" if start else "") + value[start:end] + ("…" if end < len(value) else "")


def _json(path: str, a: str, b: str) -> list[str] | None:
    """None where one of the two is no JSON."""
    try:
        return between({path: json.loads(a)}, {path: json.loads(b)}).lines
    except ValueError:
        return None


def _changed_lines(a: str, b: str) -> list[str]:
    found = list(difflib.unified_diff(a.splitlines(), b.splitlines(), n=0, lineterm=""))[2:]
    return [line for line in found if not line.startswith("@@")]


def _script(a: str, b: str) -> Iterator[str]:
    """Of two steps' stdin, as components/hosts.py writes it: the values that differ, and how many lines of the rest."""
    (before, old), (after, new) = assignments(a), assignments(b)
    for key in sorted(before.keys() | after.keys()):
        yield from _lines(key, before.get(key, NONE), after.get(key, NONE))
    if old != new:
        yield f"script changed: {len(_changed_lines(old, new))} lines"


def assignments(script: str) -> tuple[dict[str, str], str]:
    """The quoted assignments at the start of a script, also of one that it keeps whole in TEXT; the rest of it."""
    found: dict[str, str] = {}
    at = 0
    while name := re.compile(r"([A-Z][A-Z0-9_]*)=").match(script, at):
        reading = io.StringIO(script[name.end() :])
        words = shlex.shlex(reading, posix=True)
        words.whitespace_split, words.commenters, words.whitespace = True, "", "\n"
        # an empty value is a newline at once: shlex would take the next line's word
        empty = script[name.end() : name.end() + 1] == "\n"
        try:
            found[name[1]] = "" if empty else words.get_token() or ""
        except ValueError:  # a quote that never ends: no step of ours
            break
        at = name.end() + (1 if empty else reading.tell())
    rest = script[at:]
    if "TEXT" in found:
        inner, kept = assignments(found.pop("TEXT"))
        return found | inner, kept + rest
    return found, rest
