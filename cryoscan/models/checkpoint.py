"""The file of a network: weights as safetensors, and in the header what they are and where they come from."""

import json
from pathlib import Path
from typing import Any

import torch

from cryoscan.errors import ConfigError, FormatError, require_file
from cryoscan.models.atom_tower import AtomTower, AtomTowerConfig
from cryoscan.models.cryosamu import CryoSamu, CryoSamuConfig
from cryoscan.models.density_tower import DensityTower, TowerConfig
from cryoscan.models.secondary import SecondaryConfig, SecondaryNet
from cryoscan.models.shape_tower import ShapeTower, ShapeTowerConfig
from cryoscan.provenance import Provenance, write_atomically

Tower = DensityTower | ShapeTower
Network = DensityTower | ShapeTower | AtomTower | CryoSamu | SecondaryNet
_ENHANCER, _ATOMS = "cryoscan enhancing network", "cryoscan atom tower"
_SECONDARY = "cryoscan secondary-structure network"
_Config = TowerConfig | ShapeTowerConfig | AtomTowerConfig | CryoSamuConfig | SecondaryConfig
_KINDS: dict[str, tuple[type[Network], type[_Config]]] = {
    "cryoscan density tower": (DensityTower, TowerConfig),
    "cryoscan shape tower": (ShapeTower, ShapeTowerConfig),
    _ATOMS: (AtomTower, AtomTowerConfig),
    _ENHANCER: (CryoSamu, CryoSamuConfig),
    _SECONDARY: (SecondaryNet, SecondaryConfig),
}
_TOWERS = tuple(kind for kind in _KINDS if kind not in (_ATOMS, _ENHANCER, _SECONDARY))
_FORMAT_VERSION = 1


def save_tower(tower: Tower, path: Path | str, *, provenance: Provenance, half_precision: bool = False) -> None:
    """Write a tower's configuration, weights and provenance to one ``.safetensors`` file.

    Parameters
    ----------
    tower : DensityTower or ShapeTower
    path : Path
        Written beside, then renamed; an older file is replaced.
    provenance : Provenance
    half_precision : bool
        Store weights as float16, half the size. They are rounded to three digits, so the file's
        tower has a fingerprint of its own.
    """
    _write(tower, Path(path), provenance=provenance, half_precision=half_precision)


def load_tower(path: Path | str) -> Tower:
    """Read a tower, ready for evaluation.

    Raises
    ------
    FormatError
        If the file is damaged, of another kind or version, or its weights do not fit its configuration.
    """
    network = _load(Path(path), *_TOWERS)
    assert isinstance(network, DensityTower | ShapeTower)
    return network


def save_atom_tower(
    tower: AtomTower, path: Path | str, *, provenance: Provenance, half_precision: bool = False
) -> None:
    """Write a tower of structures as `save_tower` writes one of densities."""
    _write(tower, Path(path), provenance=provenance, half_precision=half_precision)


def load_atom_tower(path: Path | str) -> AtomTower:
    """Read a tower of structures, ready for evaluation.

    Raises
    ------
    FormatError
        If the file is damaged, of another kind or version, or its weights do not fit its configuration.
    """
    network = _load(Path(path), _ATOMS)
    assert isinstance(network, AtomTower)
    return network


def save_enhancer(network: CryoSamu, path: Path | str, *, provenance: Provenance, half_precision: bool = False) -> None:
    """Write an enhancing network as `save_tower` writes a tower."""
    _write(network, Path(path), provenance=provenance, half_precision=half_precision)


def load_enhancer(path: Path | str) -> CryoSamu:
    """Read an enhancing network, ready for evaluation.

    Raises
    ------
    FormatError
        If the file is damaged, of another kind or version, or its weights do not fit its configuration.
    """
    network = _load(Path(path), _ENHANCER)
    assert isinstance(network, CryoSamu)
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def save_secondary(
    network: SecondaryNet, path: Path | str, *, provenance: Provenance, half_precision: bool = False
) -> None:
    """Write a secondary-structure network as `save_tower` writes a tower."""
    _write(network, Path(path), provenance=provenance, half_precision=half_precision)


