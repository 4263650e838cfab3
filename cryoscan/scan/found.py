"""Every place that a scan found, named or not, with all that thresholds ask of it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from cryoscan.errors import FormatError
from cryoscan.hits import Hits
from cryoscan.provenance import write_atomically
from cryoscan.scan.config import ScanConfig
from cryoscan.scan.places import best_of_places, read_places
from cryoscan.scan.plan import ScanPlan
from cryoscan.scan.result import ScanResult, hits_from_json, hits_to_json
from cryoscan.scan.thresholds import is_named


@dataclass(frozen=True, slots=True, eq=False)
class PlaceTable:
    """One row per place, best first: what it is called and where its mask is.

    Parameters
    ----------
    position : float64 array, `n 3`
    score, margin : float array, `n`
    type, entry : int array, `n`
    tile, region : int array, `n`
        Where the mask is: region number of the places of a tile.
    start : int array, `n 3`
        First voxel of the mask on the embedder's grid.
    voxels : int array, `n`
        Of the mask; 0 where there is none.
    types : int array, `n k`
        What the place looks like most, best first; -1 for none.
    scores : float array, `n k`
    plain_type : int array, `n`
        What the same region of the volume as it is looks like, where the scan sharpens; else -1.
    plain_score, plain_margin : float array, `n`
    """

    position: np.ndarray
    score: np.ndarray
    margin: np.ndarray
    type: np.ndarray
    entry: np.ndarray
    tile: np.ndarray
    region: np.ndarray
    start: np.ndarray
    voxels: np.ndarray
    types: np.ndarray
    scores: np.ndarray
    plain_type: np.ndarray
    plain_score: np.ndarray
    plain_margin: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    def take(self, rows: np.ndarray) -> "PlaceTable":
        """Some rows."""
        return PlaceTable(*(getattr(self, name)[rows] for name in self.__slots__))

    @property
    def digest(self) -> str:
        """Identifies all that is in it."""
        content = hashlib.sha256()
        for name in self.__slots__:
            content.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return content.hexdigest()[:12]


def table_of(plan: ScanPlan, path: Path, tiles: Sequence[int]) -> PlaceTable:
    """The best name of every place of some tiles."""
    parts: list[PlaceTable] = []
    for tile in tiles:
        places = read_places(plan, path, tile)
        if places is None or not len(places):
            continue
        best = best_of_places(plan, places)
        rows = best.region
        parts.append(
            PlaceTable(
                places.position[rows],
                best.score,
                best.margin,
                best.type.astype(np.int64),
                best.entry.astype(np.int64),
                np.full(len(rows), tile),
                rows,
                places.start[rows],
                places.mask[rows].sum(axis=(1, 2, 3), dtype=np.int64),
                places.types[rows].astype(np.int64),
                places.scores[rows].astype(np.float64),
                *_plain(places.plain_types[rows], places.plain_scores[rows]),
            )
        )
    if not parts:
        none, whole, three = np.zeros(0), np.zeros(0, np.int64), np.zeros((0, 3))
        start, top = three.astype(np.int64), np.zeros((0, plan.config.candidates))
        types = top.astype(np.int64)
        return PlaceTable(three, none, none, whole, whole, whole, whole, start, whole, types, top, whole, none, none)
    return PlaceTable(*(np.concatenate([getattr(part, name) for part in parts]) for name in PlaceTable.__slots__))


def _plain(types: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best type, its cosine and its lead, `n` each; type -1 where there is none."""
    if not types.shape[1]:
        return np.full(len(types), -1), np.zeros(len(types)), np.zeros(len(types))
    second = scores[:, 1] if scores.shape[1] > 1 else scores[:, 0]
    return types[:, 0].astype(np.int64), scores[:, 0].astype(np.float64), (scores[:, 0] - second).astype(np.float64)


def apart(places: PlaceTable, plan: ScanPlan) -> PlaceTable:
    """One global non-maximum suppression over all places, best first."""
    z, y, x = places.position.T
    places = places.take(np.lexsort((x, y, z, -places.score)))
    gone = np.zeros(len(places), bool)
    kept = []
    tree = cKDTree(places.position) if len(places) else None
    for i in range(len(places)):
        if not gone[i]:
            assert tree is not None
            kept.append(i)
            gone[tree.query_ball_point(places.position[i], plan.config.min_distance_A)] = True
    return places.take(np.array(kept, np.int64))


def hits_of(plan: ScanPlan, named: PlaceTable) -> Hits:
    """Places with the names that the plan's database has for them."""
    keys = [plan.datedb.types[type_] for type_ in named.type]
    return Hits(
        named.position.reshape(-1, 3),
        named.type + 1,
        [type_ for _, type_ in keys],
        [scheme for scheme, _ in keys],
        [plan.datedb.name(*key) for key in keys],
        [plan.datedb.entries[entry].id for entry in named.entry],
        named.score,
        named.margin,
    )


# ---------------------------------------------------------------- for people who look again


