"""Rotary positions: the angles by which queries and keys are turned, in the variants that models use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

RotaryKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True)
class Rotary:
    """How fast each pair of a head turns with the position.

    Attributes:
        kind: ``dynamic`` stretches beyond the trained positions only; within them, which is all that is
            computed here, it is ``default``.
        theta: the base of the wavelengths.
        head_dim: elements of a head; there are half as many pairs.
        factor: by how much the context is stretched.
        original_positions: positions that the model was trained with before.
        low_freq_factor: llama3: wavelengths above ``original_positions / low`` are stretched.
        high_freq_factor: llama3: those below ``original_positions / high`` are kept.
        beta_fast: yarn: pairs that turn more often than this in the original positions are kept.
        beta_slow: yarn: those that turn less often are stretched.
        truncate: yarn: whether the limits between the two are whole pairs.
        scale: yarn: what sine and cosine are multiplied by.
    """

    kind: RotaryKind
    theta: float
    head_dim: int
    factor: float = 1.0
    original_positions: int = 1
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    scale: float = 1.0


def frequencies(rotary: Rotary) -> torch.Tensor:
    """Give the angle per position of every pair [D/2], float32 [rad].

    Calculated in float32 throughout as in transformers: at position 10^5 the last bit of a frequency is
    some thousandths of a radian.
    """
    exponents = torch.arange(0, rotary.head_dim, 2, dtype=torch.float32) / rotary.head_dim
    powers = rotary.theta**exponents
    plain = 1.0 / powers
    if rotary.kind == "linear":
        return plain / rotary.factor
    if rotary.kind == "llama3":
        return _llama3(rotary, plain)
    if rotary.kind == "yarn":
        kept = _yarn_kept(rotary)
        return 1.0 / (rotary.factor * powers) * (1 - kept) + plain * kept
    return plain


def _llama3(rotary: Rotary, plain: torch.Tensor) -> torch.Tensor:
    """Keep short wavelengths, stretch long ones, and go from one to the other in between."""
    wavelengths = 2 * math.pi / plain
    long = rotary.original_positions / rotary.low_freq_factor
    short = rotary.original_positions / rotary.high_freq_factor
    stretched = plain / rotary.factor
    turns = rotary.original_positions / wavelengths
    kept = (turns - rotary.low_freq_factor) / (rotary.high_freq_factor - rotary.low_freq_factor)
    between = (1 - kept) * plain / rotary.factor + kept * plain
    ends = torch.where(wavelengths > long, stretched, plain)
    return torch.where((wavelengths < short) | (wavelengths > long), ends, between)


def _yarn_kept(rotary: Rotary) -> torch.Tensor:
    """Say how much of each frequency is kept [D/2]: 1 for fast pairs, 0 for slow ones, a ramp between."""
    low, high = _yarn_pair(rotary, rotary.beta_fast), _yarn_pair(rotary, rotary.beta_slow)
    if rotary.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary.head_dim - 1)
    if low == high:
        high += 0.001  # a step, without dividing by zero
    pairs = torch.arange(rotary.head_dim // 2, dtype=torch.float32)
    return 1 - ((pairs - low) / (high - low)).clamp(0, 1)


def _yarn_pair(rotary: Rotary, turns: float) -> float:
    """Find the pair, as a real number, that turns so many times in the original positions."""
    wavelength = rotary.original_positions / (turns * 2 * math.pi)
    return rotary.head_dim * math.log(wavelength) / (2 * math.log(rotary.theta))


def yarn_scale(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """Give the factor of sine and cosine that a yarn model uses unless its file says another."""

    def of(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    return of(mscale) / of(mscale_all_dim) if mscale and mscale_all_dim else of(1.0)


@lru_cache(maxsize=64)
def _frequencies_on(rotary: Rotary, device: torch.device) -> torch.Tensor:
    """Keep the frequencies on the device: copying them for every layer would make the host wait."""
    return frequencies(rotary).to(device)


def rotation(
    rotary: Rotary, positions: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give cosine and sine of every position [B,T] and pair: two tensors [B,T,1,D/2] in ``dtype``."""
    angles = positions[..., None, None].float() * _frequencies_on(rotary, positions.device)
    return (angles.cos() * rotary.scale).to(dtype), (angles.sin() * rotary.scale).to(dtype)


def turn(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Turn each pair of each head [B,T,heads,D]; a pair is element i and element i + D/2."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
