"""Reading files into frozen records: strict keys, strict types, errors that name path, value and remedy."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from simulator.errors import InputError
from simulator.units import one_line, shortened

RecordT = TypeVar("RecordT", bound="Record")


class Record(BaseModel):
    """A frozen noun that can be written to a file and read back; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class YAMLFault(Exception):  # noqa: N818 - it never reaches the user under this name
    """Text that cannot be read as YAML; says why, and whoever knows where the text came from says where."""


_LARGEST = 100_000  # values in one YAML file
_DEEPEST = 50  # levels of nesting in one YAML file
_ENDLESS = "too large, nested too deeply, or it refers to itself without end; write the values out"


class StrictLoader(yaml.CSafeLoader):
    """YAML's safe loader, which also refuses a key given twice in one mapping, and keeps dates as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own table, read only
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping.

        Raises:
            YAMLFault: a key stands twice.
        """
        seen: set[object] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    line = key_node.start_mark.line + 1
                    raise YAMLFault(f"line {line}: the key {key_node.value!r} is given twice; keep one")
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        InputError: it does not exist, is a folder, or is not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a text file"
        raise InputError(one_line(f"{path}: cannot be read ({reason.lower()})")) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        InputError: unreadable, not YAML, or not a mapping.
    """
    try:
        return _mapping(parse_yaml(read_text(path)), path)
    except YAMLFault as fault:
        raise InputError(one_line(f"{path}: {fault}")) from None


def parse_yaml(text: str) -> Any:
    """Read YAML text as plain data in which no two places are the same object, so that one can be changed.

    Raises:
        YAMLFault: not YAML, a key given twice, or aliases that never end.
    """
    try:
        _check_depth(text)
        return _unshared(yaml.load(text, Loader=StrictLoader), 0, itertools.count())  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError) as error:
        raise YAMLFault(f"not valid YAML ({_first_line(error)})") from None


def _check_depth(text: str) -> None:
    """Refuse deep nesting before it is composed: the C composer descends without Python's recursion limit."""
    depth = 0
    for event in yaml.parse(text, Loader=StrictLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise YAMLFault(_ENDLESS)


def _unshared(node: Any, depth: int, serial: Iterator[int]) -> Any:
    if depth > _DEEPEST or next(serial) > _LARGEST:
        raise YAMLFault(_ENDLESS)
    if isinstance(node, dict):
        return {key: _unshared(value, depth + 1, serial) for key, value in node.items()}
    if isinstance(node, list):
        return [_unshared(value, depth + 1, serial) for value in node]
    return node


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Raises:
        InputError: unreadable, not JSON, or not an object.
    """
    text = read_text(path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(one_line(f"{path}: not valid JSON ({_first_line(error)})")) from None
    return _mapping(data, path)


def _first_line(error: Exception) -> str:
    return one_line(str(error)) or type(error).__name__


def _mapping(data: object, path: Path) -> dict[str, Any]:
    if not isinstance(data, dict) or not data:
        kind = "empty" if not data else f"a {type(data).__name__}"
        raise InputError(one_line(f"{path}: expected keys with values at the top level; the file is {kind}"))
    return data


def decode(record: type[RecordT], data: object, where: str) -> RecordT:
    """Build a record from plain data; ``where`` names the data in errors.

    Raises:
        InputError: the first fault found, as one line ``where.path: what is wrong``, and how many more.
    """
    try:
        return record.model_validate(data)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        first = faults[0]
        path = ".".join([where, *(str(part) for part in first["loc"] if part != "[key]")])
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise InputError(one_line(f"{path}: {_explain(record, first)}{more}")) from None


def _explain(record: type[BaseModel], fault: Any) -> str:
    kind, value = fault["type"], fault.get("input")
    if kind == "extra_forbidden":
        key = str(fault["loc"][-1])
        known = _keys_at(record, fault["loc"][:-1])
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key; {hint}"
    if kind == "missing":
        return "this key is missing; add it"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return message
    return f"{message[:1].lower()}{message[1:]}; got {shortened(value)}"


def _keys_at(record: type[BaseModel], location: tuple[object, ...]) -> list[str]:
    """List the keys of the record that lies at a path below another one."""
    current: type[BaseModel] = record
    for part in location:
        field = current.model_fields.get(str(part))
        if field is None:  # the key of a dictionary of records: its record was found one step before
            continue
        inner = _record_in(field.annotation)
        if inner is not None:
            current = inner
    return list(current.model_fields)


def _record_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _record_in(argument)
        if found is not None:
            return found
    return None
