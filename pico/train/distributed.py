"""The same loop on Ray Train: one process per worker, restarted from the last rescue checkpoint when one dies.

Training is one TorchTrainer `fit`. Checkpoints, losses and progress go by the run's folder, which all workers see; Ray
carries nothing but the settings.
"""

import logging
import os
import socket
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pico.errors import PicoError
from pico.files import read_json, write_json

if TYPE_CHECKING:  # Ray's controller imports this module; it has no use for torch
    from pico.train.spec import RunSpec

RESTARTS = 3
"""How often workers that died (not: that raised an error of ours) are started again."""

RAY_TRAIN = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # how soon the start and the end of the workers are noticed; 2 s
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process of its own; a lost node is survived by restarting anyway
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Ray Train takes these from the environment alone; each is set unless the user has set it."""

UNNEEDED_CALLBACKS = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
"""Parts of Ray Train that start a process each, about 3 s of CPU time: one serves Ray Data sets, the other frees the
workers of a dead controller on clusters where drivers come and go; ours end with their driver."""


def train_on_ray(spec: "RunSpec", tokens: Path, work: Path, identity: Mapping[str, Any]) -> bool:
    """Runs `pico.train.loop.train` on `spec.training.workers` Ray workers; the caller has connected Ray.

    Returns True when training is done, False when it was asked to stop. Raises the PicoError that a worker raised, or
    Ray's own error where workers kept dying.
    """
    for name, value in RAY_TRAIN.items():
        os.environ.setdefault(name, value)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pico.train.process_group import ProcessGroupConfig
    from pico.train.workers import FixedWorkers

    base: Any = TorchTrainer

    class Trainer(base):
        """Without the processes that a `fit` would start for others; see UNNEEDED_CALLBACKS and pico.train.workers."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [each for each in callbacks if type(each).__name__ not in UNNEEDED_CALLBACKS]

        def _initialize_and_run_controller(self, **settings: Any) -> Any:
            settings["scaling_policy"] = FixedWorkers(self.scaling_config)
            return super()._initialize_and_run_controller(**settings)

    use_gpu = _use_gpu(spec, ray)
    for stale in outcomes(work):
        stale.unlink()
    trainer = Trainer(
        _worker,
        train_loop_config={
            "spec": spec.to_dict(),  # plain, so that the controller need not import torch
            "tokens": str(tokens.resolve()),
            "work": str(work.resolve()),
            "identity": dict(identity),
            "use_gpu": use_gpu,
        },
        scaling_config=ScalingConfig(
            num_workers=spec.training.workers,
            use_gpu=use_gpu,
            resources_per_worker=_resources(spec, ray, use_gpu),
        ),
        torch_config=ProcessGroupConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name="pretrain",
            storage_path=str((work / "ray").resolve()),
            failure_config=FailureConfig(max_failures=RESTARTS),
        ),
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    try:
        trainer.fit()
    except Exception:
        if not outcomes(work):  # else the workers said why
            raise
    return _read_outcome(work)


def outcomes(work: Path) -> list[Path]:
    """What workers left behind, that of the first one first."""
    return sorted(work.glob("outcome-*.json"))


def _worker(settings: dict[str, Any]) -> None:
    """One worker's life. What it found goes to a file, so that Ray does not retry an error that would recur."""
    import ray.train
    import torch

    from pico.train.loop import train
    from pico.train.spec import RunSpec
    from pico.train.world import World
    from pico.watch.events import EventWriter

    context = ray.train.get_context()
    work = Path(settings["work"])
    if outcomes(work):  # a restart after an error of ours
        return
    device = torch.device("cpu")
    if settings["use_gpu"]:
        device = _gpu()
        torch.cuda.set_device(device)  # of this thread, too
    world = World(context.get_world_rank(), context.get_world_size(), device)
    outcome = work / f"outcome-{world.rank:05d}.json"
    tell = EventWriter(work / "progress.jsonl")
    tell({"worker": world.rank, "host": socket.gethostname(), "process": os.getpid()})
    try:
        finished = train(
            RunSpec.from_dict(settings["spec"]),
            Path(settings["tokens"]),
            work,
            settings["identity"],
            world=world,
            stop=(work / "stop").exists,
            tell=tell,
        )
        if world.rank == 0:
            write_json(outcome, {"finished": finished})
    except PicoError as error:
        write_json(outcome, {"what": error.what, "where": error.where, "mend": error.mend})
        if world.size > 1:  # the others wait for this one, and are to be ended
            raise
    except Exception:
        if world.size > 1:  # perhaps only the echo of another worker's death, which Ray handles
            raise
        write_json(outcome, {"traceback": traceback.format_exc()})


def _read_outcome(work: Path) -> bool:
    """What the workers found: finished or stopped, or the error that ended them, raised here."""
    outcome = read_json(outcomes(work)[0])
    if "what" in outcome:
        raise PicoError(outcome["what"], where=outcome["where"], mend=outcome["mend"])
    if "traceback" in outcome:
        raise RuntimeError(f"training failed in its worker:\n{outcome['traceback']}")
    return bool(outcome["finished"])


def _use_gpu(spec: "RunSpec", ray: Any) -> bool:
    """Whether the workers get a GPU each. Raises PicoError where the settings ask for more than Ray has."""
    wanted, found = spec.training.workers, int(ray.cluster_resources().get("GPU", 0))
    if spec.training.device != "cpu" and found < wanted and (found or spec.training.device == "cuda"):
        raise PicoError(
            f"training.device = {spec.training.device!r} with training.workers = {wanted}, but Ray finds {found} GPUs",
            where="params.yaml",
            mend="use fewer workers or device: cpu, or connect to a cluster with RAY_ADDRESS",
        )
    return spec.training.device != "cpu" and found >= wanted


def _resources(spec: "RunSpec", ray: Any, use_gpu: bool) -> dict[str, float]:
    """CPUs (and a GPU) per worker: a thread each, or an equal share where the machine has fewer."""
    share = ray.cluster_resources().get("CPU", 1) / spec.training.workers
    threads = float(spec.training.threads_per_worker)
    cpus = threads if threads <= share else max(0.01, int(share * 100) / 100)
    return {"CPU": cpus, "GPU": 1} if use_gpu else {"CPU": cpus}


def _gpu() -> Any:
    """The GPU that Ray gave to this worker."""
    from ray.train.torch import get_device

    return get_device()
