"""A plan as tables for people and as plain values for programs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Column, Table

from pico.plan.plan import Hardware, ModelPlan, gigabytes

FORMULAS = """\
FLOPs a token: 6 N + 12 n_layers d_model seq_len, forward and backward (PaLM, arXiv 2204.02311, appendix B). N counts
the parameters that are multiplied with, not those of input embeddings; attention counts in full, though causal kernels
skip half of it. MFU is the share of the peak that goes into these FLOPs. Time is that of training alone, at that MFU.
Memory is that of the fullest moment, with layers run eagerly; disk likewise. pico/plan/ says what is counted."""


def tables(plans: Sequence[ModelPlan], hardware: Hardware) -> list[Table]:
    """Size and time; memory; disk."""

    def table(title: str, *columns: str) -> Table:
        return Table("model", *(Column(name, justify="right") for name in columns), title=title, title_justify="left")

    time = table(
        f"{hardware.count} x {hardware.name}, {hardware.flops / 1e12:,.2f} TFLOP/s each ({hardware.source}), "
        f"at an assumed MFU of {hardware.mfu:.0%}",
        "parameters", "of them embeddings", "tokens", "FLOPs a token", "FLOPs", "time", f"{_unit(hardware)}-hours",
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


def plain(plans: Sequence[ModelPlan], hardware: Hardware) -> dict[str, Any]:
    """The same, as JSON holds it; bytes, FLOPs and hours."""
    models = {}
    for plan in plans:
        models[plan.model] = {
            "parameters": {**asdict(plan.counts), "total": plan.counts.total},
            "tokens": plan.tokens,
            "flops_per_token": plan.flops_per_token,
            "flops": plan.flops,
            "hours": plan.hours,
            "device_hours": plan.hours * hardware.count,
            "micro_batch": plan.micro_batch,
            "largest_micro_batch": plan.largest_micro_batch,
            "memory": {**asdict(plan.memory), "total": plan.memory.total},
            "disk": {**asdict(plan.disk), "total": plan.disk.total},
            "refusal": plan.refusal,
        }
    return {"hardware": asdict(hardware), "models": models}


def _unit(hardware: Hardware) -> str:
    return "machine" if hardware.name == "cpu" else "GPU"


def _hours(hours: float) -> str:
    return f"{hours:,.2f}" if hours < 100 else f"{hours:,.0f}"


def _time(hours: float) -> str:
    """In the unit that suits: "40.0 s", "12.5 min", "3.2 h", "9.4 days"."""
    for unit, size, most in (("s", 1 / 3600, 90 / 3600), ("min", 1 / 60, 1.5), ("h", 1.0, 72.0)):
        if hours < most:
            return f"{hours / size:,.1f} {unit}"
    return f"{hours / 24:,.1f} days"
