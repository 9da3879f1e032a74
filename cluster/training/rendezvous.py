"""How the processes of a training on one machine find each other: through a file.

PyTorch's server for this listens on all addresses of the machine and trusts whoever connects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import ray
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)


@dataclass
class FileConfig(TorchConfig):
    """Settings of the process group of a training on one machine.

    Attributes:
        folder: for the file; only this user can enter it.
    """

    folder: str = ""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return FileBackend


class FileBackend(_TorchBackend):
    """Ray Train's backend that joins the processes of a `FileConfig` to one process group."""

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Connect all processes; Ray Train calls it again when processes were replaced."""
        assert isinstance(backend_config, FileConfig)
        url = f"file://{backend_config.folder}/rendezvous-{uuid4().hex}"
        worker_group.execute(_set_torch_distributed_env_vars)
        started = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=len(worker_group),
                init_method=url,
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(started)
