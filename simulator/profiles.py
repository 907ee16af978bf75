"""Reading machines: shipped profiles, files of the user's, and overrides of single figures."""

from __future__ import annotations

import copy
import difflib
import re
from importlib import resources
from pathlib import Path
from typing import Any

from simulator.calibration import Operations
from simulator.errors import InputError
from simulator.hardware import DType, Engine, HardwareProfile, below_peak
from simulator.kernels import Roofline
from simulator.operations import OP, OPERATIONS, Operation
from simulator.schema import YAMLFault, decode, parse_yaml, read_yaml
from simulator.units import BYTE_RATE, FLOP_RATE, multiplied, one_line, shortened

_FACTOR = re.compile(r"x\s*\d+(\.\d*)?", re.ASCII)
_KERNELS = [each.name for each in OPERATIONS if each.cost in ("matmul", "attention", "prompt_attention")]
_TRANSFERS = [each.name for each in OPERATIONS if each.cost != "none" and each.name not in _KERNELS]


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
    """Read a profile and apply overrides, of the form ``tiers.cpu.capacity=512 GiB`` or ``...=x2``.

    Raises:
        InputError: the file or an override is wrong.
    """
    data = read_yaml(find_profile(name))
    for override in overrides:
        data = _override(data, override)
    return decode_profile(data)


def override_profile(profile: HardwareProfile, overrides: tuple[str, ...]) -> HardwareProfile:
    """Change figures of a profile that is already read.

    Raises:
        InputError: an override is wrong.
    """
    data = profile.model_dump(mode="json", exclude_none=True)
    for override in overrides:
        data = _override(data, override)
    return decode_profile(data) if overrides else profile


def decode_profile(data: object, where: str = "hardware") -> HardwareProfile:
    """Build a profile from plain data, measured operations checked too; ``where`` names it in errors.

    Raises:
        InputError: something is wrong; the message names its path.
    """
    profile = decode(HardwareProfile, data, where)
    if profile.operations is not None:
        try:
            _check_operations(profile, profile.operations)
        except ValueError as error:
            raise InputError(one_line(f"{where}.operations.{error}")) from None
    return profile


def _check_operations(profile: HardwareProfile, measured: Operations) -> None:
    """Check what the records cannot: they do not know the operations, whose module imports theirs.

    Raises:
        ValueError: an operation is unknown, its engine does not compute in that type, or it beats a peak.
    """
    for dtype, kernels in measured.kernels.items():
        for name, kernel in kernels.items():
            path = f"kernels.{dtype}.{name}"
            operation = _known(path, name, _KERNELS)
            _check_kernel(path, kernel, _engine(profile, operation), dtype)
    for name, transfer in measured.transfers.items():
        operation = _known(f"transfers.{name}", name, _TRANSFERS)
        if name == "load_weights" and profile.unified_memory:
            continue  # handed over, not copied: no link limits it
        peak = _moving_peak(profile, operation)
        below_peak(f"transfers.{name}.bandwidth", transfer.bandwidth, peak, BYTE_RATE.format)


def _known(path: str, name: str, known: list[str]) -> Operation:
    if name in known:
        return OPERATIONS[OP[name]]
    if name in _KERNELS:
        raise ValueError(f"{path}: a kernel; it belongs under kernels and the number type")
    if name in _TRANSFERS:
        raise ValueError(f"{path}: a copy or conversion; it belongs under transfers")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    raise ValueError(f"{path}: unknown operation; {hint}")


def _check_kernel(path: str, kernel: Roofline, engine: Engine, dtype: DType) -> None:
    if dtype not in engine.matmul:
        have = ", ".join(engine.matmul)
        raise ValueError(f"{path}: {engine.name} has no matmul in {dtype}, only in {have}; move it there")
    below_peak(f"{path}.flops", kernel.flops, engine.peak.flops[dtype], FLOP_RATE.format)
    below_peak(f"{path}.bandwidth", kernel.bandwidth, engine.peak.memory_bandwidth, BYTE_RATE.format)


def _engine(profile: HardwareProfile, operation: Operation) -> Engine:
    return profile.engines["cpu" if operation.lane == "cpu" else "gpu"]


def _moving_peak(profile: HardwareProfile, operation: Operation) -> float:
    """Give the limit of a copy or conversion: of the link, or of the memory beside the engine. [B/s]"""
    if operation.cost != "copy":
        return _engine(profile, operation).peak.memory_bandwidth
    return profile.links.limit(operation.lane)


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
    if _FACTOR.fullmatch(text):
        node[last] = _times(node.get(last), text[1:], f"--set {path}")
        return data
    try:
        node[last] = parse_yaml(text)
    except (YAMLFault, ValueError):
        raise InputError(one_line(f"--set {path}: {shortened(text)} is not a value")) from None
    return data


def _times(value: object, factor: str, where: str) -> Any:
    """Multiply a figure that is there.

    Raises:
        InputError: it is not there, or no number.
    """
    try:
        return parse_yaml(multiplied(str(value), factor.strip()))
    except (YAMLFault, ValueError):
        shown = "not there" if value is None else shortened(value)
        raise InputError(
            one_line(f"{where}: only a number can be multiplied, and this is {shown}; write the value out")
        ) from None


def _no_such_key(node: object, key: str, above: list[str]) -> str:
    known = [str(name) for name in node] if isinstance(node, dict) else []
    near = difflib.get_close_matches(key, known, n=1)
    place = ".".join(above) or "the top level"
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known) or 'no keys'}"
    return f"no key {key!r} at {place}; {hint}"
