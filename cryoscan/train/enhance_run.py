"""From a configuration and a folder of data to a trained enhancing network: what is drawn, watched and written."""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cryoscan.enhance import background_of, enhanced
from cryoscan.errors import CryoscanError, FormatError, MissingFileError
from cryoscan.filters import lowpass_butterworth, lowpass_cut
from cryoscan.io import StructureStore, open_volume, read_structure
from cryoscan.metrics import cc_box, cc_mask, fsc, mask_around, resolution_at
from cryoscan.models.checkpoint import load_network, save_network
from cryoscan.models.cryosamu import CryoSamu, Informants
from cryoscan.models.residue_weighting import batch_of, informants_of
from cryoscan.models.structure_embedding import StructureEmbedder, embed_chains, embedder_named
from cryoscan.provenance import Provenance
from cryoscan.simulate import density
from cryoscan.train.card import compose_card, fingerprint_line
from cryoscan.train.enhancement import enhance_objective
from cryoscan.train.folder import (
    CARD,
    NetworkTrained,
    begun,
    fingerprint_library,
    first_weights,
    library_of_run,
    to_the_end,
)
from cryoscan.train.library import AtomLibrary
from cryoscan.train.loop import TrainEvent, fit
from cryoscan.train.objectives import Numbers
from cryoscan.train.pairs import Pairs, RealPair, real_pairs, simulated_pairs, together
from cryoscan.train.state import CHECKPOINT, CURVES, averaged, read_curves
from cryoscan.units import Angstrom
from cryoscan.volume import Volume

if TYPE_CHECKING:
    from cryoscan.train.config import EnhanceTrainConfig

INFORMANTS, WEIGHTS = "informants.npz", "enhancer.safetensors"

LEAST_CORRELATION = 0.65
"""Of a map and its model, both at 8 Å, as on the poster of CryoSAMU; below it they are no pair."""

_COMPLETE = 0.85  # from here on the model explains all of the map
_COARSE: Angstrom = 8.0
_WATCHED: tuple[Angstrom, ...] = (5.0, 6.5, 8.0)
_FINEST: Angstrom = 3.2  # of maps that windows are cut from: what the network's grid carries, and a little more


