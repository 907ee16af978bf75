"""Reading machines: shipped profiles, files of the user's, and overrides of single figures."""

from __future__ import annotations

import copy
import difflib
from importlib import resources
from pathlib import Path
from typing import Any

from simulator.errors import InputError
from simulator.hardware import HardwareProfile
from simulator.schema import YAMLFault, decode, parse_yaml, read_yaml
from simulator.units import one_line, shortened


def shipped_profiles() -> list[str]:
    """List the names of the profiles that come with the package."""
    folder = resources.files("hardware_profiles")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def find_profile(name: str) -> Path:
    """Find a profile by path, or by the name of a shipped one, with or without ``.yaml``.

    Raises:
        InputError: neither a file nor a shipped profile.
    """
    if _is_file(name):
        return Path(name)
    stem = name.removesuffix(".yaml")
    known = shipped_profiles()
    if stem in known:
        return Path(str(resources.files("hardware_profiles").joinpath(f"{stem}.yaml")))
    near = difflib.get_close_matches(stem, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"shipped profiles: {', '.join(known)}"
    raise InputError(f"hardware: {shortened(name)} is neither a file nor a shipped profile; {hint}")


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def load_profile(name: str, overrides: tuple[str, ...] = ()) -> HardwareProfile:
    """Read a profile and apply overrides of the form ``tiers.cpu.capacity=512 GiB``.

    Raises:
        InputError: the file or an override is wrong.
    """
    data = read_yaml(find_profile(name))
    for override in overrides:
        data = _override(data, override)
    return decode(HardwareProfile, data, "hardware")


def override_profile(profile: HardwareProfile, overrides: tuple[str, ...]) -> HardwareProfile:
    """Change figures of a profile that is already read.

    Raises:
        InputError: an override is wrong.
    """
    data = profile.model_dump(mode="json", exclude_none=True)
    for override in overrides:
        data = _override(data, override)
    return decode(HardwareProfile, data, "hardware") if overrides else profile


def _override(data: dict[str, Any], override: str) -> dict[str, Any]:
    path, equals, text = (part.strip() for part in override.partition("="))
    if not equals or not path or not text:
        raise InputError(f'--set {override!r}: expected PATH=VALUE such as tiers.cpu.capacity="512 GiB"')
    data = copy.deepcopy(data)
    *parents, last = path.split(".")
    node: Any = data
    for depth, key in enumerate(parents):
        if not isinstance(node, dict) or key not in node:
            raise InputError(one_line(f"--set {path}: {_no_such_key(node, key, parents[:depth])}"))
        node = node[key]
    if not isinstance(node, dict) or isinstance(node.get(last), dict):
        raise InputError(one_line(f"--set {path}: this is a group of values; name one of them"))
    try:
        node[last] = parse_yaml(text)
    except YAMLFault:
        raise InputError(one_line(f"--set {path}: {shortened(text)} is not a value")) from None
    return data


def _no_such_key(node: object, key: str, above: list[str]) -> str:
    known = [str(name) for name in node] if isinstance(node, dict) else []
    near = difflib.get_close_matches(key, known, n=1)
    place = ".".join(above) or "the top level"
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known) or 'no keys'}"
    return f"no key {key!r} at {place}; {hint}"
