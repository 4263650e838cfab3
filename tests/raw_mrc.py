"""MRC files as other programs write them, right and wrong: made from bytes, not by the code under test."""

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

MODES = {"i1": 0, "i2": 1, "f4": 2, "u2": 6, "f2": 12}

STAMPS = {"<": bytes([0x44, 0x44, 0, 0]), ">": bytes([0x11, 0x11, 0, 0])}


def raw_mrc(
    data,
    *,
    voxel_size=2.5,
    origin_xyz=(0, 0, 0),
    order="<",
    axes=(1, 2, 3),
    stamp=None,
    extended=b"",
    exttyp=b"",
    labels=(),
    imod_flags=None,
    **fields,
):
    """Bytes of an MRC file of `data` (z y x).

    `axes` is MAPC, MAPR, MAPS: the array is stored turned accordingly. `voxel_size` is a
    number or one per x, y, z. Other header fields by name.
    """
    data = np.asarray(data)
    stored = data.transpose([3 - axis for axis in reversed(axes)])  # array axis 3 − n holds x, y, z = 1, 2, 3
    header = np.zeros((), HEADER_DTYPE.newbyteorder(order))
    header["nz"], header["ny"], header["nx"] = stored.shape
    header["mz"], header["my"], header["mx"] = data.shape
    header["mode"] = MODES[f"{data.dtype.kind}{data.dtype.itemsize}"] if data.dtype != np.uint8 else 0
    sizes = np.broadcast_to(voxel_size, 3)
    header["cella"] = tuple(sizes * data.shape[::-1])
    header["cellb"] = (90, 90, 90)
    header["mapc"], header["mapr"], header["maps"] = axes
    header["ispg"], header["nversion"] = 1, 20141
    header["origin"] = tuple(origin_xyz)
    header["map"] = b"MAP "
    header["dmin"], header["dmax"] = 0, -1
    header["nsymbt"], header["exttyp"] = len(extended), exttyp
    header["nlabl"] = len(labels)
    for number, label in enumerate(labels):
        header["label"][number] = label.encode()
    if imod_flags is not None:
        extra = bytearray(84)
        extra[40:48] = np.array([1146047817, imod_flags], np.dtype("i4").newbyteorder(order)).tobytes()
        header["extra2"] = bytes(extra)
    for name, value in fields.items():
        header[name] = value
    content = bytearray(header.tobytes())
    content[212:216] = STAMPS[order] if stamp is None else stamp
    return bytes(content) + extended + stored.astype(stored.dtype.newbyteorder(order)).tobytes()
