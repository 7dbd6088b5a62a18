"""Reads from a compiled program what it sends between devices."""

import dataclasses
import math
import re

_KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
# An asynchronous collective is two instructions, of which "-start" holds the shapes.
_INSTRUCTION = re.compile(
    rf" = (?P<result>.*?) (?P<kind>{'|'.join(_KINDS)})(-start)?\("
)
_SHAPE = re.compile(r"\b[a-z]+\d*[a-z\d]*\[(?P<sizes>[\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program: several arrays may travel in it together."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of elements of each array."""
        return tuple(math.prod(shape) for shape in self.shapes)


def collectives(text: str) -> list[Collective]:
    """The collectives in the text of a compiled program, `compiled.as_text()`."""
    return [
        Collective(match["kind"], tuple(_shapes(match["result"])))
        for match in map(_INSTRUCTION.search, text.splitlines())
        if match
    ]


def _shapes(result: str) -> list[tuple[int, ...]]:
    return [
        tuple(int(n) for n in match["sizes"].split(",") if n)
        for match in _SHAPE.finditer(result)
    ]
