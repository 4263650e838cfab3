"""Maps and their models before and after sharpening: experimental maps, held-out domains, speed, and naming.

The arms are reported apart. *None*: the network sees the density alone. *Perturbed*: it is
told of a poor model of the protein, bent by 3 Å and with its side chains cut off, as of a
prediction or a relative. *Homologue*: it is told of a real relative among the folder's
chains, 25 to 60 % identical and of the same fold, laid onto the model by its C-alpha atoms;
of maps and domains that have one. *Deposited*: it is told of the very model that the result is judged by, which is
circular and shows no more than what could be gained at best. *Classical* is no
network: the spectrum is scaled to that of proteins at the resolution, as a B-factor and a
low-pass do at best.
"""

import os
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
import torch

from cryoscan.benchmark.config import BenchmarkConfig
from cryoscan.benchmark.folders import ModelledMap, modelled_maps, open_chains, read_tables
from cryoscan.benchmark.homologues import Relatives, relatives_of_store
from cryoscan.benchmark.real_maps import run_real_maps
from cryoscan.benchmark.result import BenchmarkProgress, BenchmarkResult, Table, decimals
from cryoscan.benchmark.retrieval import choose_queries
from cryoscan.datedb import DateDB
from cryoscan.datedb.held_out import identity, sequences_of
from cryoscan.embedding import Embedder
from cryoscan.enhance import background_of, enhanced, open_network, shipped_network
from cryoscan.errors import CryoscanError, FormatError
from cryoscan.filters import frequency_grid, lowpass_cut, lowpass_gaussian, resample_onto
from cryoscan.io import open_volume, read_structure
from cryoscan.metrics import (
    cc_box,
    cc_mask,
    cc_peaks,
    fsc,
    mask_around,
    resolution_at,
    trace_coverage,
)
from cryoscan.models.checkpoint import tower_provenance
from cryoscan.models.cryosamu import CryoSamu
from cryoscan.models.structure_embedding import StructureEmbedder, embedder_named
from cryoscan.simulate import density
from cryoscan.structure import Structure
from cryoscan.train.library import Anchor, AtomLibrary
from cryoscan.train.pairs import TARGET_SIGMA, PairConfig, simulated_pairs
from cryoscan.units import SIGMA_PER_RESOLUTION, Angstrom
from cryoscan.volume import Volume

Numbers = dict[str, float]

ARMS = ("classical", "none", "perturbed", "homologue", "deposited")
"""What is compared with the map as it is."""

_TOLD = ARMS[2:]  # of a structure

PARTS = {
    "experimental": "Experimental maps, cut off at each resolution",
    "blurred": "The same maps, blurred to each resolution",
    "known": "Experimental maps that the network knows, of proteins with a relative, cut off",
    "simulated": "Held-out domains, simulated",
}
"""What is measured. Maps of proteins that the network has learned from, or was watched with, say nothing of what it is
worth; what a relative adds there to the same map without it is asked all the same, since few maps have one."""

METRICS = (
    "cc_box", "cc_mask", "cc_peaks", "cc_mask_sharp", "fsc05", "fsc0143", "mean_fsc", "coverage2", "coverage3",
)  # fmt: skip
"""Correlations with the model's density at the resolution of the input (``_sharp``: at 4.8 Å); Å at which the Fourier
shell correlation with the model falls to 0.5 and 0.143; its mean up to 3.5 Å; fractions of the C-alpha atoms with a
ridge within 2 and 3 Å."""

_LEAST_CORRELATION = 0.65  # of map and model at 8 Å, as on the poster of CryoSAMU
_COARSE: Angstrom = 8.0
_GRID: Angstrom = 1.25  # on which maps are compared
_FINEST: Angstrom = 3.5
_SHARP: Angstrom = TARGET_SIGMA / SIGMA_PER_RESOLUTION
_WORST: Angstrom = 30.0  # stands for a shell correlation that is low from the start
_SAME = 0.05  # Å: a map that is about as good as the resolution asked for is taken as it is
_MAX_IDENTITY = 0.30
_BEND: Angstrom = 3.0
_WAVES = 6
_WAVELENGTH: tuple[Angstrom, Angstrom] = (40.0, 80.0)
_WINDOW = 56  # voxels of the network's grid, of simulated maps
_TIMES = 2000  # samples of a bootstrap
# Amplitudes of proteins of point atoms in units of that at 1/10 Å: medians over 40 chains of 120 to 500 residues.
_PROTEIN_S = np.arange(0.10, 0.33, 0.02)
_PROTEIN_AMPLITUDE = (1.000, 0.812, 0.692, 0.672, 0.719, 0.811, 0.840, 0.795, 0.753, 0.710, 0.664, 0.630)


