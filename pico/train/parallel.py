"""The processes that train one model together, and how they share it: replicated (DDP) or sharded (FSDP2).

To the loop one process, replicas and shards look alike: named tensors that the optimizers update, gradients for them,
and their whole values on demand. Of a sharded parameter that tensor is this process's shard, a view of FSDP's own
storage, so that optimizers and clipping are the same plain torch whatever the sharding.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from pico.errors import PicoError
from pico.model import Decoder, DecoderConfig
from pico.train.recipe import Recipe, decoder_of
from pico.train.spec import whole_matrices_needed


@dataclass(frozen=True)
class World:
    """This process among `size` equal ones. With size 1 nothing is ever sent."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def shard(self, batch_size: int) -> slice:
        """Returns the examples of a global batch that are this process's: contiguous, equal parts."""
        each = batch_size // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sums over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def broadcast(self, value: Any) -> Any:
        """Returns the value that the first process passes, a picklable one."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def choose_device(kind: str) -> torch.device:
    """Returns the device that training.device names. Raises PicoError where it asks for CUDA and there is none."""
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise PicoError("training.device = 'cuda', but torch finds no CUDA device", where="params.yaml",
                        mend="use device: cpu or auto, or install a CUDA build of torch and a driver")  # fmt: skip
    return torch.device("cuda", 0)


@contextmanager
def reproducible(threads: int, seed: int, *, compiled: bool = False) -> Iterator[None]:
    """Makes equal programs give equal bits: fixed threads, seeded, deterministic kernels; restored afterwards.

    `compiled`: also in what torch.compile generates.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with a fixed workspace
    before = (torch.get_num_threads(), torch.get_deterministic_debug_mode(), torch.get_rng_state())
    extras: Any = torch.utils.deterministic
    fill = extras.fill_uninitialized_memory
    torch.set_num_threads(threads)  # the order of a parallel sum depends on their number
    if compiled:
        torch.use_deterministic_algorithms(True)
    else:  # the same switch, without importing the compiler to set its own, which takes 1.4 s
        torch.set_deterministic_debug_mode("error")
    extras.fill_uninitialized_memory = False  # a debugging aid that costs a pass over each tensor
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        if compiled:
            torch.use_deterministic_algorithms(False)
        torch.set_deterministic_debug_mode(before[1])
        extras.fill_uninitialized_memory = fill
        torch.set_rng_state(before[2])


