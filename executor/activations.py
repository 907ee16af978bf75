"""Hidden states between layers: homes on the three tiers, and their way to the GPU and back.

The sequences of a group are split over the tiers. Those on the GPU stay in their home; the others come
through a slot, behind which stands a home on the CPU, or one on the disk with a copy on its way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from executor.aligned import aligned, padded
from executor.arena import Arena
from executor.cells import Cell
from executor.direct_io import ScratchFile
from executor.homes import Share
from executor.read_pool import ReadPool
from simulator.hardware import TIERS, TierName


@dataclass(frozen=True)
class Areas:
    """How homes are numbered: one with room for prompts and one for single tokens, for each group in flight.

    Attributes:
        prompts: groups whose prompts have homes at the same time.
        tokens: groups whose single tokens have homes of their own; 0 where they use those of prompts.
        prompt_len: tokens of a prompt at most.
    """

    prompts: int
    tokens: int
    prompt_len: int

    def of(self, cell: Cell) -> tuple[int, int]:
        """Give a cell's home, and the tokens it has room for."""
        assert cell.group is not None
        if cell.position and self.tokens:
            return self.prompts + cell.group.number % self.tokens, 1
        return cell.group.number % self.prompts, self.prompt_len


class ActivationStore:
    """The hidden states of a run.

    Args:
        shares: how the sequences of a group are split.
        areas: the homes.
        width: elements of a hidden state.
        dtype: their type.
        arenas: memory of the GPU and the CPU.
        slots: on the GPU: how many, and the tokens of all sequences that each has room for.
        folder: for the file of the disk's share.
        pool: the threads that read and write.
    """

    def __init__(
        self,
        shares: list[Share],
        areas: Areas,
        width: int,
        dtype: torch.dtype,
        arenas: Mapping[TierName, Arena],
        slots: tuple[int, int],
        folder: Path,
        pool: ReadPool,
    ) -> None:
        self._shares, self._areas, self._width, self._dtype, self._pool = shares, areas, width, dtype, pool
        count = {tier: sum(share.count for share in shares if share.tier == tier) for tier in TIERS}
        token = width * dtype.itemsize
        rooms = areas.prompts * areas.prompt_len + areas.tokens
        self._homes = {
            tier: arenas[tier].take("activations", count[tier] * rooms * token).view(dtype)
            for tier in ("gpu", "cpu")
        }
        self._count = count
        self._page = padded(0, areas.prompt_len * token)
        self._file = None
        if count["disk"]:
            self._file = ScratchFile(folder, count["disk"] * (areas.prompts + areas.tokens) * self._page)
        self.slots = [
            arenas["gpu"].take("activations", slots[1] * token).view(dtype) for _ in range(slots[0])
        ]
        self._moving: dict[tuple[Cell, int], list[torch.Tensor]] = {}

    @property
    def disk_bytes(self) -> int:
        """Size of the file. [B]"""
        return self._file.nbytes if self._file is not None else 0

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def get(self, cell: Cell, last: torch.Tensor | None = None) -> torch.Tensor:
        """Give a cell's hidden states [B,T,E]; with ``last`` [B], of those tokens alone [B,1,E]."""
        found, at = [], 0
        for share, sequences in self._within(cell):
            if share.tier == "gpu":
                home = self._home(share, sequences, cell)
                found.append(home if last is None else self._pick(home, sequences, cell, last))
            else:
                tokens = cell.tokens if last is None else 1
                size = len(sequences) * tokens * self._width
                slot = self.slots[cell.slots["activations"]]
                found.append(slot[at : at + size].view(len(sequences), tokens, self._width))
                at += size
        return found[0] if len(found) == 1 else torch.cat(found)

    def put(self, cell: Cell, states: torch.Tensor) -> None:
        """Bring hidden states [B,T,E] home on the GPU, or into the slot that leads elsewhere."""
        at = 0
        for share, sequences in self._within(cell):
            first = sequences.start - cell.sequences.start
            part = states[first : first + len(sequences)]
            if share.tier == "gpu":
                self._home(share, sequences, cell).copy_(part)
            else:
                self.slots[cell.slots["activations"]][at : at + part.numel()].view(part.shape).copy_(part)
                at += part.numel()

    def store(self, cell: Cell) -> int:
        """Copy a slot's hidden states to the CPU; give their bytes. [B]"""
        at = 0
        for share, sequences in self._within(cell):
            if share.tier == "gpu":
                continue
            shape = (len(sequences), cell.tokens, self._width)
            size = len(sequences) * cell.tokens * self._width
            states = self.slots[cell.slots["activations"]][at : at + size].view(shape)
            if share.tier == "cpu":
                self._home(share, sequences, cell).copy_(states, non_blocking=True)
            else:
                pages = [aligned(self._page) for _ in sequences]
                for page, state in zip(pages, states, strict=True):
                    _states(page, cell.tokens, self._width, self._dtype).copy_(state)
                self._moving[cell, share.first] = pages
            at += size
        return at * self._dtype.itemsize

    def write(self, cell: Cell) -> int:
        """Write what goes to the disk; give its bytes. [B]"""
        assert self._file is not None
        futures, nbytes = [], cell.tokens * self._width * self._dtype.itemsize
        for share, sequences in self._on_disk(cell):
            pages = self._moving.pop((cell, share.first))
            for sequence, page in zip(sequences, pages, strict=True):
                offset = self._offset(share, sequence, cell)
                futures.append(self._pool.write(self._file, page[: padded(0, nbytes)], offset, nbytes))
        for future in futures:
            future.result()
        return nbytes * len(futures)

    def read(self, cell: Cell) -> int:
        """Read what lies on the disk; give its bytes. [B]"""
        assert self._file is not None
        futures, nbytes = [], cell.tokens * self._width * self._dtype.itemsize
        for share, sequences in self._on_disk(cell):
            pages = [aligned(self._page) for _ in sequences]
            self._moving[cell, share.first] = pages
            for sequence, page in zip(sequences, pages, strict=True):
                futures.append(
                    self._pool.submit(self._file, page, self._offset(share, sequence, cell), nbytes)
                )
        for future in futures:
            future.result()
        return nbytes * len(futures)

    def load(self, cell: Cell, last: torch.Tensor | None = None) -> int:
        """Copy hidden states, all or the ``last`` [B], from the CPU into a slot; give their bytes. [B]"""
        at = 0
        for share, sequences in self._within(cell):
            if share.tier == "gpu":
                continue
            if share.tier == "cpu":
                states = self._home(share, sequences, cell)
            else:
                pages = self._moving.pop((cell, share.first))
                states = torch.stack([_states(page, cell.tokens, self._width, self._dtype) for page in pages])
            if last is not None:
                states = self._pick(states, sequences, cell, last)
            slot = self.slots[cell.slots["activations"]]
            slot[at : at + states.numel()].view(states.shape).copy_(states, non_blocking=True)
            at += states.numel()
        return at * self._dtype.itemsize

    def _within(self, cell: Cell) -> Iterator[tuple[Share, range]]:
        for share in self._shares:
            sequences = share.within(cell.sequences.start, cell.sequences.stop)
            if sequences:
                yield share, sequences

    def _on_disk(self, cell: Cell) -> Iterator[tuple[Share, range]]:
        return ((share, sequences) for share, sequences in self._within(cell) if share.tier == "disk")

    def _pick(self, states: torch.Tensor, sequences: range, cell: Cell, last: torch.Tensor) -> torch.Tensor:
        """Take one token of each sequence: [b,T,E] -> [b,1,E]."""
        chosen = last[sequences.start - cell.sequences.start :][: len(sequences)].to(states.device)
        return states[torch.arange(len(states), device=states.device), chosen][:, None]

    def _rank(self, share: Share, sequence: int) -> int:
        """Number a sequence among those of the group on the same tier."""
        before = sum(one.count for one in self._shares if one.tier == share.tier and one.first < share.first)
        return before + sequence - share.first

    def _home(self, share: Share, sequences: range, cell: Cell) -> torch.Tensor:
        """Look at sequences at home in memory: [b,T,E]."""
        area, room = self._areas.of(cell)
        count, width = self._count[share.tier], self._width
        prompts = min(area, self._areas.prompts)
        start = (prompts * self._areas.prompt_len + area - prompts) * count * width
        homes = self._homes[share.tier][start : start + count * room * width].view(count, room, width)
        first = self._rank(share, sequences.start)
        return homes[first : first + len(sequences), : cell.tokens]

    def _offset(self, share: Share, sequence: int, cell: Cell) -> int:
        """Give a sequence's place in the file. [B]"""
        area, _ = self._areas.of(cell)
        return (area * self._count["disk"] + self._rank(share, sequence)) * self._page


def _states(page: torch.Tensor, tokens: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Look at a page as hidden states: [T,E]."""
    return page.view(dtype)[: tokens * width].view(tokens, width)
