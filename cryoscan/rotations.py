"""Sets of rotations."""

import numpy as np
from scipy.spatial.transform import Rotation

from cryoscan.errors import GeometryError
from cryoscan.units import Degree


def rotation_grid(angular_step: Degree) -> np.ndarray:
    """Return rotations that cover SO(3) evenly, `n 3 3`.

    A super-Fibonacci spiral (Alexa, CVPR 2022). The number of rotations is that of grids
    with the same mean distance of neighbours: 4,608 at 15 degrees, growing with the third power.
    """
    if not 0 < angular_step <= 180:
        raise GeometryError(
            "expected an angular step between 0 and 180 degrees", got=str(angular_step), hint="Usual steps are 8 to 20."
        )
    n = max(4, round(4608 * (15 / angular_step) ** 3))
    psi = 1.533751168755204288118041  # the real solution of psi⁴ = psi + 4
    s = np.arange(n) + 0.5
    r, rest = np.sqrt(s / n), np.sqrt(1 - s / n)
    alpha, beta = 2 * np.pi * s / np.sqrt(2), 2 * np.pi * s / psi
    quaternions = np.stack([r * np.sin(alpha), r * np.cos(alpha), rest * np.sin(beta), rest * np.cos(beta)], axis=1)
    matrices: np.ndarray = Rotation.from_quat(quaternions).as_matrix()
    return matrices
