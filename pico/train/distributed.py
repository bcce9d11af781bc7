"""The loop on Ray: a task for each worker, started again from the last rescue checkpoint when one of them dies.

A worker is a plain Ray task, which a cluster can place and by which many runs share a machine. Several workers of one
run are as many tasks in a placement group; torch.distributed connects them through a store that the driver keeps.
Checkpoints, losses and progress go by the run's folder, which all workers see.
"""

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pico.errors import PicoError
from pico.train.loop import train
from pico.train.parallel import World, choose_device
from pico.train.spec import RunSpec
from pico.watch.events import EventWriter, worker_event

if TYPE_CHECKING:
    from pico.train.run import Run

RESTARTS = 3
"""Times that workers which died (not: which raised an error) are started again."""
STOP = "stop"
"""A file in the run's folder, where the run is to save a rescue checkpoint and leave."""
DEATHS = ("WorkerCrashedError", "NodeDiedError", "LocalRayletDiedError", "OutOfMemoryError")
"""Errors of Ray by which a worker's process ended; any other would come again."""
ECHO_SECONDS = 5.0
"""Time for the others of several workers to fail of themselves after one has, before they are ended."""


def train_on_ray(run: "Run") -> bool:
    """Trains on `spec.training.workers` Ray workers; the caller has connected Ray.

    Returns True when training is done, False when it was asked to stop. Raises the error that a worker raised, or Ray's
    own where workers kept dying.
    """
    import ray
    from ray import cloudpickle

    run = replace(run, tokens=run.tokens.resolve(), folder=run.folder.resolve())
    workers, use_gpu = run.spec.training.workers, _use_gpu(run.spec, ray)
    # A thread each, or an equal share where the machine has fewer.
    share, threads = ray.cluster_resources().get("CPU", 1) / workers, float(run.spec.training.threads_per_worker)
    cpus = threads if threads <= share else max(0.01, int(share * 100) / 100)
    device = "cuda" if use_gpu else "cpu"
    task: Any = ray.remote(num_cpus=cpus, num_gpus=int(use_gpu), max_retries=0)(pretrain_worker)
    pickled = cloudpickle.dumps(run)
    if workers == 1:
        return _with_restarts(ray, lambda attempt: [task.remote(pickled, device)])
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    host = ray.util.get_node_ip_address()
    store = torch.distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False)
    group = placement_group([{"CPU": cpus, "GPU": 1} if use_gpu else {"CPU": cpus}] * workers)
    task = task.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group))

    def start(attempt: int) -> list[Any]:
        return [task.remote(pickled, device, rank, (host, store.port, attempt)) for rank in range(workers)]

    try:
        return _with_restarts(ray, start)
    finally:
        remove_placement_group(group)


def pretrain_worker(pickled: bytes, *where: Any) -> bool:
    """Runs `train_worker` as a Ray task, under a name that shows in the list of processes.

    The run comes as bytes, so that it is read here, not by Ray in a thread beside the one that imports this module: two
    such imports see each other's modules half made.
    """
    return train_worker(pickle.loads(pickled), *where)


def train_worker(run: "Run", device: str, rank: int = 0, rendezvous: tuple[str, int, int] | None = None) -> bool:
    """Runs one worker: the loop, with its events in the run's folder. Returns False when it was asked to stop.

    rendezvous: host and port of the store in which several workers find each other, and the number of the attempt.
    """
    world = World(rank, run.spec.training.workers if rendezvous else 1, choose_device(device))
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    if rendezvous:
        host, port, attempt = rendezvous
        store = torch.distributed.PrefixStore(f"{attempt}", torch.distributed.TCPStore(host, port, is_master=False))
        backend = "nccl" if world.device.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world.size)
    report = EventWriter(run.folder / "progress.jsonl")
    report(worker_event(rank, world.device, run.spec.training))
    try:
        return train(
            run.spec,
            run.tokens,
            run.folder,
            run.identity,
            recipe=run.recipe,
            world=world,
            stop=(run.folder / STOP).exists,
            report=report,
        )
    finally:
        if rendezvous:
            torch.distributed.destroy_process_group()


def _with_restarts(ray: Any, start: Callable[[int], list[Any]]) -> bool:
    """Runs the tasks that `start(attempt)` returns, and again after a worker died. Returns what they returned."""
    for attempt in range(RESTARTS + 1):
        finished, errors = _outcome(ray, start(attempt))
        if not errors:
            return finished
        raised = [getattr(error, "cause", error) for error in errors]
        died = [error for error in errors if type(error).__name__ in DEATHS]
        # An error of ours would recur. Any other may be the echo of a worker's death in those that waited for it.
        ours = [error for error in raised if isinstance(error, PicoError)]
        if ours or not died or attempt == RESTARTS:
            raise (ours or died or raised)[0]
    raise AssertionError("unreachable")


def _outcome(ray: Any, tasks: list[Any]) -> tuple[bool, list[Any]]:
    """Waits for tasks. Returns whether all returned True, and the errors of those that failed; none is left running."""
    finished, waiting = True, list(tasks)
    errors: list[Any] = []
    try:
        while waiting:
            ended, waiting = ray.wait(waiting, num_returns=1, timeout=ECHO_SECONDS if errors else None)
            if not ended:
                break
            try:
                finished &= ray.get(ended[0])
            except ray.exceptions.RayError as error:
                errors.append(error)
    finally:
        for task in waiting:
            ray.cancel(task, force=True)
    return finished, errors


def _use_gpu(spec: RunSpec, ray: Any) -> bool:
    """Returns whether workers get a GPU each. Raises PicoError where the settings ask for more than Ray has."""
    wanted, found = spec.training.workers, int(ray.cluster_resources().get("GPU", 0))
    if spec.training.device != "cpu" and found < wanted and (found or spec.training.device == "cuda"):
        raise PicoError(
            f"training.device = {spec.training.device!r} with training.workers = {wanted}, but Ray finds {found} GPUs",
            where="params.yaml",
            mend="use fewer workers or device: cpu, or connect to a cluster with RAY_ADDRESS",
        )
    return spec.training.device != "cpu" and found >= wanted
