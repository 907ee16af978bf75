"""Policy variables that the user fixes on the command line: ``--fix NAME=VALUE``."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulator.errors import InputError

_TIERS = ("gpu", "cpu", "disk")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _choice(*values: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if int(text) not in values:
            raise ValueError
        return int(text)

    return read


def _share(text: str) -> float:
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise ValueError
    return value


def _part(text: str) -> float:
    value = _share(text)
    if not value:
        raise ValueError
    return value


def _switch(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ValueError
    return known[text.lower()]


def _split(text: str) -> tuple[float, float, float]:
    parts = tuple(float(part) for part in text.split("/"))
    if len(parts) != 3 or not all(0.0 <= part <= 100.0 for part in parts) or abs(sum(parts) - 100.0) > 1e-6:
        raise ValueError
    return (parts[0] / 100, parts[1] / 100, parts[2] / 100)


#: Every variable that can be fixed: how to read it, and what to type.
_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "gpu_batch": (_count, "a count such as 48"),
    "num_groups": (_count, "a count such as 3"),
    "weights": (_split, "percentages on GPU/CPU/disk that sum to 100, such as 20/80/0"),
    "cache": (_split, "percentages on GPU/CPU/disk that sum to 100, such as 0/100/0"),
    "activations": (_split, "percentages on GPU/CPU/disk that sum to 100, such as 0/100/0"),
    "cpu_attention": (_share, "a share between 0 and 1"),
    "weight_bits": (_choice(4, 8, 16), "4, 8 or 16"),
    "cache_bits": (_choice(4, 8, 16), "4, 8 or 16"),
    "quant_group": (_count, "a count such as 64"),
    "stagger": (_count, "passes between admissions, such as 1"),
    "prompt_batch": (_count, "a count that divides gpu_batch"),
    "pinned": (_switch, "true or false"),
    "prefetch": (_count, "layers ahead, such as 1"),
    "attention_top": (_part, "a share above 0 and at most 1, such as 0.1"),
}


@dataclass(frozen=True)
class Pins:
    """Fixed variables, by name; what is absent is searched."""

    values: tuple[tuple[str, Any], ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """Give a fixed value, or a default."""
        return dict(self.values).get(name, default)

    def placement(self) -> tuple[tuple[str, float], ...]:
        """Give the fixed placement variables in the words of the placement program."""
        fixed: list[tuple[str, float]] = []
        for name in ("weights", "cache", "activations"):
            split = self.get(name)
            if split is not None:
                fixed += [(f"{name}_{tier}", part) for tier, part in zip(_TIERS, split, strict=True)]
        share = self.get("cpu_attention")
        return (*fixed, *((("cpu_attention", float(share)),) if share is not None else ()))


def parse_pins(texts: tuple[str, ...]) -> Pins:
    """Read ``NAME=VALUE`` texts.

    Raises:
        InputError: an unknown name, an unusable value, or a name given twice.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise InputError(f"--fix {text!r}: expected NAME=VALUE such as gpu_batch=48")
        if name not in _READERS:
            near = difflib.get_close_matches(name, _READERS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(_READERS)}"
            raise InputError(f"--fix {name}: unknown policy variable; {hint}")
        if name in values:
            raise InputError(f"--fix {name}: given twice; keep one")
        read, expected = _READERS[name]
        try:
            values[name] = read(value)
        except ValueError:
            raise InputError(f"--fix {name}: expected {expected}; got {value!r}") from None
    return Pins(tuple(values.items()))
