"""What a benchmark yields: progress, and at the end numbers under stable names and tables for people."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryoscan.provenance import Provenance


@dataclass(frozen=True, slots=True)
class BenchmarkProgress:
    """Event: so many windows are embedded, the last ones in this stage."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Table:
    """A table for people; every number in it is also in `BenchmarkResult.numbers`."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Event: the end of a benchmark.

    Parameters
    ----------
    numbers : mapping
        Dotted name, e.g. ``cath.159.6A.top1``, → number; ``….details`` are lists of records.
    tables : tuple of Table
    notes : tuple of str
        What was left out or missing, and what the numbers do not say.
    provenance : Provenance
    """

    numbers: Mapping[str, Any]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    provenance: Provenance = field(default_factory=lambda: Provenance("benchmark"))

    @property
    def origin(self) -> str:
        """What the numbers were made from, in one line."""
        made = self.provenance
        inputs = ", ".join(f"{name} {fingerprint}" for name, fingerprint in made.inputs.items())
        settings = ", ".join(f"{name}={value}" for name, value in made.config.items())
        return f"cryoscan {made.version}, {made.time}; {inputs}; {settings}"

    def to_json(self) -> dict[str, Any]:
        """One flat object; what could not be computed is null."""
        origin = self.provenance.to_json()
        return {
            **{key: _plain(value) for key, value in self.numbers.items()},
            "notes": list(self.notes),
            **{f"provenance.{key}": value for key, value in origin.items()},
        }


def percent(value: float) -> str:
    """A proportion as a table shows it."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def decimals(value: float) -> str:
    """A score as a table shows it."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