def run_enhance(
    config: BenchmarkConfig, asked: Path, *, data: Path | None, datedb: DateDB, embedder: Embedder
) -> Iterator[BenchmarkProgress | BenchmarkResult]:
    """Measure what sharpening does to maps; see the module's docstring and `run_benchmark`.

    Experimental maps are cut off at each of `resolutions_A` that they reach (a cosine from 1/R
    to 1.1/R: nothing finer is left), and taken once more blurred to it by the Gaussian of the
    house. Maps whose correlation with their model is below 0.65 at 8 Å are left out, and all
    whose protein is more than 30 % identical to one that the network has learned from.
    """
    network = open_network(config.weights)
    teller = embedder_named(network.config.structure)
    learned = _learned(config.weights)
    notes: list[str] = []
    sources, known, left = _held_out(asked, data, learned)
    notes += left
    rows: list[dict[str, Any]] = []
    relatives = _relatives(asked, data, notes)
    for done, source in enumerate((*sources, *known)):
        yield BenchmarkProgress("experimental maps", done, len(sources) + len(known))
        try:
            mine = list(_experimental(source, config, network, teller, relatives, notes, known=source in known))
            rows += mine
            if not mine and source in sources:
                notes.append(f"{source.name} reaches none of the resolutions asked for")
        except CryoscanError as error:
            notes.append(f"{source.name} was left out: {error}")
    queries = _domains(asked, datedb, config, notes)
    for done, structure in enumerate(queries):
        yield BenchmarkProgress("simulated maps", done, len(queries))
        rows += _simulated(structure, config, network, teller, relatives, seed=config.seed + done)
    if not rows:
        raise FormatError(
            f"expected maps with models, or domains, in {asked}",
            got="; ".join(notes) or "none",
            hint="Give a folder with maps/ and maps_models/, or structures/ and labels/.",
        )
    numbers: dict[str, Any] = {}
    for part in PARTS:
        numbers |= _summed(part, [row for row in rows if row["part"] == part], config)
    numbers |= _speed(network, config.speed_voxels)
    for resolution in config.identified_A if sources else ():
        for arm in ("before", "after"):
            yield BenchmarkProgress(f"naming at {resolution:g} Å, {arm}", 0, 1)
            numbers |= _named(config, asked, datedb, embedder, network, sources, resolution, arm, notes)
    numbers["enhance.details"] = rows
    yield BenchmarkResult(numbers, tuple(_tables(numbers, rows, config)), tuple(notes))


# ---------------------------------------------------------------- which maps, which domains


def _learned(weights: Path | None) -> dict[str, set[str]]:
    """Experimental maps that a network has learned from or was chosen by, and what is kept of their sequences."""
    provenance = tower_provenance(weights or shipped_network())
    names = [*provenance.config.get("real_train", []), *provenance.config.get("real_validation", [])]
    return {name: set(provenance.inputs.get(name, "").split(",")) - {""} for name in names}


def _held_out(
    asked: Path, data: Path | None, learned: Mapping[str, set[str]]
) -> tuple[list[ModelledMap], list[ModelledMap], list[str]]:
    """Maps of proteins that the network does not know, of those that it does, and what was left out."""
    if not (asked / "maps").is_dir():
        return [], [], [f"{asked} holds no maps"]
    sources, notes = modelled_maps(asked)
    proteins = {
        name: kept or {sequence for folder in {asked, data or asked} for sequence in _sequences(folder, name)}
        for name, kept in learned.items()
    }
    lost = sorted(name for name, sequences in proteins.items() if not sequences)
    if lost:
        notes.append(f"{', '.join(lost)} are not at hand: relatives of them among the maps cannot be recognised")
    known = set().union(*proteins.values())
    found, kin = [], []
    for source in sources:
        try:
            mine = sequences_of(read_structure(source.model_path))
        except CryoscanError as error:
            notes.append(f"{source.name}: the model cannot be read: {error}")
            continue
        if source.name in learned or any(identity(a, b) > _MAX_IDENTITY for a in mine for b in known):
            kin.append(source)
        else:
            found.append(source)
    if kin:
        names = ", ".join(source.name for source in kin)
        notes.append(f"not counted, of proteins that the network has learned from: {names}")
    return found, kin, notes