def train_enhancer(
    config: "EnhanceTrainConfig",
    folder: Path | str,
    *,
    data: Path | str | None,
    until: int | None = None,
    device: str = "cpu",
) -> Iterator[TrainEvent | NetworkTrained]:
    """Train the enhancing network in a folder, or go on there; the last event of a whole run is `NetworkTrained`.

    Parameters
    ----------
    config : EnhanceTrainConfig
    folder : Path
        Of the run: library, residues, checkpoint, log, and at the end weights and model card.
    data : Path
        Data folder; needed to go on, too, where maps are named.
    until : int, optional
        Stop after this step.
    device : str
        Where the network computes; pairs are drawn on the processor.

    Raises
    ------
    MismatchError
        If the folder holds a run with other settings or other data.
    MissingFileError
        If neither the folder has a library nor data are given, or a named map is not there.
    FormatError
        If a named map and its model are no pair.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    library = library_of_run(folder, data)
    provenance = begun(folder, config, fingerprint_library(library), start_from=_begins_with(config))
    learned, watched = (_real_pairs(data, names) for names in (config.real_train, config.real_validation))
    network = _first(config).to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    embedder = embedder_named(config.network_config().structure)
    real_told = [_told_of(config, pair, embedder) for pair in learned]
    draw = _Draw(config, library, _library_informants(config, library, embedder, folder, data), learned, real_told)
    events = fit(
        network,
        functools.partial(enhance_objective, dropout=config.dropout),
        lambda step, rng: draw(rng).to(device),
        config.fit_settings(),
        folder,
        validate=functools.partial(watch, watched, embedder),
        until=until,
    )
    if not (yield from to_the_end(events)):
        return
    last = {name: float(values[-1]) for name, (_, values) in read_curves(folder / CURVES).items()}
    if config.blend < 1:
        _blend(network, _first(config).to(device), share=config.blend)
        last |= {f"validation/{name}": value for name, value in watch(watched, embedder, network).items()}
    from cryoscan.datedb.held_out import sequences_of  # brings all that databases need

    # by them relatives can be told where the maps are not at hand
    proteins = {pair.name: ",".join(sorted(sequences_of(pair.structure))) for pair in (*learned, *watched)}
    provenance = replace(provenance, inputs={**provenance.inputs, **proteins})
    save_network(network, folder / WEIGHTS, provenance=provenance)
    _write_card(folder / CARD, provenance, library, last)
    yield NetworkTrained(folder / WEIGHTS, folder / CARD, last)


def read_real_pair(data: Path | str, name: str) -> RealPair:
    """A map of a data folder and its model, as one pair.

    Raises
    ------
    MissingFileError
        If `maps/maps.json` does not name it, or a file is not there.
    FormatError
        If the model explains too little of the map.
    """
    data = Path(data)
    records = data / "maps" / "maps.json"
    known = json.loads(records.read_text(encoding="utf-8")) if records.is_file() else {}
    if name not in known:
        raise MissingFileError(
            f"expected the map {name} in {records}", got=f"{len(known)} others", hint="Name maps of the data folder."
        )
    volume = open_volume(data / "maps" / f"{name}.mrc.gz", voxel_size=float(known[name]["vox"][0])).loaded()
    values = volume.load() - background_of(volume.load())
    structure = read_structure(data / "maps_models" / f"{name}.pdb.gz").protein()
    coarse = lowpass_cut(values, voxel_size=volume.voxel_size, resolution=_COARSE)
    grid = {"voxel_size": volume.voxel_size, "shape": volume.shape, "origin": volume.origin}
    alike = cc_box(coarse, density(structure, resolution=_COARSE, **grid).load())  # type: ignore[arg-type]
    if not alike >= LEAST_CORRELATION:  # no number at all where no atom lies in the map
        raise FormatError(
            f"expected a model that explains the map {name}",
            got=f"a correlation of {alike:.2f} at {_COARSE:g} Å",
            hint=f"At least {LEAST_CORRELATION} is asked for; leave the map out.",
        )
    sharp = lowpass_butterworth(values, voxel_size=volume.voxel_size, resolution=_FINEST)
    volume = Volume(sharp, volume.voxel_size, volume.origin)
    return RealPair(name, volume, structure, alike >= _COMPLETE, float(known[name]["res"]))


def watch(pairs: Sequence[RealPair], embedder: StructureEmbedder, network: CryoSamu) -> Numbers:
    """Mean agreement of real maps with their models at several resolutions: before, after, after with the model."""
    rows: dict[str, list[float]] = {}
    for pair in pairs:
        for resolution in _WATCHED:
            data = lowpass_cut(pair.volume.load(), voxel_size=pair.volume.voxel_size, resolution=resolution)
            low = Volume(data, pair.volume.voxel_size, pair.volume.origin)
            arms = {
                "before": low,
                "after": enhanced(low, network),
                "deposited": enhanced(low, network, structure=pair.structure, embedder=embedder),
            }
            for arm, volume in arms.items():
                for key, value in _agreement(volume, pair, resolution).items():
                    rows.setdefault(f"{resolution:g}/{key}/{arm}", []).append(value)
    return {name: float(np.mean(values)) for name, values in rows.items()}


# ---------------------------------------------------------------- private


def _begins_with(config: "EnhanceTrainConfig") -> Path | None:
    """The file whose weights a run begins with: itself, or the checkpoint of a run."""
    start = config.start_from
    return start / CHECKPOINT if start is not None and start.is_dir() else start


def _first(config: "EnhanceTrainConfig") -> CryoSamu:
    """The network as a run begins with it."""
    sizes = config.network_config()
    network = first_weights(lambda: CryoSamu(sizes), seed=config.seed, start_from=None)
    if config.start_from is None:
        return network
    if config.start_from.is_dir():
        averaged(config.start_from, network)
        return network
    before = load_network(config.start_from, CryoSamu)
    return before.widened(sizes, rng=torch.Generator().manual_seed(config.seed))


@torch.no_grad()
def _blend(network: CryoSamu, first: CryoSamu, *, share: float) -> None:
    """Move a network back towards what it began with (Wortsman et al. 2022, CVPR, arXiv 2109.01903, section 3)."""
    kept = first.state_dict()
    for name, tensor in network.state_dict().items():
        tensor.copy_(torch.lerp(kept[name], tensor, share))


@dataclass(frozen=True, slots=True, eq=False)
class _Draw:
    """Draws the pairs of a step."""

    config: "EnhanceTrainConfig"
    library: AtomLibrary
    told: Informants
    real: Sequence[RealPair]
    real_told: Sequence[Informants]

    def __call__(self, rng: torch.Generator) -> Pairs:
        config, how = self.config, self.config.pair_config()
        shape = {"window": config.window, "voxel_size": config.network_config().voxel_size_A}
        rng = rng if rng.device.type == "cpu" else torch.Generator().manual_seed(rng.initial_seed())
        anchors = self.library.anchors_of("train")
        chosen = anchors[torch.randint(len(anchors), (config.batch,), generator=rng)]
        from_real = int((torch.rand(config.batch, generator=rng) < how.real).sum()) if self.real else 0
        parts, told = [], []
        if from_real < config.batch:
            some = chosen[from_real:]
            parts.append(simulated_pairs(self.library, some, config=how, rng=rng, **shape))  # type: ignore[arg-type]
            told.append(_rows(self.told, self.library.anchor_chains[some]))
        if from_real:
            which = torch.randint(len(self.real), (from_real,), generator=rng)
            parts.append(real_pairs(self.real, which, config=how, rng=rng, **shape))  # type: ignore[arg-type]
            told.append(batch_of([self.real_told[int(index)] for index in which]))
        both = together(parts)
        return Pairs(both.map_BZYX, both.sharp_BZYX, both.weight_BZYX, both.resolution_B, batch_of(told))


def _told_of(config: "EnhanceTrainConfig", pair: RealPair, embedder: StructureEmbedder) -> Informants:
    vectors, mask = embed_chains(pair.structure, embedder)
    return informants_of(vectors, mask, residues=config.network_config().residues, form=config.weighting)


def _rows(told: Informants, index: torch.Tensor) -> Informants:
    return Informants(told.vectors_BLD[index].float(), told.weights_BL[index].float(), told.mask_BL[index])


def _real_pairs(data: Path | str | None, names: Sequence[str]) -> list[RealPair]:
    if names and data is None:
        raise MissingFileError(
            f"expected the folder of the maps {', '.join(names)}", got="none", hint="Give --data FOLDER, with maps/."
        )
    return [read_real_pair(data, name) for name in names] if data is not None else []


def _library_informants(
    config: "EnhanceTrainConfig",
    library: AtomLibrary,
    embedder: StructureEmbedder,
    folder: Path,
    data: Path | str | None,
) -> Informants:
    """Residues of all chains that hold an anchor; kept in the run's folder. A chain that has no embedding has none."""
    path = folder / INFORMANTS
    if not path.exists():
        if data is None:
            raise MissingFileError(
                f"expected the residues of the library's chains in {path}, or data",
                got="neither",
                hint="Give --data FOLDER, with structures/.",
            )
        chains = Path(data) / "structures"
        store = StructureStore(chains, unlabelled=(chains / "unlabelled_chains.npz").is_file())
        network = config.network_config()
        count = len(library.chains)
        vectors = np.zeros((count, network.residues, network.structure_dim), np.float16)
        weights = np.ones((count, network.residues), np.float16)
        mask = np.zeros((count, network.residues), bool)
        for place in sorted(set(library.anchor_chains.tolist())):
            try:
                chain = embedder.embed(store.chain(library.chains[place]))
            except CryoscanError:
                continue
            real = torch.ones(1, len(chain), dtype=torch.bool)
            one = informants_of(chain[None], real, residues=network.residues, form=config.weighting)
            vectors[place], weights[place], mask[place] = one.vectors_BLD[0], one.weights_BL[0], one.mask_BL[0]
        beside = path.with_name(f".{path.name}")
        np.savez(beside, vectors=vectors, weights=weights, mask=mask)
        beside.replace(path)
    with np.load(path, allow_pickle=False) as archive:
        return Informants(*(torch.from_numpy(archive[name]) for name in ("vectors", "weights", "mask")))


