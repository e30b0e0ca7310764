"""The frozen layers below the first trained one. Each document goes through them once.

    depth = frozen_depth(model)                  # 26 of 28 layers, say; 0: nothing is frozen below
    cut = Cut(transformer_layers(model), depth)
    with cut.below() as found: model(ids)        # layers from `depth` on do not run
    with cut.above(states): model(ids)           # layers below `depth` do not run
    SFTModel(model, trunk=Trunk(cut, kept))      # see `model/choose_trunk.py`

A layer that is not run is replaced, for as long as a context lasts, by a stand-in that hands its
input on. So embeddings, positions and masks are computed by the model's own code, the trained
layers are the model's own modules, and names and weights are what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from duiti.model.freeze import final_norm, transformer_layers
from duiti.model.kept_states import KeptStates
from duiti.types import Batch, TokenIds

RunDocuments: TypeAlias = Callable[[Tensor, Tensor, tuple[int, ...]], object]
"""Runs a model on ids [T], positions [T] and document borders [D+1]."""


def frozen_depth(model: PreTrainedModel) -> int:
    """How many of the first layers, with all that comes before them, hold nothing that is trained.

    Raises:
        UsageError: the model's layers cannot be told apart.
    """
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    layers = transformer_layers(model)
    touched = [i for i, layer in enumerate(layers) if _ids(layer) & trained]
    if not touched:
        return 0
    behind = set[int]().union(*(_ids(layer) for layer in layers[touched[0] :]))
    if trained - behind:
        # A head that is tied to the embedding moves the very first thing that runs.
        if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
            behind |= _ids(model.get_output_embeddings())
        if trained - behind:
            behind |= _ids(final_norm(model, layers))
    return 0 if trained - behind else touched[0]


class Cut:
    """A stack of layers, of which the first `depth` can run without the others, and these without
    them."""

    def __init__(self, layers: nn.ModuleList, depth: int) -> None:
        assert 0 < depth < len(layers)
        self._layers = layers
        self.depth = depth
        self._tuple_length: int | None = None
        """Some architectures' layers return a tuple, the hidden state first."""

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    @contextmanager
    def below(self) -> Iterator[list[Tensor]]:
        """Run the lower layers alone. What the layer above them would get is collected, a tensor
        [1, T, D] for every time that the model is called."""
        found: list[Tensor] = []

        def collect(states: Tensor) -> object:
            found.append(states)
            return self._as_returned(states)

        stand_ins = self._passing(range(self.depth, len(self._layers)))
        stand_ins[self.depth] = _StandIn(self._layers[self.depth], collect)
        seen = self._layers[0].register_forward_hook(self._see_kind)
        try:
            with _replaced(self._layers, stand_ins):
                yield found
        finally:
            seen.remove()

    @contextmanager
    def above(self, states: Tensor) -> Iterator[None]:
        """Run the upper layers alone, on `states` [T, D]. `below` must have run once before."""
        stand_ins = self._passing(range(1, self.depth))
        stand_ins[0] = _StandIn(self._layers[0], lambda _: self._as_returned(states[None]))
        with _replaced(self._layers, stand_ins):
            yield

    def _passing(self, places: range) -> dict[int, nn.Module]:
        return {place: _StandIn(self._layers[place], self._as_returned) for place in places}

    def _see_kind(self, layer: nn.Module, given: object, returned: object) -> None:
        self._tuple_length = len(returned) if isinstance(returned, tuple) else None

    def _as_returned(self, states: Tensor) -> object:
        if self._tuple_length is None:
            return states
        return (states, *[None] * (self._tuple_length - 1))


class Trunk:
    """The lower side of a cut, and what it gave for each document."""

    def __init__(self, cut: Cut, kept: KeptStates) -> None:
        self.cut = cut
        self.kept = kept

    def states(self, batch: Batch, run: RunDocuments) -> Tensor | None:
        """[T, D] what the first trained layer gets; None where a document has no place in store.

        Args:
            run: the model on some documents, as the batch itself would go through it.
        """
        documents = self.kept.documents
        places = documents.find(batch.documents)
        if places is None:
            return None
        device = batch.input_ids.device
        for group in self.kept.missing(places):
            with torch.no_grad(), self.cut.below() as found:
                run(*_flat(documents.ids(group), device))
            # Tokens that the batch was filled up with are behind the documents.
            num_tokens = sum(map(len, documents.ids(group)))
            self.kept.write(group, torch.cat(found, dim=1)[0, :num_tokens])
        return self.kept.read(places, device)


class _StandIn(nn.Module):
    """Takes the place of a layer that is not run, and answers for it."""

    def __init__(self, layer: nn.Module, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        # In a tuple, for a layer in an attribute would become a part of this module.
        self._stands_for = (layer,)
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        # Models ask their layers for things, such as what kind of attention they have.
        return getattr(self._stands_for[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> object:
        return self._answer(args[0] if args else kwargs["hidden_states"])


@contextmanager
def _replaced(layers: nn.ModuleList, stand_ins: Mapping[int, nn.Module]) -> Iterator[None]:
    own = {place: layers[place] for place in stand_ins}
    try:
        for place, stand_in in stand_ins.items():
            layers[place] = stand_in
        yield
    finally:
        for place, layer in own.items():
            layers[place] = layer


def _ids(module: nn.Module) -> set[int]:
    return {id(parameter) for parameter in module.parameters()}


def _flat(
    documents: list[TokenIds], device: torch.device
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Documents laid end to end: ids, positions, borders."""
    lengths = [len(ids) for ids in documents]
    ids = torch.from_numpy(np.concatenate(documents).astype(np.int64)).to(device)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    return ids, positions, (0, *accumulate(lengths))