def _sequences(folder: Path, name: str) -> set[str]:
    if not (folder / "maps_models").is_dir():
        return set()
    sources, _ = modelled_maps(folder)
    mine = [source for source in sources if source.name == name]
    return {sequence for source in mine for sequence in sequences_of(read_structure(source.model_path))}


def _domains(asked: Path, datedb: DateDB, config: BenchmarkConfig, notes: list[str]) -> list[Structure]:
    """Held-out domains: those that the retrieval benchmark asks for, which training stays away from."""
    if not (asked / "structures").is_dir() or not (asked / "labels").is_dir() or config.n_queries < 1:
        notes.append(f"{asked} holds no structures with labels: nothing was simulated")
        return []
    rows = [row for row in read_tables(asked).rows if row.scheme == "CATH"]
    store = open_chains(asked)
    chosen = choose_queries(rows, datedb, config, largest_types=config.cath_types)[: config.n_queries]
    return [store.domain(row).protein() for row in chosen]


def _relatives(asked: Path, data: Path | None, notes: list[str]) -> Relatives | None:
    """The chains among which the maps' proteins may have relatives."""
    for folder in dict.fromkeys((asked, data or asked)):
        if (folder / "structures").is_dir():
            return relatives_of_store(open_chains(folder))
    notes.append(f"{asked} holds no structures: no relatives of the maps' proteins were looked for")
    return None


# ---------------------------------------------------------------- one map


def _experimental(
    source: ModelledMap,
    config: BenchmarkConfig,
    network: CryoSamu,
    teller: StructureEmbedder,
    relatives: Relatives | None,
    notes: list[str],
    *,
    known: bool,
) -> Iterator[dict[str, Any]]:
    """The numbers of a map; of one that the network knows only if its protein has a relative."""
    volume = open_volume(source.map_path, voxel_size=source.voxel_size).loaded()
    structure = read_structure(source.model_path).protein()
    volume = Volume(volume.load() - background_of(volume.load()), volume.voxel_size, volume.origin)
    own = source.resolution or 2 * volume.voxel_size
    coarse = lowpass_cut(volume.load(), voxel_size=volume.voxel_size, resolution=max(_COARSE, own))
    alike = cc_box(coarse, _model_on(volume, structure, max(_COARSE, own)))
    if not alike >= _LEAST_CORRELATION:  # no number at all where no atom lies in the map
        raise FormatError(
            "expected a model that explains the map",
            got=f"a correlation of {alike:.2f} at {_COARSE:g} Å",
            hint=f"At least {_LEAST_CORRELATION} is asked for.",
        )
    reached = [at for at in config.resolutions_A if at >= max(own - _SAME, 2 * volume.voxel_size)]
    if not reached:
        return
    told, about = _told(structure, relatives, seed=config.seed)
    notes.append(f"{source.name}: {'; '.join(about.get('homologues', ())) or 'no relative among the chains'}")
    if known and not about:
        return
    for resolution in reached:
        for part in ("known",) if known else ("experimental", "blurred"):
            low = _lowered(volume, resolution, part)
            arms = {
                "before": low,
                "classical": Volume(rescaled(low, resolution), low.voxel_size, low.origin),
                "none": enhanced(low, network),
            }
            for arm, model in told.items():
                arms[arm] = enhanced(low, network, structure=model, embedder=teller, placed=False)
            yield {
                "part": part,
                "map": source.name,
                "resolution": resolution,
                "own_resolution": own,
                **about,
                **{arm: _agreement(_compared(one), structure, resolution) for arm, one in arms.items()},
            }


def _told(
    structure: Structure, relatives: Relatives | None, *, seed: int
) -> tuple[dict[str, Structure], dict[str, Any]]:
    """What the network is told of a protein in each arm, and who its relatives are if it has any."""
    told = {"perturbed": perturbed(structure, seed=seed), "deposited": structure}
    relative = None if relatives is None else relatives.of(structure)
    if relative is None:
        return told, {}
    return told | {"homologue": relative.structure}, {
        "homologues": list(relative.about),
        "homologue_identity": relative.identity,
        "homologue_tm_score": relative.tm_score,
        "homologue_rmsd": relative.rmsd,
    }


def _lowered(volume: Volume, resolution: Angstrom, part: str) -> Volume:
    if part == "blurred":
        sigma = SIGMA_PER_RESOLUTION * resolution
        data = lowpass_gaussian(volume.load(), voxel_size=volume.voxel_size, sigma=sigma)
    else:
        data = lowpass_cut(volume.load(), voxel_size=volume.voxel_size, resolution=resolution)
    return Volume(data, volume.voxel_size, volume.origin)


