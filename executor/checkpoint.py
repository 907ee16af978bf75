"""A Hugging Face checkpoint: which model it holds, and where each of its tensors lies. No data is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.facts import Facts, parse_facts
from executor.tensor_file import Header, TensorPlace, fault, place_of, read, read_header
from simulator.model import ModelSpec
from simulator.model_config import parse_config
from simulator.model_shape import Weight
from simulator.schema import read_json
from simulator.units import shortened

__all__ = ["Checkpoint", "TensorPlace", "read"]

Places = dict[str, TensorPlace]

HEAD = "lm_head.weight"
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: everything about it but its data.

    Attributes:
        path: the folder.
        model: dimensions, and which tensors there are.
        config: what the arithmetic needs beyond them.
        tensors: where each tensor lies, by the name that the loaded model gives it
            (``model.layers.0.self_attn.q_proj.weight``), whatever its name in the file. Of tied embeddings
            the token table and ``lm_head.weight`` are the same place.
    """

    path: Path
    model: ModelSpec
    config: Facts
    tensors: Places

    @staticmethod
    def open(path: str | Path) -> Checkpoint:
        """Read a folder's configuration and the headers of its safetensors files, and check every tensor.

        Raises:
            InputError: a file cannot be used, or a tensor that the model needs is missing, has another
                shape, or lies outside its file.
        """
        folder = Path(path)
        data = read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        model = parse_config(data, folder.resolve().name or "model")
        facts = parse_facts(model, data, read_json(generation) if generation.is_file() else {})
        return Checkpoint(folder, model, facts, _find_all(model, _Files(folder)))

    def block(self, index: int) -> Places:
        """Give the places of one transformer block's tensors, by their names inside the block."""
        prefix = _block_prefix(self.model, index)
        return {weight.name: self.tensors[prefix + weight.name] for weight in self.model.layer_weights()}

    @property
    def embed(self) -> Places:
        """Places of what turns tokens into hidden states; the token table is here also if it is tied."""
        names = {table_name(self.model), *(weight.name for weight in self.model.embed_weights())}
        return {name: self.tensors[name] for name in sorted(names)}

    @property
    def head(self) -> Places:
        """Places of what turns hidden states into logits; the output matrix is here also if it is tied."""
        return {weight.name: self.tensors[weight.name] for weight in self.model.head_weights()}

    @property
    def tokenizer(self) -> Path | None:
        """The file of the tokenizer, where the checkpoint has one."""
        file = self.path / "tokenizer.json"
        return file if file.is_file() else None


def table_name(model: ModelSpec) -> str:
    """Give the name of the token table in the loaded model."""
    return f"{_prefix(model)}embed_tokens.weight"


def _prefix(model: ModelSpec) -> str:
    return "model.decoder." if model.architecture == "opt" else "model."


def _block_prefix(model: ModelSpec, index: int) -> str:
    return f"{_prefix(model)}layers.{index}."


def _names(name: str) -> Iterator[str]:
    """List the names that a tensor may have in a file: a bare model is saved without the first part."""
    yield name
    if name.startswith("model."):
        yield name.removeprefix("model.")


def _find_all(model: ModelSpec, files: _Files) -> Places:
    found: Places = {}
    ends = [weight for weight in (*model.embed_weights(), *model.head_weights()) if weight.name != HEAD]
    for index in range(model.num_layers):
        for weight in model.layer_weights():
            name = _block_prefix(model, index) + weight.name
            found[name] = files.find([name], weight)
    for weight in ends:
        found[weight.name] = files.find([weight.name], weight)
    output = next(weight for weight in model.head_weights() if weight.name == HEAD)
    if model.tied_embeddings:  # either of the two names may be the one that was saved
        found[table_name(model)] = files.find([table_name(model), HEAD], output)
        found[HEAD] = found[table_name(model)]
    else:
        found[HEAD] = files.find([HEAD], output)
    return found


class _Files:
    """The safetensors files of a folder, of which only those that are asked for are opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._headers: dict[str, Header] = {}
        self._source, self._file_of = self._listing()

    def _listing(self) -> tuple[Path, dict[str, str]]:
        """Say in which file each tensor is; a single file counts before an index, as in transformers."""
        single, index = self._folder / _SINGLE, self._folder / _INDEX
        if single.is_file():
            return single, dict.fromkeys(self._header(_SINGLE).entries, _SINGLE)
        if index.is_file():
            return index, _weight_map(index, read_json(index))
        remedy = "download the weights"
        if any(self._folder.glob("*.bin")):
            remedy = (
                "load the *.bin files with transformers and call save_pretrained, which writes safetensors"
            )
        raise fault(self._folder, f"neither {_SINGLE} nor {_INDEX} is there; {remedy}")

    def find(self, names: Iterable[str], weight: Weight) -> TensorPlace:
        """Find a tensor under any of its names, and check its shape.

        Raises:
            InputError: it is not there, or is not what the model needs.
        """
        wanted = list(names)
        stored = next((name for given in wanted for name in _names(given) if name in self._file_of), None)
        if stored is None:
            raise fault(
                self._source,
                f"tensor {wanted[0]} is missing; download or save the checkpoint again, "
                "or correct config.json if it describes another model",
            )
        header = self._header(self._file_of[stored])
        if stored not in header.entries:
            raise fault(
                header.file,
                f"tensor {stored} is missing though {self._source.name} says that it is "
                "here; download or save the checkpoint again",
            )
        place = place_of(header, stored)
        if place.shape != weight.shape:
            raise fault(
                header.file,
                f"tensor {stored}: its shape is {list(place.shape)}, config.json asks for "
                f"{list(weight.shape)}; take both from the same checkpoint",
            )
        return place

    def _header(self, name: str) -> Header:
        if name not in self._headers:
            file = self._folder / name
            if not file.is_file():
                raise fault(file, f"this file is missing though {_INDEX} names it; download it again")
            self._headers[name] = read_header(file)
        return self._headers[name]


def _weight_map(index: Path, data: dict[str, Any]) -> dict[str, str]:
    found = data.get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise fault(index, "weight_map: expected a table of tensors and their files")
    for tensor, name in found.items():
        if Path(name).name != name:  # it must not lead out of the folder
            raise fault(
                index, f"weight_map: {shortened(tensor)}: {shortened(name)} is not the name of a file"
            )
    return found
