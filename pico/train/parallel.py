"""How the processes that train one model share it: each has it whole (DDP), or each has a shard (FSDP2).

To the loop all three look alike: named tensors that the optimiser updates, gradients for them, and their whole values
on demand. Of a sharded parameter that tensor is this process's shard, a view of FSDP's own storage, so that optimiser
and clipping are the same plain torch whatever the sharding.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pico.errors import PicoError
from pico.model import Decoder
from pico.train.world import World


class _Loss(nn.Module):
    """The sum of the losses of a micro-batch as a forward pass, which is what DDP and FSDP can wrap."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        return self.decoder.loss(input_ids, targets, "sum")


class Whole:
    """The whole model in this process, and in each of the others if there are any (DistributedDataParallel)."""

    def __init__(self, decoder: Decoder, world: World) -> None:
        self.decoder, self.world = decoder.to(world.device), world
        self.loss: nn.Module = _Loss(self.decoder)
        """(input_ids, targets) -> the sum of the losses; its backward pass averages gradients over the processes."""
        if world.size > 1:
            from torch.nn.parallel import DistributedDataParallel

            devices = [world.device.index] if world.device.type == "cuda" else None
            self.loss = DistributedDataParallel(
                self.loss, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self.parameters: dict[str, Tensor] = dict(self.decoder.named_parameters())
        """By name: what the optimiser updates."""
        self.aliases = _aliases(decoder)
        """Second names of parameters, as tied embeddings have one: alias -> the name in `parameters`."""

    def settle(self) -> None:
        """To be called once, before the first update or after a resume: from then on, equal gradients give equal sums.

        DDP deals its buckets out anew after the first backward pass that exchanges, in the order of that pass, and with
        more than two processes the order of summing depends on the buckets. Gradients of zero take that pass here.
        """
        if self.world.size > 1:
            ids = torch.zeros(1, 1, dtype=torch.long, device=self.world.device)
            (self.loss(ids, ids) * 0).backward()
            self.forget_gradients()

    def quiet(self, last: bool) -> AbstractContextManager[Any]:
        """Around the backward pass of a micro-batch: gradients are exchanged once an update, with the last one."""
        return nullcontext() if last or self.world.size == 1 else self.loss.no_sync()  # type: ignore[operator]

    def gradients(self) -> list[Tensor]:
        """Of `parameters`, in their order, as the optimiser will see them."""
        return [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]

    def norm(self) -> Tensor:
        """The length of the whole gradient: a scalar."""
        return torch.nn.utils.get_total_norm(self.gradients())

    def forget_gradients(self) -> None:
        """After an update."""
        for parameter in self.decoder.parameters():
            parameter.grad = None

    def part(self, name: str, whole: Tensor) -> Tensor:
        """What this process holds of a tensor shaped like the parameter `name`."""
        return whole

    def gathered(self, tensors: Mapping[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copies on the CPU, of whole tensors: key -> (parameter, this process's part). All processes call it; what
        the others than the first get is empty."""
        if self.world.rank:
            return {}
        return {key: _copy(tensor) for key, (_, tensor) in tensors.items()}

    def weights(self) -> dict[str, Tensor]:
        """Copies of all weights, under all of their names; as `gathered`."""
        found = self.gathered({name: (name, tensor) for name, tensor in self.parameters.items()})
        return found | {alias: found[name] for alias, name in self.aliases.items() if name in found}

    def whole_decoder(self, weights: Mapping[str, Tensor]) -> Decoder:
        """The model as one process sees it, on its device; `weights`: what `weights()` gave."""
        return self.decoder


class Sharded(Whole):
    """A share of every parameter, gradient and moment in each process (FSDP2): gathered layer by layer, and let go."""

    def __init__(self, decoder: Decoder, world: World) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.decoder, self.world, self.aliases = decoder, world, _aliases(decoder)
        mesh = init_device_mesh(world.device.type, (world.size,))
        for layer in decoder.layers:
            fully_shard(layer, mesh=mesh)
        self.loss = fully_shard(_Loss(decoder), mesh=mesh)  # type: ignore[assignment]
        self._shards: dict[str, Any] = dict(decoder.named_parameters())
        self.parameters = {name: nn.Parameter(shard.to_local().detach()) for name, shard in self._shards.items()}

    def settle(self) -> None:
        """FSDP sums each layer by itself, always in the same way."""

    def quiet(self, last: bool) -> AbstractContextManager[Any]:
        self.loss.set_requires_gradient_sync(last)  # type: ignore[operator]
        return nullcontext()

    def gradients(self) -> list[Tensor]:
        for name, shard in self._shards.items():
            self.parameters[name].grad = None if shard.grad is None else shard.grad.to_local()
        return super().gradients()

    def norm(self) -> Tensor:
        squares = torch.stack([gradient.square().sum() for gradient in self.gradients()]).sum()
        return self.world.sum(squares).sqrt()

    def forget_gradients(self) -> None:
        super().forget_gradients()
        for parameter in self.parameters.values():
            parameter.grad = None

    def part(self, name: str, whole: Tensor) -> Tensor:
        local = self.parameters[name]
        if whole.dim() == 0:
            return whole
        chunks = whole.chunk(self.world.size)  # FSDP2 shards the first axis as torch.chunk does
        return chunks[self.world.rank] if self.world.rank < len(chunks) else local.detach()

    def gathered(self, tensors: Mapping[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
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
                found[key] = _copy(tensor)
        return found

    def whole_decoder(self, weights: Mapping[str, Tensor]) -> Decoder:
        decoder = Decoder(self.decoder.config)
        decoder.load_state_dict(weights)
        return decoder.to(self.world.device)


def share(decoder: Decoder, world: World, sharding: str) -> Whole:
    """The decoder (on the CPU, the same in every process) shared as `training.sharding` says."""
    return Sharded(decoder, world) if sharding == "full" and world.size > 1 else Whole(decoder, world)


@torch.no_grad()
def restore(mine: Mapping[str, Tensor], whole: Mapping[str, Tensor], shared: Whole, *, where: str) -> None:
    """Copies into each of `mine` (key `<parameter>` or `<parameter>.<kind>`) its part of the whole tensor of that key.

    Raises PicoError naming a tensor that is missing, unknown or misshapen.
    """
    shapes = {name: parameter.shape for name, parameter in shared.decoder.named_parameters()}
    for key in sorted(mine.keys() | whole.keys()):
        name = key if key in shapes else key.rpartition(".")[0]
        fits = key in mine and key in whole
        if not fits or whole[key].shape != (shapes[name] if mine[key].dim() else mine[key].shape):
            raise PicoError(f"{key} does not fit the model", where=where,
                            mend="delete this checkpoint; training resumes from the one before it")  # fmt: skip
        mine[key].copy_(shared.part(name, whole[key]))


def _aliases(decoder: Decoder) -> dict[str, str]:
    first = {id(parameter): name for name, parameter in decoder.named_parameters()}
    every = decoder.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