def _compared(volume: Volume) -> Volume:
    """A map on the grid on which maps are compared."""
    z, y, x = (int((size - 1) * volume.voxel_size / _GRID) + 1 for size in volume.shape)
    return resample_onto(volume, voxel_size=_GRID, origin=volume.origin, shape=(z, y, x))


def _model_on(grid: Volume, structure: Structure, resolution: Angstrom) -> np.ndarray:
    at = max(resolution, 1.8 * grid.voxel_size)
    model = density(structure, voxel_size=grid.voxel_size, resolution=at, shape=grid.shape, origin=grid.origin)
    return model.load()


def _agreement(volume: Volume, structure: Structure, resolution: Angstrom) -> Numbers:
    mask = mask_around(
        structure.positions,
        radius=resolution / 2,
        shape=volume.shape,
        voxel_size=volume.voxel_size,
        origin=volume.origin,
    )
    model, sharp = (_model_on(volume, structure, at) for at in (resolution, _SHARP))
    trace = structure.positions[structure.names == "CA"]
    near = trace_coverage(volume.load(), trace, voxel_size=volume.voxel_size, origin=volume.origin)
    found = _compare(volume.load(), model, sharp, mask, volume.voxel_size)
    return found | {"coverage2": near[0], "coverage3": near[1]}


def _compare(
    values: np.ndarray, model: np.ndarray, sharp: np.ndarray, mask: np.ndarray, voxel_size: Angstrom
) -> Numbers:
    frequencies, correlation = fsc(values, sharp, voxel_size=voxel_size)
    return {
        "cc_box": cc_box(values, model),
        "cc_mask": cc_mask(values, model, mask),
        "cc_peaks": cc_peaks(values, model, mask),
        "cc_mask_sharp": cc_mask(values, sharp, mask),
        "fsc05": min(resolution_at(frequencies, correlation, 0.5), _WORST),
        "fsc0143": min(resolution_at(frequencies, correlation, 0.143), _WORST),
        "mean_fsc": float(correlation[frequencies <= 1 / _FINEST].mean()),
    }


def rescaled(volume: Volume, resolution: Angstrom) -> np.ndarray:
    """A map whose spectrum falls, from 10 Å on, as that of proteins at a resolution; what is not there stays away.

    This needs no model of the protein: spectra of proteins are much alike beyond 10 Å
    (Wilson 1942, Nature 150, 152). The phases stay, and with them the Fourier shell correlation.
    """
    data = volume.load()
    z, y, x = data.shape
    transform = scipy.fft.rfftn(data)
    width = 1 / (max(data.shape) * volume.voxel_size)
    shells = np.rint(frequency_grid((z, y, x), volume.voxel_size) / width).astype(np.int64)
    power = np.bincount(shells.ravel(), np.abs(transform).ravel() ** 2) / np.bincount(shells.ravel()).clip(1)
    amplitude, s = np.sqrt(power), np.arange(len(power)) * width
    protein = np.interp(s, _PROTEIN_S, _PROTEIN_AMPLITUDE) * np.exp(-((s * resolution) ** 2))
    start = round(0.1 / width)
    gain = np.divide(protein * amplitude[start] / protein[start], amplitude, out=np.zeros_like(s), where=amplitude > 0)
    gain[:start] = 1
    gain[s > 1 / resolution] = gain[s <= 1 / resolution][-1]  # what was cut off there is not brought back
    gain[s > 1.1 / resolution] = 0
    sharp: np.ndarray = scipy.fft.irfftn(transform * gain[shells], s=data.shape).astype(np.float32)
    return sharp


def perturbed(structure: Structure, *, seed: int) -> Structure:
    """A poor model of a protein: bent smoothly by 3 Å (root mean square), without side chains beyond C-beta."""
    kept = structure.select(np.isin(structure.names, ("N", "CA", "C", "O", "CB")) & ~structure.nucleic)
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(_WAVES, 3))
    lengths = rng.uniform(*_WAVELENGTH, size=(_WAVES, 1))
    waves = directions / np.linalg.norm(directions, axis=1, keepdims=True) / lengths
    phases = 2 * np.pi * (kept.positions @ waves.T + rng.uniform(size=_WAVES))
    field = np.sin(phases) @ rng.normal(size=(_WAVES, 3))
    field *= _BEND / np.sqrt((field**2).sum(axis=1).mean())
    names = np.where(kept.residue_names == "GLY", "GLY", "ALA")
    return replace(kept, positions=kept.positions + field, residue_names=names, id=f"{structure.id}, perturbed")


