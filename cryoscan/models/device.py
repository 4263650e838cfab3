"""Which processor torch computes on: chosen once, at the door."""

import torch

from cryoscan.errors import ConfigError


def choose_device(name: str | None = None) -> str:
    """Torch's name of the device to use.

    Parameters
    ----------
    name : str, optional
        ``cpu``, ``cuda`` or ``cuda:<n>``; by default the first GPU, or the processor where there is none.

    Raises
    ------
    ConfigError
        If there is no such device.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    known = ["cpu", *(["cuda", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))] if _has_gpu() else [])]
    if name not in known:
        raise ConfigError(
            f"expected a device of this machine: {', '.join(known)}",
            got=repr(name),
            hint="A GPU needs a build of torch with CUDA; without --device the best one is taken.",
        )
    return name


def _has_gpu() -> bool:
    return bool(torch.cuda.is_available())
