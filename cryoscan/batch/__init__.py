"""Many volumes, one after the other: nothing is done twice, nothing is lost, and all ends in one table.

`plan_batch` finds the volumes and says for each what is left to do; `run_batch` does it and
yields events; both may be repeated at any time, by one process or by several on one output
folder. There::

    NAME.scan/           the scan of each volume
    batch/NAME.json      what it was made from, how long it took, why it failed
    summary.csv          one row per volume, made from the two above
"""

from cryoscan.batch.config import BatchConfig, VolumeSettings
from cryoscan.batch.inputs import BatchVolume, find_volumes
from cryoscan.batch.plan import BatchItem, plan_batch
from cryoscan.batch.recipe import read_recipe, write_recipe
from cryoscan.batch.run import (
    BatchEvent,
    BatchFinished,
    VolumeBusy,
    VolumeDone,
    VolumeFailed,
    VolumePlanned,
    VolumeProgress,
    VolumeStarted,
    preview_batch,
    run_batch,
)
from cryoscan.batch.table import (
    BatchRow,
    check_all_hits,
    read_rows,
    seconds_per_A3,
    write_all_hits,
    write_summary,
)

__all__ = [
    "BatchConfig",
    "BatchEvent",
    "BatchFinished",
    "BatchItem",
    "BatchRow",
    "BatchVolume",
    "VolumeBusy",
    "VolumeDone",
    "VolumeFailed",
    "VolumePlanned",
    "VolumeProgress",
    "VolumeSettings",
    "VolumeStarted",
    "check_all_hits",
    "find_volumes",
    "plan_batch",
    "preview_batch",
    "read_recipe",
    "read_rows",
    "run_batch",
    "seconds_per_A3",
    "write_all_hits",
    "write_recipe",
    "write_summary",
]
