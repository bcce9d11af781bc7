"""A Hugging Face causal LM as a Scorer with attention and derivatives (Llama, GPT-NeoX, OPT, GPT-2, Pythia, ...)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pico.behaviour.scorer import mask_future
from pico.errors import PicoError

OBSERVED = "pico_observed"
"""The name under which transformers finds our attention, which notes its scores; see `attention_logits`."""


class HuggingFaceScorer:
    """Wraps a model of transformers' AutoModelForCausalLM. It is put in eval mode and otherwise left as it was."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def context_length(self) -> int:
        """The longest input that the configuration names. Raises PicoError where it names none."""
        length = getattr(self.model.config, "max_position_embeddings", None)
        if length is None:
            raise PicoError(
                f"the configuration of this {type(self.model).__name__} has no max_position_embeddings",
                mend="set model.config.max_position_embeddings to the longest input that the model was made for",
            )
        return int(length)

    def log_probabilities(self, input_ids: Tensor) -> Tensor:
        return self.logits(input_ids).float().log_softmax(-1)

    @torch.no_grad()
    def attention_logits(self, input_ids: Tensor) -> Iterator[Tensor]:
        """See AttentionScorer. Holds the scores of all layers of these rows until the last is taken.

        For the length of one forward pass the model uses an attention of ours: the eager formula, whose scores are
        kept. Raises PicoError for models that do not take their attention from transformers' AttentionInterface, or add
        to the scores within it (score soft-capping).
        """
        from transformers import AttentionInterface  # slow to import, so only where it is used
        from transformers.masking_utils import AttentionMaskInterface, eager_mask

        found: list[Tensor] = []

        def observed(
            module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
        ) -> tuple[Tensor, Tensor]:
            if settings.get("softcap") is not None:
                raise PicoError(f"{type(module).__name__} caps its scores: they are no plain q.k")
            scaling = settings.get("scaling")
            group = query.shape[1] // key.shape[1]
            key, value = (part.repeat_interleave(group, dim=1) for part in (key, value))
            scores = (query @ key.transpose(-1, -2)).float() * (query.shape[-1] ** -0.5 if scaling is None else scaling)
            if attention_mask is None:
                scores = mask_future(scores)
            else:  # 0 where seen, the type's lowest value where not
                mask = attention_mask[..., : key.shape[-2]]
                scores = scores.masked_fill(mask < torch.finfo(mask.dtype).min / 2, float("-inf"))
            found.append(scores)
            attention = scores.softmax(-1)
            return (attention.to(value.dtype) @ value).transpose(1, 2).contiguous(), attention

        AttentionInterface.register(OBSERVED, observed)
        AttentionMaskInterface.register(OBSERVED, eager_mask)
        before = self.model.config._attn_implementation
        try:
            self.model.set_attn_implementation(OBSERVED)
            self.logits(input_ids)
        finally:
            self.model.set_attn_implementation(before)
        if not found:
            raise PicoError(
                f"the attention of {type(self.model).__name__} cannot be observed: it does not use transformers' "
                "AttentionInterface",
                mend="leave the attention metrics out for this model",
            )
        while found:
            yield found.pop(0)

    def parameters(self) -> tuple[Tensor, ...]:
        return tuple(parameter for parameter in self.model.parameters() if parameter.requires_grad)

    def logits(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids.to(self.model.device), use_cache=False).logits
