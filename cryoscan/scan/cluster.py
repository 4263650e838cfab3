"""Workers as jobs of a batch system: Slurm and its relatives, through dask-jobqueue."""

import gc
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field

from cryoscan.config import Config
from cryoscan.errors import ConfigError, ResourceError
from cryoscan.scan.executors import MEMORY, Dask

_CLASSES = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "oar": "OARCluster",
}


class ClusterConfig(Config):
    """How jobs are asked for; each job is one worker."""

    kind: Literal["slurm", "pbs", "sge", "lsf", "oar"] = "slurm"
    """Batch system."""
    jobs: int = Field(default=1, ge=1)
    """Jobs that are submitted."""
    cores: int = Field(default=8, ge=1)
    """Cores of a job; all serve its one worker."""
    memory: str = "32GB"
    """Memory of a job."""
    walltime: str = "04:00:00"
    """Longest time of a job, hh:mm:ss; a scan that needs longer is continued by the same command."""
    queue: str | None = None
    """Queue or partition."""
    account: str | None = None
    """Account or project."""
    job_options: tuple[str, ...] = ()
    """Further options of the batch system, one per line of the script, e.g. `--gres=gpu:1`."""
    prologue: tuple[str, ...] = ()
    """Shell lines before the worker starts, e.g. to activate an environment."""
    interface: str | None = None
    """Network interface over which workers are reached, e.g. `ib0`; unset = the default one."""


def job_script(config: ClusterConfig) -> str:
    """The script that would be submitted, for people to read.

    Raises
    ------
    ConfigError
        If dask-jobqueue is not installed.
    """
    with _cluster(config) as cluster:
        return str(cluster.job_script())


@contextmanager
def cluster_workers(config: ClusterConfig) -> Iterator[Dask]:
    """Submit the jobs, and give their workers the work as they arrive; the jobs end with the scan.

    Raises
    ------
    ConfigError
        If dask-jobqueue is not installed.
    ResourceError
        If the jobs cannot be submitted.
    """
    import distributed

    with _cluster(config) as cluster:
        _submit(cluster, config)
        with distributed.Client(cluster) as client:
            yield Dask(client, threads=config.cores)


def _submit(cluster: Any, config: ClusterConfig) -> None:
    """Submit the jobs and wait until all have a number; dask-jobqueue only logs it if one gets none."""
    import distributed

    with _overheard("tornado.application", "asyncio") as errors:
        cluster.scale(jobs=config.jobs)
        while len(cluster.workers) < config.jobs:
            time.sleep(0.05)
        refused = [job for job in cluster.workers.values() if job.job_id is None]
        deadline = time.monotonic() + 5
        while refused and not errors and time.monotonic() < deadline:
            time.sleep(0.05)
        gc.collect()  # asyncio speaks when an error is forgotten
    for job in refused:
        job.status = distributed.Status.failed  # else the cluster does not close
    if refused:
        raise ResourceError(
            f"expected to submit jobs with {config.kind}",
            got=str(errors[0]).strip().splitlines()[-1] if errors else "no job number",
            hint="Run this on a login node of the cluster, and try the script that --dry-run shows by hand.",
        )


@contextmanager
def _overheard(*names: str) -> Iterator[list[BaseException]]:
    """Take the errors that are logged under some names, in place of whoever else would show them."""
    errors: list[BaseException] = []

    def take(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            errors.append(record.exc_info[1])
        return False

    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(take)
    try:
        yield errors
    finally:
        for logger in loggers:
            logger.removeFilter(take)


@contextmanager
def _cluster(config: ClusterConfig) -> Iterator[Any]:
    try:
        import dask_jobqueue
    except ImportError as error:
        raise ConfigError(
            "expected dask-jobqueue for --cluster",
            got="no such package",
            hint="Install it with `pip install 'cryoscan[cluster]'`, or use --shard i/n in a job array.",
        ) from error
    options: dict[str, Any] = {
        "cores": config.cores,
        "processes": 1,
        "memory": config.memory,
        "walltime": config.walltime,
        "job_extra_directives": list(config.job_options),
        "job_script_prologue": [f"export {name}={value}" for name, value in MEMORY.items()] + list(config.prologue),
        "scheduler_options": {"dashboard_address": ":0"},
    }
    options |= {key: value for key in ("queue", "account", "interface") if (value := getattr(config, key)) is not None}
    if config.kind == "lsf":
        options["ncpus"] = config.cores
    with getattr(dask_jobqueue, _CLASSES[config.kind])(**options) as cluster:
        yield cluster
