"""The file of a network: weights as safetensors, and in the header what they are and where they come from."""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from cryoscan.errors import ConfigError, FormatError, require_file
from cryoscan.models.atom_tower import AtomTower, AtomTowerConfig
from cryoscan.models.comparison import Comparison, ComparisonConfig
from cryoscan.models.cryosamu import CryoSamu, CryoSamuConfig
from cryoscan.models.density_tower import DensityTower, TowerConfig
from cryoscan.models.secondary import SecondaryConfig, SecondaryNet
from cryoscan.models.shape_tower import ShapeTower, ShapeTowerConfig
from cryoscan.provenance import Provenance, write_atomically

Tower = DensityTower | ShapeTower
Network = DensityTower | ShapeTower | AtomTower | CryoSamu | SecondaryNet | Comparison
N = TypeVar("N", bound=Network)
_Config = TowerConfig | ShapeTowerConfig | AtomTowerConfig | CryoSamuConfig | SecondaryConfig | ComparisonConfig
_KINDS: dict[str, tuple[type[Network], type[_Config]]] = {
    "cryoscan density tower": (DensityTower, TowerConfig),
    "cryoscan shape tower": (ShapeTower, ShapeTowerConfig),
    "cryoscan atom tower": (AtomTower, AtomTowerConfig),
    "cryoscan enhancing network": (CryoSamu, CryoSamuConfig),
    "cryoscan secondary-structure network": (SecondaryNet, SecondaryConfig),
    "cryoscan comparison": (Comparison, ComparisonConfig),
}
_CHANNELS_LAST = (CryoSamu, SecondaryNet)  # quicker so on a processor
_FORMAT_VERSION = 1


def save_network(network: Network, path: Path | str, *, provenance: Provenance, half_precision: bool = False) -> None:
    """Write a network's configuration, weights and provenance to one ``.safetensors`` file.

    Parameters
    ----------
    network : DensityTower, ShapeTower, AtomTower, CryoSamu, SecondaryNet or Comparison
    path : Path
        Written beside, then renamed; an older file is replaced.
    provenance : Provenance
    half_precision : bool
        Store weights as float16, half the size. They are rounded to three digits, so the file's
        network has a fingerprint of its own.
    """
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
    write_atomically(Path(path), save(tensors, metadata=header))


def load_network(path: Path | str, wanted: type[N]) -> N:
    """Read a network of one kind, ready for evaluation.

    Raises
    ------
    FormatError
        If the file is damaged, of another kind or version, or its weights do not fit its configuration.
    """
    network = _load(Path(path), wanted)
    assert isinstance(network, wanted)
    return network


def load_tower(path: Path | str) -> Tower:
    """Read a tower of densities of either kind, as `load_network` reads one."""
    network = _load(Path(path), DensityTower, ShapeTower)
    assert isinstance(network, DensityTower | ShapeTower)
    return network


def tower_provenance(path: Path | str) -> Provenance:
    """Who made the file of a tower or an enhancing network, and from what."""
    header, _ = _read(Path(path), *_KINDS)
    try:
        return Provenance.from_json(json.loads(header["provenance"]))
    except (KeyError, json.JSONDecodeError) as error:
        raise FormatError(
            f"expected the provenance of a tower in {path}", got=str(error), hint="Get or write the file anew."
        ) from error


def _load(path: Path, *wanted: type[nn.Module]) -> Network:
    header, tensors = _read(path, *(kind for kind, (made, _) in _KINDS.items() if made in wanted))
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
    if made in _CHANNELS_LAST:
        network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
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