class _Forward(nn.Module):
    """A recipe's losses as a forward pass, which is what DDP and FSDP can wrap."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, kind: str, *batch: Tensor) -> Tensor:
        return getattr(self.recipe, kind)(self.model, *batch)


class Replicated:
    """The whole model in this process, and in each of the others if there are any (DistributedDataParallel)."""

    sharded = False

    def __init__(self, model: nn.Module, recipe: Recipe, world: World) -> None:
        self.model, self.world = model.to(world.device), world
        self.forward: nn.Module = _Forward(self.model, recipe)
        """("loss" or "heldout_loss", *batch) -> the recipe's loss; its backward pass averages gradients over the
        processes."""
        if world.size > 1:
            from torch.nn.parallel import DistributedDataParallel

            devices = [world.device.index] if world.device.type == "cuda" else None
            self.forward = DistributedDataParallel(
                self.forward, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self.parameters: dict[str, Tensor] = dict(self.model.named_parameters())
        """The tensors that the optimizers update, by name."""
        self.shapes = {name: parameter.shape for name, parameter in self.parameters.items()}
        """The shape of each whole parameter."""
        self.aliases = _aliases(model)
        """Second names of parameters, as tied embeddings have one: alias -> the name in `parameters`."""

    def warm_up(self, batch: tuple[Tensor, ...]) -> None:
        """Takes a backward pass of zeros, once, before the first update: from then on equal gradients give equal sums.

        DDP deals its buckets out anew after the first backward pass that exchanges, in the order of that pass, and with
        more than two processes the order of summing depends on the buckets. FSDP sums each layer by itself, always in
        the same way, and needs none.
        """
        (self.forward("loss", *batch) * 0).backward()
        self.zero_grad()

    def no_sync(self, *, unless: bool) -> AbstractContextManager[Any]:
        """Surrounds a micro-batch's forward and backward pass: gradients are exchanged only where `unless` is true."""
        return nullcontext() if unless or self.world.size == 1 else self.forward.no_sync()  # type: ignore[operator]

    def check_optimizers(self, optimizers: Sequence[Any]) -> None:
        """Raises PicoError for an optimizer that does not work on this process's part of the parameters."""

    def gradients(self) -> list[Tensor]:
        """Returns the gradients of `parameters`, in their order, as the optimizers will see them."""
        return [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]

    def norm(self) -> Tensor:
        """Returns the length of the whole gradient, a scalar."""
        return torch.nn.utils.get_total_norm(self.gradients())

    def zero_grad(self) -> None:
        """Drops all gradients."""
        for parameter in (*self.model.parameters(), *self.parameters.values()):
            parameter.grad = None

    def shard(self, name: str, whole: Tensor) -> Tensor:
        """Returns this process's part of a tensor shaped like the parameter `name`."""
        return whole

    def full_tensors(self, tensors: Mapping[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Returns copies on the CPU of whole tensors: key -> (parameter, this process's part).

        All processes must call it; it is empty in all but the first.
        """
        if self.world.rank:
            return {}
        return {key: tensor.detach().to("cpu", copy=True) for key, (_, tensor) in tensors.items()}

    def full_weights(self) -> dict[str, Tensor]:
        """Returns copies of all weights, under all of their names; as `full_tensors`."""
        found = self.full_tensors({name: (name, tensor) for name, tensor in self.parameters.items()})
        return found | {alias: found[name] for alias, name in self.aliases.items() if name in found}

    def full_decoder(self, config: DecoderConfig, weights: Mapping[str, Tensor], *, exported: bool) -> Decoder:
        """Returns a Decoder of these weights on this process's device, outside of any wrapper.

        exported: whether the weights are others than the model's own, see `Recipe.export`.
        """
        if not exported and not self.sharded and isinstance(self.model, Decoder):
            return self.model
        decoder = Decoder(config)
        decoder.load_state_dict(weights)
        return decoder.to(self.world.device)


class Sharded(Replicated):
    """A shard of every parameter, gradient and moment in each process (FSDP2): gathered layer by layer, and let go."""

    sharded = True

    def __init__(self, model: nn.Module, recipe: Recipe, world: World) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.model, self.world, self.aliases = model, world, _aliases(model)
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        mesh = init_device_mesh(world.device.type, (world.size,))
        for layer in decoder_of(model).layers:
            fully_shard(layer, mesh=mesh)
        self.forward = fully_shard(_Forward(model, recipe), mesh=mesh)  # type: ignore[assignment]
        self._shards: dict[str, Any] = dict(model.named_parameters())
        self.parameters = {
            name: nn.Parameter(shard.to_local().detach(), requires_grad=shard.requires_grad)
            for name, shard in self._shards.items()
        }

    def no_sync(self, *, unless: bool) -> AbstractContextManager[Any]:
        self.forward.set_requires_gradient_sync(unless)  # type: ignore[operator]
        return nullcontext()

    def check_optimizers(self, optimizers: Sequence[Any]) -> None:
        if any(isinstance(one, torch.optim.Muon) for one in optimizers):
            raise whole_matrices_needed("Muon")

    def gradients(self) -> list[Tensor]:
        for name, shard in self._shards.items():
            self.parameters[name].grad = None if shard.grad is None else shard.grad.to_local()
        return super().gradients()

    def norm(self) -> Tensor:
        squares = torch.stack([gradient.square().sum() for gradient in self.gradients()]).sum()
        return self.world.all_reduce(squares).sqrt()

    def shard(self, name: str, whole: Tensor) -> Tensor:
        if whole.dim() == 0:
            return whole
        chunks = whole.chunk(self.world.size)  # FSDP2 shards the first axis as torch.chunk does
        return chunks[self.world.rank] if self.world.rank < len(chunks) else self.parameters[name].detach()

    def full_tensors(self, tensors: Mapping[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
        from torch.distributed.tensor import DTensor

        found = {}
        for key, (name, tensor) in tensors.items():
            if tensor.dim():
                like = self._shards[name]
                tensor = DTensor.from_local(
                    tensor.detach(),
                    like.device_mesh,
                    like.placements,
                    run_check=False,
                    shape=like.shape,
                    stride=like.stride(),
                ).full_tensor()
            if self.world.rank == 0:
                found[key] = tensor.detach().to("cpu", copy=True)
        return found


def parallelize(model: nn.Module, recipe: Recipe, world: World, sharding: str) -> Replicated:
    """Returns the model (on the CPU, the same in every process) set up as `training.sharding` says."""
    kind = Sharded if sharding == "full" and world.size > 1 else Replicated
    return kind(model, recipe, world)


def _aliases(model: nn.Module) -> dict[str, str]:
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}