def load_secondary(path: Path | str) -> SecondaryNet:
    """Read a secondary-structure network, ready for evaluation.

    Raises
    ------
    FormatError
        If the file is damaged, of another kind or version, or its weights do not fit its configuration.
    """
    network = _load(Path(path), _SECONDARY)
    assert isinstance(network, SecondaryNet)
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def tower_provenance(path: Path | str) -> Provenance:
    """Who made the file of a tower or an enhancing network, and from what."""
    header, _ = _read(Path(path), *_KINDS)
    try:
        return Provenance.from_json(json.loads(header["provenance"]))
    except (KeyError, json.JSONDecodeError) as error:
        raise FormatError(
            f"expected the provenance of a tower in {path}", got=str(error), hint="Get or write the file anew."
        ) from error


def _write(network: Network, path: Path, *, provenance: Provenance, half_precision: bool) -> None:
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if half_precision:
        # norms stay as they are: a running mean square may be beyond the range of float16
        tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    header = {
        "kind": next(kind for kind, (made, _) in _KINDS.items() if isinstance(network, made)),
        "format_version": str(_FORMAT_VERSION),
        "config": json.dumps(network.config.to_json()),
        "provenance": json.dumps(provenance.to_json()),
    }
    write_atomically(path, save(tensors, metadata=header))


def _load(path: Path, *kinds: str) -> Network:
    header, tensors = _read(path, *kinds)
    kind = header["kind"]
    made, settings = _KINDS[kind]
    try:
        network = made(settings.from_json(json.loads(header["config"])))  # type: ignore[arg-type]
    except (KeyError, json.JSONDecodeError, TypeError, ConfigError) as error:
        raise FormatError(
            f"expected the configuration of a {kind.removeprefix('cryoscan ')} in {path}",
            got=str(error) or type(error).__name__,
            hint="The file is damaged, or written by a newer version of cryoscan: update cryoscan.",
        ) from error
    _check(tensors, network.state_dict(), path)
    network.load_state_dict(tensors)
    return network.eval()


def _read(path: Path, *kinds: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    require_file(path, what="the .safetensors file of a network")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except (SafetensorError, OSError) as error:
        raise FormatError(
            f"expected a whole .safetensors file at {path}", got=str(error), hint="Copy or download the file again."
        ) from error
    if header.get("kind") not in kinds:
        wanted = " or ".join(kind.removeprefix("cryoscan ") for kind in kinds)
        raise FormatError(
            f"expected {'an' if wanted[0] in 'ae' else 'a'} {wanted} of cryoscan in {path}",
            got=f"a file of {header.get('kind', 'some other program')}",
            hint="Give a file that cryoscan train has written for this purpose.",
        )
    if header.get("format_version") != str(_FORMAT_VERSION):
        raise FormatError(
            f"expected format version {_FORMAT_VERSION} in {path}",
            got=str(header.get("format_version")),
            hint="Update cryoscan.",
        )
    return header, tensors


def _check(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], path: Path) -> None:
    """Refuse weights that are missing, too many, of another shape, or no numbers."""
    for name in sorted({*tensors, *expected}):
        there, wanted = (list(group[name].shape) if name in group else None for group in (tensors, expected))
        if there != wanted:
            raise FormatError(
                f"expected weights that fit the configuration in {path}",
                got=f"'{name}' of shape {there} in place of {wanted}",
                hint="Weights and configuration belong to different towers; save the tower again.",
            )
        if not torch.isfinite(tensors[name]).all():
            raise FormatError(
                f"expected finite weights in {path}",
                got=f"NaN or infinity in '{name}'",
                hint="The training diverged; take an earlier checkpoint.",
            )
