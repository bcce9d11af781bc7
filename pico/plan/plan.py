"""A plan of every model of the suite on stated hardware: size, arithmetic, memory, time, disk; or a refusal."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.table import Column, Table

from pico.config import Params
from pico.errors import PicoError
from pico.flops import ParameterCounts, count_parameters, training_flops_per_token
from pico.plan.resources import RESERVED_BYTES, Disk, Memory, run_disk, training_memory
from pico.train.spec import RunSpec, run_spec
from pico.watch.hardware import GPUS, find_peak

CPU = "cpu"
MFU = {True: 0.3, False: 0.4}
"""Share of the peak that is assumed by default, on a CPU (True) and on a GPU; see benchmarks/train_speed.py."""

FORMULAS = """\
FLOPs a token: 6 N + 12 n_layers d_model seq_len, forward and backward (PaLM, arXiv 2204.02311, appendix B). N counts
the parameters that are multiplied with, not those of input embeddings; attention counts in full, though causal kernels
skip half of it. MFU is the share of the peak that goes into these FLOPs. Time is that of training alone, at that MFU.
Memory is that of the fullest moment, with layers run eagerly; disk likewise. pico/plan/ says what is counted."""


@dataclass(frozen=True)
class Hardware:
    """The devices that train: `count` of one kind, each with one process; `memory_bytes` is that of one."""

    name: str
    count: int
    flops: float
    """The peak of one device, FLOP/s."""
    memory_bytes: int
    source: str
    mfu: float
    """Model FLOPs utilisation that is assumed: the share of the peak."""


@dataclass(frozen=True)
class ModelPlan:
    """One model's run."""

    model: str
    counts: ParameterCounts
    tokens: int
    flops_per_token: int
    micro_batch: int
    memory: Memory
    largest_micro_batch: int | None
    """The largest divisor of a GPU's share of the batch that fits; None where not even 1 does."""
    hours: float
    disk: Disk
    refusal: str | None
    """The reason why it cannot be trained so, and the setting to change; None where it can."""

    @property
    def flops(self) -> float:
        """FLOPs of the whole training."""
        return float(self.flops_per_token) * self.tokens


def find_hardware(name: str | None, count: int | None, mfu: float | None, params: Params) -> Hardware:
    """Returns a kind of `GPUS`, or `cpu` for this machine; arguments that are None come from the settings.

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
    """Returns the plans of all models, in the suite's order. Raises PicoError for settings that do not fit together."""
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
    """Returns the plan of one run, with rows of `seq_len` tokens."""
    training, settings = spec.training, spec.learning_dynamics
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
    share = training.batch_size // hardware.count
    fitting = (rows for rows in range(1, share + 1) if share % rows == 0 and memory(rows).total <= room)
    flops_per_token = training_flops_per_token(spec.decoder, seq_len)
    tokens = training.steps * training.batch_size * seq_len
    plan = ModelPlan(
        model=spec.model,
        counts=counts,
        tokens=tokens,
        flops_per_token=flops_per_token,
        micro_batch=training.micro_batch_size,
        memory=memory(training.micro_batch_size),
        largest_micro_batch=max(fitting, default=None),
        hours=flops_per_token * tokens / (hardware.count * hardware.flops * hardware.mfu) / 3600,
        disk=run_disk(spec, seq_len),
        refusal=None,
    )
    return replace(plan, refusal=_refusal(plan, memory(1), room, hardware, training.sharding))


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
    """Formats 1,500,000,000 as "1.5 GB", and less than one in MB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def tables(plans: Sequence[ModelPlan], hardware: Hardware) -> list[Table]:
    """Returns three tables: size and time; memory; disk."""

    def table(title: str, *columns: str) -> Table:
        return Table("model", *(Column(name, justify="right") for name in columns), title=title, title_justify="left")

    time = table(
        f"{hardware.count} x {hardware.name}, {hardware.flops / 1e12:,.2f} TFLOP/s each ({hardware.source}), "
        f"at an assumed MFU of {hardware.mfu:.0%}",
        "parameters", "of them embeddings", "tokens", "FLOPs a token", "FLOPs", "time",
        "machine-hours" if hardware.name == CPU else "GPU-hours",
    )  # fmt: skip
    memory = table(
        f"memory of each, of {gigabytes(hardware.memory_bytes)}",
        "weights", "gradients", "optimiser", "bf16 copies", "micro-batch", "activations", "logits", "capture", "sum",
        "largest micro-batch",
    )  # fmt: skip
    disk = table("disk", "checkpoints", "weights", "learning dynamics", "optimiser", "while it works", "sum")
    for plan in plans:
        counts, parts, space = plan.counts, plan.memory, plan.disk
        time.add_row(
            plan.model, f"{counts.total:,}", f"{counts.embeddings:,}", f"{plan.tokens:,}",
            f"{plan.flops_per_token:,}", f"{plan.flops:.3g}", _time(plan.hours), _hours(plan.hours * hardware.count),
        )  # fmt: skip
        memory.add_row(
            plan.model, *map(gigabytes, (parts.weights, parts.gradients, parts.optimizer, parts.copies)),
            str(plan.micro_batch), *map(gigabytes, (parts.activations, parts.logits, parts.capture, parts.total)),
            str(plan.largest_micro_batch or "none"),
        )  # fmt: skip
        disk.add_row(
            plan.model, str(space.checkpoints),
            *map(gigabytes, (space.weights, space.dynamics, space.states, space.working, space.total)),
        )  # fmt: skip
    if len(plans) > 1:
        hours = sum(plan.hours for plan in plans)
        flops = f"{sum(plan.flops for plan in plans):.3g}"
        time.add_section()
        time.add_row("all", "", "", "", "", flops, _time(hours), _hours(hours * hardware.count))
        disk.add_section()
        disk.add_row("all", "", "", "", "", "", gigabytes(sum(plan.disk.total for plan in plans)))
    return [time, memory, disk]


def as_dict(plans: Sequence[ModelPlan], hardware: Hardware) -> dict[str, Any]:
    """Returns the plans as JSON holds them; in bytes, FLOPs and hours."""
    models = {
        plan.model: {key: value for key, value in asdict(plan).items() if key not in ("model", "counts")}
        | {
            "parameters": {**asdict(plan.counts), "total": plan.counts.total},
            "flops": plan.flops,
            "device_hours": plan.hours * hardware.count,
            "memory": {**asdict(plan.memory), "total": plan.memory.total},
            "disk": {**asdict(plan.disk), "total": plan.disk.total},
        }
        for plan in plans
    }
    return {"hardware": asdict(hardware), "models": models}


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours < 100 else f"{hours:,.0f}"


def _time(hours: float) -> str:
    """Formats hours in the unit that suits: "40.0 s", "12.5 min", "3.2 h", "9.4 days"."""
    for unit, size, most in (("s", 1 / 3600, 90 / 3600), ("min", 1 / 60, 1.5), ("h", 1.0, 72.0)):
        if hours < most:
            return f"{hours / size:,.1f} {unit}"
    return f"{hours / 24:,.1f} days"
