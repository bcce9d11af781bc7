"""Ray Train's set-up of torch.distributed, at no cost where there is one worker.

Ray's controller process unpickles this configuration. With Ray's own TorchConfig it would import torch there, seconds
for each run; this one imports it only where several workers have to find each other.
"""

from dataclasses import dataclass
from typing import Any

from ray.train.backend import Backend, BackendConfig


class ProcessGroup(Backend):
    """What Ray's own torch backend does, for several workers."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        if len(worker_group) > 1:
            backend, config = _torch_backend(backend_config)
            backend.on_start(worker_group, config)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        if len(worker_group) > 1:
            backend, config = _torch_backend(backend_config)
            backend.on_shutdown(worker_group, config)


@dataclass
class ProcessGroupConfig(BackendConfig):
    """`backend`: "gloo" or "nccl"."""

    backend: str

    @property
    def backend_cls(self) -> type[Backend]:
        return ProcessGroup


def _torch_backend(config: ProcessGroupConfig) -> tuple[Any, Any]:
    from ray.train.torch import TorchConfig

    real = TorchConfig(backend=config.backend)
    return real.backend_cls(), real