def _agreement(volume: Volume, pair: RealPair, resolution: Angstrom) -> Numbers:
    values, grid = volume.load(), {"shape": volume.shape, "voxel_size": volume.voxel_size, "origin": volume.origin}
    model = density(pair.structure, resolution=resolution, **grid).load()  # type: ignore[arg-type]
    mask = mask_around(pair.structure.positions, radius=resolution / 2, **grid)  # type: ignore[arg-type]
    curve = fsc(values, model, voxel_size=volume.voxel_size)
    return {
        "cc_mask": cc_mask(values, model, mask),
        "fsc05": min(resolution_at(*curve, 0.5), 30.0),
        "mean_fsc": float(curve[1][curve[0] < 1 / 3.5].mean()),
    }


_LIMITS = """Made for maps of 4 to 8 Å of protein. Detail beyond the resolution of a map comes from what the network
has learned of proteins, not from the map: it may be wrong. A map that was sharpened with a structure must not be used
to judge that structure. Nucleic acids, lipids and sugars were not trained on."""


def _write_card(path: Path, provenance: Provenance, library: AtomLibrary, numbers: Numbers) -> None:
    """Write the model card: data, settings, seed, results, limits."""
    splits = [anchor.split for anchor in library.anchors]
    rows = sorted(name for name in numbers if name.startswith("validation/") and name.endswith("/before"))
    table = []
    for name in rows:
        _, resolution, key, _ = name.split("/")
        values = [numbers[name.replace("/before", f"/{arm}")] for arm in ("before", "after", "deposited")]
        table.append(f"| {resolution} Å | {key} | {' | '.join(f'{value:.3f}' for value in values)} |")
    data = [
        f"- chains of {splits.count('train')} domains, simulated as maps of 4 to 8 Å; none is of a sequence cluster, "
        "PDB entry or chain of a held-out domain or of an experimental map",
        f"- experimental maps learned from: {', '.join(provenance.config['real_train']) or 'none'}",
        f"- experimental maps watched: {', '.join(provenance.config['real_validation']) or 'none'}",
        fingerprint_line(provenance),
        f"- begun with the running mean of another run: `{provenance.inputs.get('start_from', 'no')}`",
    ]
    results = [
        "Means over the watched maps, cut off at each resolution: before, after, and after with the deposited model.",
        "",
        "| resolution | number | before | after | with the model |",
        "|---|---|---|---|---|",
        *table,
    ]
    compose_card(path, "A map-sharpening network", provenance, data=data, results=results, limits=_LIMITS)
