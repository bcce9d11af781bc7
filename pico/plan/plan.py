"""A plan of every model of the suite on stated hardware: size, arithmetic, memory, time, disk; and why it cannot be."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pico.config import Params
from pico.errors import PicoError
from pico.flops import GPUS, ParameterCounts, count_parameters, find_peak, training_flops_per_token
from pico.plan.disk import Disk, run_disk
from pico.plan.memory import RESERVED_BYTES, Memory, training_memory
from pico.train.spec import RunSpec, run_spec

CPU = "cpu"
MFU = {True: 0.3, False: 0.4}
"""What is assumed where nobody says, on a CPU and on a GPU. benchmarks/train_speed.py measures it."""


@dataclass(frozen=True)
class Hardware:
    """What trains: `count` of one kind, each with one process."""

    name: str
    count: int
    flops: float
    """The peak of one, FLOP/s."""
    memory_bytes: int
    """Of one."""
    source: str
    mfu: float
    """The share of the peak that is taken to go into the model."""


@dataclass(frozen=True)
class ModelPlan:
    """One model's run."""

    model: str
    counts: ParameterCounts
    tokens: int
    flops_per_token: int
    micro_batch: int
    """The one in the settings."""
    memory: Memory
    """With that."""
    largest_micro_batch: int | None
    """The largest divisor of a GPU's share of the batch that fits; None where not even 1 does."""
    hours: float
    disk: Disk
    refusal: str | None
    """Why it cannot be trained so, and what to change; None where it can."""

    @property
    def flops(self) -> float:
        """Of the whole training."""
        return float(self.flops_per_token) * self.tokens


def find_hardware(name: str | None, count: int | None, mfu: float | None, params: Params) -> Hardware:
    """A kind of `GPUS`, or `cpu` for this machine; what is None comes from the settings.

    Raises PicoError for an unknown name, a precision whose peak nobody publishes, and a share that is none.
    """
    training = params.training
    name = name or (CPU if training.device == CPU else "h100")
    mfu = MFU[name == CPU] if mfu is None else mfu
    if not 0 < mfu <= 1:
        raise PicoError(f"--mfu {mfu} is no share of the peak", mend="name one over 0 and at most 1")
    if name == CPU:
        peak = find_peak(torch.device(CPU), "fp32")
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        source = f"fp32 products measured here, {torch.get_num_threads()} threads"
        return Hardware(CPU, count or training.workers, peak.flops, memory, source, mfu)
    if name not in GPUS:
        known = ", ".join((CPU, *GPUS))
        raise PicoError(f"{name!r} is not a GPU whose figures are known", mend=f"choose from: {known}")
    if training.precision != "bf16":
        raise PicoError(
            f"training.precision = {training.precision}, but what is known of {name} is its peak in bf16",
            where="the settings",
            mend="plan with -S training.precision=bf16, or another scale: -S scale=gpu",
        )
    gpu = GPUS[name]
    return Hardware(name, count or training.workers, gpu.bf16_flops, gpu.memory_bytes, gpu.source, mfu)


def plan_suite(params: Params, hardware: Hardware) -> list[ModelPlan]:
    """The plans of all models, in the suite's order. Raises PicoError for settings that do not fit together."""
    share = params.training.batch_size // hardware.count
    if params.training.batch_size % hardware.count or share % params.training.micro_batch_size:
        raise PicoError(
            f"training.batch_size = {params.training.batch_size} is not a multiple of {hardware.count} x "
            f"training.micro_batch_size = {params.training.micro_batch_size}",
            where=f"{hardware.count} {hardware.name}",
            mend="choose another --gpus, or micro-batch: -S training.micro_batch_size=1",
        )
    return [plan_model(run_spec(params, model), params.packing.seq_len, hardware) for model in params.suite.models]


def plan_model(spec: RunSpec, seq_len: int, hardware: Hardware) -> ModelPlan:
    """One run, of rows of `seq_len`."""
    training = spec.training
    settings = spec.learning_dynamics
    captured = bool(settings.layers) and 2 * settings.noise_batch <= settings.batch_size
    counts = count_parameters(spec.decoder)
    matrices = counts.attention + counts.mlp

    def memory(micro_batch: int) -> Memory:
        return training_memory(
            spec.decoder,
            micro_batch=micro_batch,
            seq_len=seq_len,
            bf16=training.precision == "bf16",
            cuda=hardware.name != CPU,
            shards=hardware.count if training.sharding == "full" else 1,
            noise_batch=settings.noise_batch if captured else 0,
            state_elements=spec.optimizer.state_elements(matrices, counts.total - matrices),
        )

    room = hardware.memory_bytes - RESERVED_BYTES
    largest = largest_fitting(training.batch_size // hardware.count, lambda rows: memory(rows).total <= room)
    flops_per_token = training_flops_per_token(spec.decoder, seq_len)
    tokens = training.steps * training.batch_size * seq_len
    plan = ModelPlan(
        model=spec.model,
        counts=counts,
        tokens=tokens,
        flops_per_token=flops_per_token,
        micro_batch=training.micro_batch_size,
        memory=memory(training.micro_batch_size),
        largest_micro_batch=largest,
        hours=flops_per_token * tokens / (hardware.count * hardware.flops * hardware.mfu) / 3600,
        disk=run_disk(spec, seq_len),
        refusal=None,
    )
    return replace(plan, refusal=_refusal(plan, memory(1), room, hardware, training.sharding))


def largest_fitting(share: int, fits: Callable[[int], bool]) -> int | None:
    """The largest divisor of `share` that fits."""
    small = [rows for rows in range(1, math.isqrt(share) + 1) if share % rows == 0]
    return max((rows for rows in {*small, *(share // rows for rows in small)} if fits(rows)), default=None)


def _refusal(plan: ModelPlan, least: Memory, room: int, hardware: Hardware, sharding: str) -> str | None:
    if plan.memory.total <= room:
        return None
    have = f"{hardware.name} leaves {gigabytes(room)} of {gigabytes(hardware.memory_bytes)}"
    if plan.largest_micro_batch is not None:
        return (
            f"{plan.model}: training.micro_batch_size = {plan.micro_batch} needs {gigabytes(plan.memory.total)}, and "
            f"{have}; the largest that fits is -S training.micro_batch_size={plan.largest_micro_batch}"
        )
    captured = f" and {gigabytes(least.capture)} for capturing gradients" if least.capture else ""
    mend = "a larger GPU" if sharding == "full" else "-S training.sharding=full on several GPUs, or a larger GPU"
    if least.total - least.capture <= room:
        mend = "-S learning_dynamics.layers=[] and pico capture afterwards, or a larger GPU"
    return (
        f"{plan.model}: not even a micro-batch of 1 fits: {gigabytes(least.total)} are needed, of them "
        f"{gigabytes(least.fixed)} for weights, gradients and optimiser{captured}, and {have}; use {mend}"
    )


def gigabytes(size: float) -> str:
    """1,500,000,000 -> "1.5 GB"; less than one in MB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
