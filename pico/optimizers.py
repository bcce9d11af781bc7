"""Optimizers by name: each class states its settings, and `build` makes the torch optimizer from them.

To add one, write its class here and name it in `Optimizer`; params.yaml then takes `optimizer.name` and its keys, and
docs/settings.md lists them. Give it a file in conf/optimizer/, so that `pico scale laptop optimizer=NAME` selects it.

Torch is imported within functions: settings are also read by commands that have no use for it.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(BaseModel):
    """Settings of every optimizer: no unknown keys, no silent conversion of text to numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
    elementwise: ClassVar[bool] = True
    """True where every weight is updated by itself, so that a process may hold a shard of a matrix (FSDP2)."""

    name: str
    lr: float = Field(gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(ge=0)
    """Decay of matrices only: a norm's weight is meant to be about 1, not 0."""

    def build(self, parameters: Mapping[str, "Tensor"]) -> list[Any]:
        """Returns torch optimizers over `parameters` (by name), which are stepped one after another.

        Their state is laid out at once, so that a checkpoint of step 0 holds it. `lr` of each group is the peak; the
        loop sets the rate of each update.
        """
        raise NotImplementedError

    def state_elements(self, matrices: int, others: int) -> int:
        """Returns how many float32 values the state has for so many weights in hidden matrices, and all others."""
        raise NotImplementedError

    def describe(self) -> str:
        """Returns the optimizer and its settings in words, without the learning rate."""
        raise NotImplementedError


class AdamW(OptimizerSettings):
    """AdamW (arXiv 1711.05101), fused."""

    name: Literal["adamw"] = "adamw"
    """Adaptive moments with decoupled weight decay."""
    beta1: Decay
    """Decay of the first moment."""
    beta2: Decay
    """Decay of the second moment."""
    eps: float = Field(gt=0)
    """Added to the root of the second moment."""

    def build(self, parameters: Mapping[str, "Tensor"]) -> list[Any]:
        import torch

        groups = decay_groups(parameters.values(), self.weight_decay)
        betas = (self.beta1, self.beta2)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=betas, eps=self.eps, fused=True)
        for parameter in parameters.values():
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return [optimizer]

    def state_elements(self, matrices: int, others: int) -> int:
        return 2 * (matrices + others)

    def describe(self) -> str:
        return f"AdamW, β₁ {self.beta1:g}, β₂ {self.beta2:g}, ε {self.eps:g}, weight decay {self.weight_decay:g}"


class Muon(AdamW):
    """Muon for hidden matrices: momentum, orthogonalised (arXiv 2502.16982); AdamW for embeddings, output and norms.

    The step of each matrix is scaled to the root mean square of AdamW's, so that one `lr` and one `weight_decay` serve
    both parts. Newton-Schulz works on whole matrices: `training.sharding: full` is refused.
    """

    elementwise = False
    name: Literal["muon"] = "muon"  # type: ignore[assignment]
    """Orthogonalised momentum for matrices, AdamW for the rest."""
    momentum: Decay
    """Decay of Muon's momentum (Nesterov's)."""

    def build(self, parameters: Mapping[str, "Tensor"]) -> list[Any]:
        import torch

        hidden = {name: one for name, one in parameters.items() if one.dim() == 2 and "embedding_proj" not in name
                  and "position_proj" not in name}  # fmt: skip
        rest = {name: one for name, one in parameters.items() if name not in hidden}
        muon = torch.optim.Muon(
            hidden.values(),
            lr=self.lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            nesterov=True,
            adjust_lr_fn="match_rms_adamw",
        )
        for parameter in hidden.values():
            muon.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
        return [muon, *super().build(rest)] if rest else [muon]

    def state_elements(self, matrices: int, others: int) -> int:
        return matrices + 2 * others

    def describe(self) -> str:
        return f"Muon, momentum {self.momentum:g}, for hidden matrices; for all else {super().describe()}"