# ---------------------------------------------------------------- simulated


def _simulated(
    structure: Structure,
    config: BenchmarkConfig,
    network: CryoSamu,
    teller: StructureEmbedder,
    relatives: Relatives | None,
    *,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """A domain alone, noisy and unmasked, at each resolution; judged by the sharp density of the same atoms."""
    key = structure.id
    anchor = Anchor(key, (), key, key, ((0, structure.n_residues),), "test")
    library = AtomLibrary.of_chains([(key, structure)], anchors=[anchor], neighbours=[key])
    voxel_size = network.config.voxel_size_A
    told, about = _told(structure, relatives, seed=seed)
    for resolution in config.resolutions_A:
        how = PairConfig(resolution_A=(resolution, resolution), noise_limited=1.0, neighbours=(0, 0), masked=0.0)
        rng = torch.Generator().manual_seed(seed)
        pairs = simulated_pairs(
            library, torch.zeros(1, dtype=torch.int64), config=how, rng=rng, window=_WINDOW, voxel_size=voxel_size
        )
        sharp = pairs.sharp_BZYX[0].numpy()
        more = max((SIGMA_PER_RESOLUTION * resolution) ** 2 - TARGET_SIGMA**2, 0.0) ** 0.5
        model = lowpass_gaussian(sharp, voxel_size=voxel_size, sigma=more)
        mask = model > 0.2 * float(model.max())
        low = Volume(pairs.map_BZYX[0].numpy(), voxel_size)
        arms = {
            "before": low.load(),
            "classical": rescaled(low, resolution),
            "none": enhanced(low, network).load(),
        }
        for arm, model_of in told.items():
            arms[arm] = enhanced(low, network, structure=model_of, embedder=teller, placed=False).load()
        yield {
            "part": "simulated",
            "map": key,
            "resolution": resolution,
            **about,
            **{arm: _compare(values, model, sharp, mask, voxel_size) for arm, values in arms.items()},
        }


# ---------------------------------------------------------------- speed, naming


def _speed(network: CryoSamu, edges: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "enhance.speed.cores": os.cpu_count() or 1,
        "enhance.speed.threads": torch.get_num_threads(),
    }
    rng = np.random.default_rng(0)
    for edge in edges:
        volume = Volume(rng.normal(size=(edge,) * 3).astype(np.float32), 1.0)
        wall, processor = time.monotonic(), time.process_time()
        enhanced(volume, network)
        found[f"enhance.speed.{edge}.wall_s"] = time.monotonic() - wall
        found[f"enhance.speed.{edge}.processor_s"] = time.process_time() - processor
        found[f"enhance.speed.{edge}.peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found


def _named(
    config: BenchmarkConfig,
    asked: Path,
    datedb: DateDB,
    embedder: Embedder,
    network: CryoSamu,
    sources: Sequence[ModelledMap],
    resolution: Angstrom,
    arm: str,
    notes: list[str],
) -> dict[str, Any]:
    """How often chains of the maps, cut off at a resolution, are named first, under the mask 3 Å around their atoms."""
    allowed = {source.name for source in sources}

    def chosen(found: Sequence[ModelledMap]) -> list[ModelledMap]:
        mine = [s for s in found if s.name in allowed and (s.resolution or 0) <= resolution + _SAME]
        return [replace(source, resolution=resolution) for source in mine]

    def changed(_: ModelledMap, volume: Volume) -> Volume:
        centred = Volume(volume.load() - background_of(volume.load()), volume.voxel_size, volume.origin)
        low = _lowered(centred, resolution, "experimental")
        return enhanced(low, network) if arm == "after" else low

    found: dict[str, Any] = {}
    try:
        *_, last = run_real_maps(config, asked, datedb=datedb, embedder=embedder, prepared=chosen, changed=changed)
    except CryoscanError as error:
        notes.append(f"nothing was named at {resolution:g} Å: {error}")
        return found
    assert isinstance(last, BenchmarkResult)
    for k in (1, 5, 10):
        for mask in ("mask3A", "mask6A"):
            found[f"enhance.named.{resolution:g}A.{mask}.top{k}.{arm}"] = last.numbers[f"real_maps.{mask}.top{k}"]
    found[f"enhance.named.{resolution:g}A.n"] = last.numbers["real_maps.mask3A.n"]
    return found


# ---------------------------------------------------------------- numbers


def _summed(part: str, rows: Sequence[Mapping[str, Any]], config: BenchmarkConfig) -> dict[str, Any]:
    """Means over all maps and over those of each resolution, and how many are worse than before."""
    found: dict[str, Any] = {f"enhance.{part}.n": len(rows)}
    if not rows:
        return found
    bins = {"": list(rows)} | {
        f"{resolution:g}A.": [row for row in rows if row["resolution"] == resolution]
        for resolution in config.resolutions_A
    }
    for prefix, mine in bins.items():
        if not mine:
            continue
        if prefix:
            found[f"enhance.{part}.{prefix}n"] = len(mine)
        for metric in (name for name in METRICS if name in mine[0]["before"]):
            key = f"enhance.{part}.{prefix}"
            found[f"{key}{metric}.before"] = _mean([row["before"][metric] for row in mine])
            found[f"{key}{metric}.after"] = _mean([row["none"][metric] for row in mine])
            for arm in ("classical", *_TOLD):
                of_arm = [row for row in mine if arm in row]
                if of_arm:
                    found[f"{key}{arm}.{metric}.after"] = _mean([row[arm][metric] for row in of_arm])
    gains = np.array([row["none"]["cc_mask"] - row["before"]["cc_mask"] for row in rows])
    found[f"enhance.{part}.worse"] = float(np.mean(gains < 0))
    found[f"enhance.{part}.worse_maps"] = [
        f"{row['map']} at {row['resolution']:g} Å" for row, gain in zip(rows, gains, strict=True) if gain < 0
    ]
    for arm in _TOLD:
        per_map: dict[str, list[float]] = {}
        for row in (row for row in rows if arm in row):
            per_map.setdefault(row["map"], []).append(row[arm]["cc_mask"] - row["none"]["cc_mask"])
        if not per_map:
            continue
        helped = np.array([np.mean(values) for values in per_map.values()])
        draws = np.random.default_rng(config.seed).choice(helped, size=(_TIMES, len(helped))).mean(axis=1)
        low, high = np.quantile(draws, (0.025, 0.975))
        key = f"enhance.{part}.{arm}.cc_mask.gain_over_none"
        found |= {key: float(helped.mean()), f"{key}_low": float(low), f"{key}_high": float(high)}
        found[f"{key}_n"] = len(per_map)
    return found


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _tables(numbers: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], config: BenchmarkConfig) -> Iterator[Table]:
    for part, title in PARTS.items():
        if not numbers.get(f"enhance.{part}.n"):
            continue
        lines = []
        for prefix in ("", *(f"{resolution:g}A." for resolution in config.resolutions_A)):
            for metric in METRICS:
                key = f"enhance.{part}.{prefix}"
                if f"{key}{metric}.before" not in numbers:
                    continue
                values = [numbers[f"{key}{metric}.before"], numbers[f"{key}classical.{metric}.after"]]
                values += [numbers[f"{key}{metric}.after"]]
                told = [numbers.get(f"{key}{arm}.{metric}.after") for arm in _TOLD]
                shown = [decimals(value) if value is not None else "–" for value in (*values, *told)]
                lines.append((prefix.rstrip(".") or "all", metric, *shown))
        count = len({row["map"] for row in rows if row["part"] == part})
        columns = ("resolution", "number", "before", "classical", "none", *_TOLD[:-1], "deposited (circular)")
        yield Table(f"{title}: {count}", columns, tuple(lines))
    named = [key for key in numbers if key.startswith("enhance.named.") and key.endswith(".before")]
    if named:
        pairs = [(key.removeprefix("enhance.named.").removesuffix(".before"), key) for key in named]
        yield Table(
            "Chains named first, with and without enhancement",
            ("asked", "before", "after"),
            tuple(
                (name, decimals(numbers[key]), decimals(numbers.get(key.replace(".before", ".after"), float("nan"))))
                for name, key in pairs
            ),
        )
    yield Table(
        f"Speed with {numbers['enhance.speed.threads']} threads",
        ("voxels", "wall", "processor", "peak memory"),
        tuple(
            (
                f"{edge}³",
                f"{numbers[f'enhance.speed.{edge}.wall_s']:.1f} s",
                f"{numbers[f'enhance.speed.{edge}.processor_s']:.1f} s",
                f"{numbers[f'enhance.speed.{edge}.peak_bytes'] / 2**30:.2f} GiB",
            )
            for edge in config.speed_voxels
        ),
    )
