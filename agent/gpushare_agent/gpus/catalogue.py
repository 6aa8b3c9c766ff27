"""Real card models as they look to a scheduler, for nodes whose cards are simulated.

Pure data and its parser; imports the standard library's data modules alone. `memory_mib` is the figure that
nvidia-smi prints as total for the model; CPU and RAM are those of a common server for it, per card, so that a node
of n cards has n times as much. Cards on a board (SXM) reach all others of the board over its switch; PCIe cards are
near those of their own processor. UUIDs follow from the node's name and the card's index, so that a restarted node has
the same cards.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

MAX_CARDS = 16
BOARD_CARDS = 8


class CatalogueError(ValueError):
    """The text does not name cards of the catalogue; the message says what does."""


@dataclass(frozen=True, slots=True)
class CardModel:
    """One model: `memory_mib` per card, and what a common server offers per card. `on_board`: it is sold on boards of
    `BOARD_CARDS`."""

    name: str
    memory_mib: int
    cpu_milli_per_card: int
    memory_mib_per_card: int
    on_board: bool = False


@dataclass(frozen=True, slots=True)
class SimulatedNode:
    """`count` cards of one model in one node."""

    count: int
    model: CardModel

    @property
    def cpu_milli(self) -> int:
        """Thousandths of a CPU that the node offers."""
        return self.count * self.model.cpu_milli_per_card

    @property
    def memory_mib(self) -> int:
        """RAM in MiB that the node offers."""
        return self.count * self.model.memory_mib_per_card

    def domain(self, index: int) -> str:
        """Of the card with that index: its board, or its processor's half of the PCIe cards."""
        if self.model.on_board:
            return f"board{index // BOARD_CARDS}"
        return f"numa{int(2 * index >= self.count)}" if self.count > 1 else "numa0"


_GIB = 1024

MODELS: dict[str, CardModel] = {
    model.name: model
    for model in (
        CardModel("B200-180GB", 183359, 28_000, 256 * _GIB, on_board=True),
        CardModel("H200-141GB", 143771, 28_000, 256 * _GIB, on_board=True),
        CardModel("H100-94GB", 95830, 28_000, 256 * _GIB),
        CardModel("H100-80GB", 81559, 28_000, 256 * _GIB, on_board=True),
        CardModel("A100-80GB", 81920, 32_000, 256 * _GIB, on_board=True),
        CardModel("A100-40GB", 40960, 32_000, 128 * _GIB, on_board=True),
        CardModel("A40", 46068, 16_000, 128 * _GIB),
        CardModel("A30", 24576, 16_000, 64 * _GIB),
        CardModel("A10", 23028, 12_000, 48 * _GIB),
        CardModel("L40S", 46068, 12_000, 96 * _GIB),
        CardModel("L4", 23034, 12_000, 48 * _GIB),
        CardModel("T4", 15360, 12_000, 48 * _GIB),
        CardModel("V100-32GB", 32768, 12_000, 96 * _GIB, on_board=True),
        CardModel("V100-16GB", 16384, 8_000, 60 * _GIB, on_board=True),
        CardModel("RTX-4090", 24564, 16_000, 64 * _GIB),
        CardModel("RTX-3090", 24576, 16_000, 64 * _GIB),
        CardModel("RTX-A6000", 49140, 16_000, 96 * _GIB),
    )
}

_SHAPE = re.compile(r"([1-9][0-9]{0,2})x([A-Za-z0-9][A-Za-z0-9 -]*)")


def model_named(name: str) -> CardModel:
    """The model of that name; case and blanks do not matter ("rtx 4090" is "RTX-4090"). Raises CatalogueError."""
    found = MODELS.get(name.upper().replace(" ", "-"))
    if found is None:
        raise CatalogueError(f"no simulated card is called {name!r}; there are {', '.join(MODELS)}")
    return found


def parse_node(text: str) -> SimulatedNode:
    """Reads "4xH100-80GB". Raises CatalogueError, which names what is wrong."""
    match = _SHAPE.fullmatch(text) if text.isascii() else None
    if match is None:
        raise CatalogueError(f"{text!r} is not COUNTxMODEL, like 4xH100-80GB")
    count = int(match[1])
    if count > MAX_CARDS:
        raise CatalogueError(f"{text!r} asks for {count} cards in one node; at most {MAX_CARDS} are simulated")
    return SimulatedNode(count=count, model=model_named(match[2]))


def card_uuid(node: str, index: int) -> str:
    """The UUID of card `index` (from 0) of that node, the same at every start."""
    return f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'gpushare/{node}/{index}')}"