class SGD(OptimizerSettings):
    """Stochastic gradient descent with Nesterov's momentum, fused. Weight decay is added to the gradient."""

    name: Literal["sgd"] = "sgd"
    """Gradient descent with momentum."""
    momentum: Decay
    """Decay of the momentum; 0: none."""

    def build(self, parameters: Mapping[str, "Tensor"]) -> list[Any]:
        import torch

        groups = decay_groups(parameters.values(), self.weight_decay)
        nesterov = self.momentum > 0
        optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=nesterov, fused=True)
        for parameter in parameters.values() if self.momentum else ():
            optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
        return [optimizer]

    def state_elements(self, matrices: int, others: int) -> int:
        return matrices + others if self.momentum else 0

    def describe(self) -> str:
        return f"SGD, momentum {self.momentum:g}, weight decay {self.weight_decay:g}"


class Lion(OptimizerSettings):
    """Lion (arXiv 2302.06675): the sign of an average of gradients, with decoupled weight decay.

    Its steps are larger than AdamW's: the paper takes `lr` 3 to 10 times smaller, and `weight_decay` as much larger.
    """

    name: Literal["lion"] = "lion"
    """The sign of averaged gradients."""
    beta1: Decay
    """Weight of the average against the gradient in the update."""
    beta2: Decay
    """Decay of the average."""

    def build(self, parameters: Mapping[str, "Tensor"]) -> list[Any]:
        groups = decay_groups(parameters.values(), self.weight_decay)
        return [LionUpdate(groups, self.lr, self.beta1, self.beta2)]

    def state_elements(self, matrices: int, others: int) -> int:
        return matrices + others

    def describe(self) -> str:
        return f"Lion, β₁ {self.beta1:g}, β₂ {self.beta2:g}, weight decay {self.weight_decay:g}"


class LionUpdate:
    """Lion's update, algorithm 2 of the paper, with the attributes of a torch optimizer that training uses."""

    _step_supports_amp_scaling = True  # `found_inf` is obeyed here; see pico.train.step.step_unless

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, beta1: float, beta2: float) -> None:
        import torch

        self.param_groups = [{**group, "lr": lr, "betas": (beta1, beta2)} for group in groups]
        every = [one for group in self.param_groups for one in group["params"]]
        self.state = {one: {"exp_avg": torch.zeros_like(one)} for one in every}
        self.found_inf: Tensor | None = None
        """A scalar on the device; where it is not 0, `step` changes nothing."""

    def step(self) -> None:
        """Updates all parameters that have a gradient. Does not wait for the device."""
        import torch

        with torch.no_grad():
            for group in self.param_groups:
                beta1, beta2 = group["betas"]
                for parameter in (one for one in group["params"] if one.grad is not None):
                    gradient, average = parameter.grad, self.state[parameter]["exp_avg"]
                    sign = average.lerp(gradient, 1 - beta1).sign_()
                    updated = (parameter * (1 - group["lr"] * group["weight_decay"])).sub_(sign, alpha=group["lr"])
                    averaged = average.lerp(gradient, 1 - beta2)
                    if self.found_inf is not None:
                        skip = self.found_inf.bool()
                        updated, averaged = torch.where(skip, parameter, updated), torch.where(skip, average, averaged)
                    parameter.copy_(updated)
                    average.copy_(averaged)


def decay_groups(parameters: Collection["Tensor"], weight_decay: float) -> list[dict[str, Any]]:
    """Returns two parameter groups: matrices, which decay, and vectors, which do not."""
    return [
        {"params": [one for one in parameters if one.dim() >= 2], "weight_decay": weight_decay},
        {"params": [one for one in parameters if one.dim() < 2], "weight_decay": 0.0},
    ]


Optimizer = Annotated[AdamW | Muon | SGD | Lion, Field(discriminator="name")]
"""Settings of any optimizer; `name` says which."""

OPTIMIZERS: dict[str, type[OptimizerSettings]] = {
    kind.model_fields["name"].default: kind for kind in get_args(get_args(Optimizer)[0])
}
"""The settings class of each name."""
