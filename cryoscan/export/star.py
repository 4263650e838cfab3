"""STAR files of particle positions in RELION's two coordinate systems."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import starfile

from cryoscan.errors import FormatError, refuse_existing
from cryoscan.hits import Hits
from cryoscan.provenance import write_atomically
from cryoscan.volume import Volume

Convention = Literal["relion5", "relion3"]


def write_star(
    hits: Hits,
    path: Path | str,
    *,
    volume: Volume,
    convention: Convention = "relion5",
    tomogram_name: str,
    overwrite: bool = False,
) -> None:
    """Write hits as a RELION particle list, one table named ``particles``.

    Besides RELION's columns there are ``cryoscanType``, ``cryoscanScheme``,
    ``cryoscanName``, ``cryoscanEntry`` and ``cryoscanMargin``; blanks and quotes in names
    become underscores, because not every reader of STAR files knows quoted values. The
    label of a hit is its ``rlnClassNumber``, the score its ``rlnAutopickFigureOfMerit``.

    Parameters
    ----------
    hits : Hits
        In the order in which they are written.
    path : path
        Of the STAR file.
    volume : Volume
        The whole tomogram in which the hits were found, not a part of it: RELION counts
        from its centre or corner.
    convention : str
        ``relion5``: ``rlnCenteredCoordinate{X,Y,Z}Angst``, Å from the tomogram's centre.
        ``relion3``: ``rlnCoordinate{X,Y,Z}``, voxels of `volume` counted from 0, and the
        voxel size as ``rlnDetectorPixelSize`` at a magnification of 10,000. RELION 4 reads
        the same columns in pixels of the unbinned tilt series: multiply by the binning.
    tomogram_name : str
        ``rlnTomoName``, as the tomogram is called in RELION's tomogram table.
    overwrite : bool
        Replace a file that exists.

    Raises
    ------
    FormatError
        If the convention is unknown or the name holds blanks or quotes.
    """
    write_star_of_many([(tomogram_name, hits, volume)], path, convention=convention, overwrite=overwrite)


def write_star_of_many(
    parts: Sequence[tuple[str, Hits, Volume]],
    path: Path | str,
    *,
    convention: Convention = "relion5",
    overwrite: bool = False,
) -> None:
    """Write the hits of several tomograms as one RELION particle list; see `write_star`.

    Parameters
    ----------
    parts : sequence of (str, Hits, Volume)
        Name, hits and grid of each tomogram, in the order in which they are written.
    """
    if convention not in ("relion5", "relion3"):
        raise FormatError(
            "expected the convention 'relion5' or 'relion3'", got=repr(convention), hint="RELION 4 reads 'relion3'."
        )
    tables = [_columns(hits, volume, convention=convention, tomogram_name=name) for name, hits, volume in parts]
    path = refuse_existing(Path(path), overwrite=overwrite)
    particles = pd.concat([table for table in tables if len(table)] or tables[:1] or [pd.DataFrame()])
    write_atomically(path, starfile.to_string({"particles": particles}, float_format="%.6f"))


def centred_positions_xyz(hits: Hits, volume: Volume) -> np.ndarray:
    """Positions in Å from the centre of a tomogram as RELION 5 defines it, `n 3`, x y z.

    RELION adds half the tomogram's size, a fraction for odd sizes, to a centred coordinate
    and takes the sum as an index that counts from 0 (``Tomogram::centre`` in
    src/jaz/tomography/tomogram_set.cpp and ``getParticleCoordDecenteredPixel`` in
    particle_set.cpp of RELION 5; see also github.com/3dem/relion/issues/1137). The centre is
    therefore index size / 2, not (size − 1) / 2. RELION's napari picker subtracts
    size / 2 − 1 instead, one unbinned pixel less; we follow the program that extracts.
    """
    indices = volume.to_index(hits.positions)
    centred: np.ndarray = (indices - np.array(volume.shape) / 2) * volume.voxel_size
    return centred[:, ::-1]


def _columns(hits: Hits, volume: Volume, *, convention: Convention, tomogram_name: str) -> pd.DataFrame:
    if not re.fullmatch(r"""[^\s'"#]+""", tomogram_name):
        raise FormatError(
            "expected a tomogram name without blanks, quotes or '#'",
            got=repr(tomogram_name),
            hint="Give the name that rlnTomoName has in RELION's tomogram table.",
        )
    columns: dict[str, object] = {"rlnTomoName": [tomogram_name] * len(hits)}
    if convention == "relion5":
        centred_xyz = centred_positions_xyz(hits, volume)
        columns |= {f"rlnCenteredCoordinate{axis}Angst": centred_xyz[:, i] for i, axis in enumerate("XYZ")}
    else:
        indices_xyz = volume.to_index(hits.positions)[:, ::-1]
        columns |= {f"rlnCoordinate{axis}": indices_xyz[:, i] for i, axis in enumerate("XYZ")}
        columns |= {"rlnMicrographName": [tomogram_name] * len(hits), "rlnMagnification": [10000.0] * len(hits)}
        columns["rlnDetectorPixelSize"] = [volume.voxel_size] * len(hits)
    columns |= {
        "rlnAutopickFigureOfMerit": np.asarray(hits.scores, np.float64),
        "rlnClassNumber": np.asarray(hits.labels, np.int64),
        "cryoscanType": [_token(value) for value in hits.types],
        "cryoscanScheme": [_token(value) for value in hits.schemes],
        "cryoscanName": [_token(value) for value in hits.names],
        "cryoscanEntry": [_token(value) for value in hits.entries],
        "cryoscanMargin": np.asarray(hits.margins, np.float64),
    }
    return pd.DataFrame(columns)


def _token(text: str) -> str:
    return re.sub(r"""[\s'"#]+""", "_", text.strip()) or "none"