@dataclass(frozen=True, slots=True, eq=False)
class FoundPlaces:
    """Places of a finished scan, best first; no two are closer than the smallest distance of hits.

    Parameters
    ----------
    hits : Hits
        All of them, those too that the scan gave no name.
    volume_A3 : float array, `n`
        Of their regions; 0 where the embedder cuts none out.
    confidence : float array, `n`, optional
        Probability that the name is right; None where the DateDB is not calibrated.
    threshold : float
        Cosine from which on the scan named places of types without a threshold of their own.
    config : ScanConfig
        Of the scan.
    alternatives : tuple, `n`
        For each place scheme, type, name and cosine of what it looks like most, best first.
    types : tuple of (scheme, type)
        All that the scan could name; the label of type i is i + 1.
    tile, region : int array, `n`
        Where `read_places` has their vectors and masks.
    digest : str
        Identifies the places and their order; the volume of place numbers carries it.
    plain : tuple, `n`, optional
        Where the scan sharpened: scheme, type, name and cosine of what each place looks like in the volume as it is;
        None for nothing.
    changed : bool array, `n`, optional
        Where the scan sharpened: whether a place has another name for it, or one or none only for it. Neither answer is
        safe then.
    """

    hits: Hits
    volume_A3: np.ndarray
    confidence: np.ndarray | None
    threshold: float
    config: ScanConfig
    alternatives: tuple[tuple[tuple[str, str, str, float], ...], ...]
    types: tuple[tuple[str, str], ...]
    tile: np.ndarray
    region: np.ndarray
    digest: str
    plain: tuple[tuple[str, str, str, float] | None, ...] | None = None
    changed: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.hits)

    def __repr__(self) -> str:
        return f"FoundPlaces({len(self)}, {int(self.named().sum())} of them named)"

    def named(self, config: ScanConfig | None = None) -> np.ndarray:
        """Which places get their name under some settings, or under the scan's own; `n` bool.

        The same as `cryoscan relabel` with these settings, but for `min_distance_A` and
        `false_positive_rate`, which it alone can change.
        """
        config = config or self.config
        return is_named(
            config,
            threshold=self.threshold if config.min_score is None else config.min_score,
            types=[type_ for _, type_ in self.types],
            type_=self.hits.labels - 1,
            score=self.hits.scores,
            margin=self.hits.margins,
            confidence=self.confidence,
            volume_A3=self.volume_A3 if self.volume_A3.any() else None,
        )


def write_found(
    plan: ScanPlan, path: Path, places: PlaceTable, *, threshold: float, changed: np.ndarray | None
) -> None:
    """Keep what `read_found` gives, beside the hits."""
    keys = plan.datedb.types
    confidence = plan.naming[0].confidences(places.score, places.margin, places.type, bank=plan.level)
    volume = places.voxels * plan.embedder.voxel_size**3
    content = {
        "hits": json.loads(hits_to_json(hits_of(plan, places))),
        "volume_A3": volume.tolist(),
        "confidence": None if confidence is None else confidence.tolist(),
        "threshold": threshold,
        "alternatives": [
            [[*keys[type_], plan.datedb.name(*keys[type_]), score] for type_, score in zip(types, scores) if type_ >= 0]
            for types, scores in zip(places.types.tolist(), places.scores.tolist(), strict=True)
        ],
        "tile": places.tile.tolist(),
        "region": places.region.tolist(),
        "digest": places.digest,
        "plain": None if changed is None else plain_answers(plan, places),
        "changed": None if changed is None else changed.tolist(),
    }
    write_atomically(path / "found.json", json.dumps(content))


def plain_answers(plan: ScanPlan, places: PlaceTable) -> list[tuple[str, str, str, float] | None]:
    """Scheme, type, name and cosine of what places look like in the volume as it is."""
    keys = plan.datedb.types
    return [
        (*keys[type_], plan.datedb.name(*keys[type_]), score) if type_ >= 0 else None
        for type_, score in zip(places.plain_type.tolist(), places.plain_score.tolist(), strict=True)
    ]


def read_found(result: ScanResult) -> FoundPlaces:
    """Every place of a finished scan.

    Raises
    ------
    FormatError
        If the scan is unfinished, or was finished by a version that did not keep them.
    """
    result.require_complete()
    file = result.path / "found.json"
    if not file.is_file():
        raise FormatError(
            f"expected the places of {result.path}",
            got="a scan that kept its hits only",
            hint=f"Name its places again, which takes a minute: cryoscan relabel {result.path}",
        )
    content = json.loads(file.read_text(encoding="utf-8"))
    plain = content["plain"]
    return FoundPlaces(
        hits_from_json(content["hits"]),
        np.array(content["volume_A3"], np.float64),
        None if content["confidence"] is None else np.array(content["confidence"], np.float64),
        float(content["threshold"]),
        ScanConfig.build(**result.provenance.config),
        tuple(tuple((s, t, n, float(c)) for s, t, n, c in some) for some in content["alternatives"]),
        tuple((str(scheme), str(type_)) for scheme, type_ in result.manifest["types"]),
        np.array(content["tile"], np.int64),
        np.array(content["region"], np.int64),
        str(content["digest"]),
        None if plain is None else tuple(None if one is None else (*one[:3], float(one[3])) for one in plain),
        None if plain is None else np.array(content["changed"], bool),
    )
