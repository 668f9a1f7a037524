"""The same jobs on a Ray cluster, whose nodes have streamlm installed and reach the store."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from streamlm.jobs.job import Job, Plan, Row, failed
from streamlm.jobs.worker import run_job

QUEUED = 2  # jobs for each worker that are handed over at once


def ray_rows(jobs: Iterable[Job], plan: Plan, *, address: str, workers: int) -> Iterator[Row]:
    """A row for each job, as they end; a job whose worker dies fails.

    Args:
        address: of the cluster, as `ray.init` takes it; "local" starts one on this machine.
        workers: jobs that run at once.

    Raises:
        ValueError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ValueError(
            "--ray without the package ray; allowed: pip install 'streamlm[ray]'"
        ) from None
    started = not ray.is_initialized()
    if started:
        local: dict[str, Any] = {"num_cpus": workers} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, include_dashboard=False, **local)
    # Retries are the caller's, as for the local pool, so that the report has them.
    remote = ray.remote(run_job).options(num_cpus=1, max_retries=0)
    left, running = iter(jobs), dict[Any, Job]()
    try:
        while True:
            for job in islice(left, max(0, QUEUED * workers - len(running))):
                running[remote.remote(job, plan)] = job
            if not running:
                return
            (ready, *_), _ = ray.wait(list(running))
            job = running.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:
                yield failed(job, f"its worker was lost ({type(error).__name__})")
    finally:
        for each in running:
            ray.cancel(each)
        if started:
            ray.shutdown()
