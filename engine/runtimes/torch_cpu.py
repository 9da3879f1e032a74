"""PyTorch on the CPU: the reference that every other engine is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from prompt_iml.engine.errors import InferError
from prompt_iml.engine.model.folder import Model
from prompt_iml.engine.model.prompts import PromptSet, check_fits, parameters
from prompt_iml.engine.network.model import PromptIML
from prompt_iml.engine.runtimes.protocol import Batch, Detection, Done, Engine


class TorchEngine(Engine):
    """The PyTorch network in float32 on the CPU. `threads` is set for the whole process."""

    name = "torch/f32/cpu"

    def __init__(self, model: Model, threads: int | None = None) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._model = model
        self._network = load_network(model)
        self.load_prompts(model.prompts)

    def load_prompts(self, prompts: PromptSet) -> None:
        """Use another prompt set from the next batch on."""
        check_fits(prompts, self._model.config)
        self._prompts = _tensors(prompts)

    def submit(self, batch: Batch) -> Done:
        """Run the batch. Raises `InferError` when PyTorch fails."""
        arrays = batch.image, batch.qtable, batch.histogram, batch.matches
        tensors = [torch.from_numpy(array) for array in arrays]
        try:
            with torch.inference_mode():
                mask_logits, score_logit = self._network(*tensors, self._prompts)
        except RuntimeError as error:
            raise InferError(f"{self.name}: {error}") from error
        return Done(Detection(mask_logits.numpy(), score_logit.numpy()))


def load_network(model: Model) -> PromptIML:
    """Return the network with the model's weights and prompts, float32, in evaluation mode."""
    network = PromptIML(model.config)
    state = {name: torch.from_numpy(tensor).float() for name, tensor in model.weights().items()}
    prompts = {n: torch.from_numpy(tensor) for n, tensor in parameters(model.prompts).items()}
    network.load_state_dict(state | prompts)
    return network.eval()


def _tensors(prompts: PromptSet) -> list[Tensor]:
    return [torch.from_numpy(tensor) for tensor in prompts.tensors]
