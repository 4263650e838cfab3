"""Files that cryoscan reads back exactly: volumes, label volumes, structures and tables.

Everything that comes out of this package is z, y, x in Å with protein positive; x, y, z and
dark contrast exist in the files only. Readers of large data are lazy (`open_…`), writers
refuse to replace a file unless told to, and an output appears whole or not at all.
"""

from typing import TYPE_CHECKING, Any

from cryoscan.io.labelmaps import open_labels, write_labels
from cryoscan.io.projects import Project, ProjectTomogram, is_project, read_project
from cryoscan.io.store import StructureStore
from cryoscan.io.structures import read_structure, write_structure
from cryoscan.io.tables import DomainRow, parse_ranges, read_domains, read_scope_names
from cryoscan.io.volumes import (
    VolumeFile,
    VolumeInfo,
    describe,
    open_levels,
    open_volume,
    planes,
    require_usable,
    write_volume,
)

if TYPE_CHECKING:
    from cryoscan.io.omezarr import build_pyramid, create_zarr, open_zarr_array, stored_parts

__all__ = [
    "DomainRow",
    "Project",
    "ProjectTomogram",
    "StructureStore",
    "VolumeFile",
    "VolumeInfo",
    "build_pyramid",
    "create_zarr",
    "describe",
    "is_project",
    "open_labels",
    "open_levels",
    "open_volume",
    "open_zarr_array",
    "parse_ranges",
    "planes",
    "read_domains",
    "read_project",
    "read_scope_names",
    "read_structure",
    "require_usable",
    "stored_parts",
    "write_labels",
    "write_structure",
    "write_volume",
]


def __getattr__(name: str) -> Any:
    """Load Zarr, which takes most of a second, only for those who ask for it."""
    if name in ("build_pyramid", "create_zarr", "open_zarr_array", "stored_parts"):
        from cryoscan.io import omezarr

        return getattr(omezarr, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
