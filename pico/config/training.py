"""Settings of training: suite, run, optimiser, schedule, checkpoints, learning dynamics."""

from typing import Literal

from pydantic import Field

from pico.config.base import Fraction, Name, NonNegative, Positive, Section


class Suite(Section):
    """The models, made under the identical conditions below."""

    scale: Name
    """The name of the scale in `conf/scale/`; also the folder below `data/models` and its like."""
    models: list[Name] = Field(min_length=1)
    """Names, narrowest first; each needs an entry in `models`. dvc.yaml spreads its stages over this list."""


class Training(Section):
    """The run, identical for every model of the suite."""

    steps: int = Field(gt=0, lt=10**8)
    """Optimiser steps; a checkpoint's folder has eight digits for them."""
    batch_size: int = Field(gt=0, le=10**6)
    """Sequences a step, over all workers."""
    micro_batch_size: Positive
    """Sequences in one forward pass of one worker; changes memory and speed, not the batch."""
    workers: Positive
    """Processes that train, each a Ray task; each takes an equal part of the batch."""
    sharding: Literal["none", "full"] = "none"
    """`none`: each worker has the whole model (DDP); `full`: weights, gradients and moments are sharded (FSDP2)."""
    threads_per_worker: Positive
    """Threads of torch in each; part of what makes a CPU run bitwise reproducible."""
    device: Literal["cpu", "cuda", "auto"]
    """`auto` takes CUDA where there is some."""
    precision: Literal["fp32", "bf16"]
    """bf16 means autocast over fp32 weights."""
    compile: bool
    """Compile the layers with torch.compile."""
    gradient_clip: float = Field(ge=0)
    """Largest global gradient norm; 0 switches clipping off (as in the published runs)."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Reaction to a loss or gradient that is not finite, after saving the batch; the weights never see it. `skip`
    leaves that update out, and stops only after ten in a row."""
    eval_every: Positive
    """Steps between held-out losses on the loss curve."""


class Schedule(Section):
    """Learning rate over steps."""

    kind: Literal["linear", "cosine", "constant", "wsd", "jagged_cosine"]
    """Shape of the decay after warm-up. `wsd`: none until the last `decay_fraction` of the steps, then linear;
    `jagged_cosine`: a cosine that rises from 0 anew after every `restart_every` steps, as ReLoRA's."""
    warmup_steps: NonNegative
    """Steps of linear rise from 0 to the peak."""
    final_fraction: Fraction
    """The end of the decay, as a share of the peak."""
    decay_fraction: Fraction = 0.2
    """`wsd`: the share of all steps that decays."""
    restart_every: Positive = 2000
    """`jagged_cosine`: steps between restarts."""
    restart_warmup_steps: NonNegative = 100
    """`jagged_cosine`: steps of linear rise after a restart."""


class Checkpoints(Section):
    """The steps at which the model is kept: 0, 1, 2, 4, ... up to `every`, then every `every` steps, and the last."""

    every: Positive
    """Steps between kept checkpoints, after the powers of two."""
    rescue_seconds: float = Field(gt=0)
    """Seconds between rescue checkpoints, from which an interrupted run resumes; they are dropped at the end."""


class LearningDynamics(Section):
    """States captured at every checkpoint, on the current training batch and on a fixed held-out one."""

    layers: list[str]
    """Suffixes of module names, matched exactly: `attention.v_proj` in every block."""
    batch_size: Positive
    """Sequences of the captured batches."""
    positions: Positive
    """Positions per sequence whose activations are kept, evenly spread, the last one among them."""
    noise_batch: Positive = 4
    """Sequences of the small batches into which the captured one is cut to see how much gradients vary, from which the
    gradient noise scale comes; at most half of `batch_size`."""


class Live(Section):
    """Places that show how training goes, besides the terminal and Prefect. No result is made from them."""

    dvclive: bool = True
    """Curves below `live/`: `dvc plots show -x step live/*/plots/metrics/train_loss.tsv`."""
    tensorboard: bool = False
    """Event files below `runs/tensorboard`."""
    wandb: str | None = None
    """A project of Weights & Biases, which needs `pip install 'pico-lab[wandb]'`; it goes online as wandb is set to."""
