"""cryoscan in napari: this release opens volumes and label maps; no algorithm lives here."""
