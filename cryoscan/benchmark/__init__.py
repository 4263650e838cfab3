"""Benchmarks: comparison tables that anyone can make again, on data nobody here has seen.

A benchmark is a configuration and a folder of data. ``retrieval`` simulates domains whose
relatives are struck from the DateDB and asks for their type; ``real_maps`` cuts the chains
of experimental maps out under four masks of falling quality and asks for their name. Both
run against a DateDB as it is, and print chance beside every number. ``mode2`` has whole maps
or simulated complexes cut up, and compares the regions with the domains and chains of the
model. ``conditions`` asks for held-out domains with neighbours, badly cut out or incomplete.
``enhance`` asks how well maps agree with their models before and after they are sharpened.
``scaling`` needs no data: it measures what scans cost, and how that grows.

A folder of data holds any of::

    structures/         chains, as `cryoscan.io.StructureStore` reads them
    labels/*.tsv        tables of domains
    labels/cath_queries.txt, labels/scope_queries.txt
                        ids of the domains to ask for, one a line (optional)
    maps/maps.json      resolution and voxel size of each map of maps/
    maps_models/        a model beside each map, of the same name
    assemblies/         atoms of complexes, named by PDB id
"""

from cryoscan.benchmark.config import BenchmarkConfig
from cryoscan.benchmark.result import BenchmarkProgress, BenchmarkResult, Table
from cryoscan.benchmark.run import run_benchmark

__all__ = ["BenchmarkConfig", "BenchmarkProgress", "BenchmarkResult", "Table", "run_benchmark"]
