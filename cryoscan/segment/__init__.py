"""Segmentation: which voxels of a map belong together.

A *threshold* (`contour_level`) says what is density. The *watershed* gives every local
maximum its region: far too many. *Scale-space grouping* (`segment_map`, the method of
Segger) smooths the map step by step and joins the regions whose maxima meet, which makes
a `GroupingTree`: its leaves are the watershed regions, its upper nodes are secondary
structures, domains, chains. No level fits all of a map, so every node of a plausible size
is scored and `best_disjoint` takes the set that does not overlap and scores best.

Where the user knows the place, a region comes from a box, a sphere, a label or a
structure instead (`region_from_...`); `soft_mask` gives it an edge, and `check_same_grid`
refuses masks of another map.

All masks and labels lie on the grid of the map they came from.
"""

from cryoscan.segment.components import join_blocks, label_block
from cryoscan.segment.regions import (
    check_same_grid,
    component_at,
    region_from_box,
    region_from_labels,
    region_from_outline,
    region_from_sphere,
    region_from_structure,
    soft_mask,
    split_region,
)
from cryoscan.segment.segger import STEPS, GroupingTree, best_disjoint, group_regions, grouping_step, segment_map
from cryoscan.segment.watershed import contour_level, watershed

__all__ = [
    "STEPS",
    "GroupingTree",
    "best_disjoint",
    "check_same_grid",
    "component_at",
    "contour_level",
    "group_regions",
    "grouping_step",
    "join_blocks",
    "label_block",
    "region_from_box",
    "region_from_labels",
    "region_from_outline",
    "region_from_sphere",
    "region_from_structure",
    "segment_map",
    "soft_mask",
    "split_region",
    "watershed",
]
