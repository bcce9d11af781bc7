"""Hugging Face causal LMs (Llama, GPT-NeoX, OPT, GPT-2, ...): loaded from a folder, captured, and asked as a Scorer.

No code of others is run, nothing is fetched. States have pico-decoder's names and layout.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pico.capture.architectures import KNOWN, Architecture, Shape, output_rows, shape_of
from pico.errors import PicoError
from pico.train.capture import captured_positions

RESIDUAL = "residual"
"""A name among the modules for the stream after a block: the block's own output, kept under `layers.N`."""
OBSERVED = "pico_observed"
"""The name under which transformers finds our attention, which notes its scores; see `attention_logits`."""


def load_config(folder: Path) -> Any:
    """Returns the transformers configuration of a folder.

    Raises PicoError for an architecture that transformers lacks.
    """
    transformers = _transformers()
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # ValueError, KeyError, OSError, depending on what is wrong with it
        model_type = _model_type(folder)
        raise PicoError(
            f"architecture {model_type!r} is not one that transformers has: {str(error).splitlines()[0]}",
            where=str(folder / "config.json"),
            mend="code that comes with a model is never run; convert it to an architecture of transformers",
        ) from error


def load_model(folder: Path, device: str) -> tuple[Any, torch.dtype]:
    """Returns the model in float32 and eval mode on `device`, and the type in which its weights are stored.

    Raises PicoError where it cannot be loaded, and where weights of it are missing, which transformers would make up.
    """
    transformers = _transformers()
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, dtype="auto", output_loading_info=True
        )
    except Exception as error:  # of transformers, safetensors, torch, the file system
        raise PicoError(
            f"{folder} cannot be loaded as a causal LM: {type(error).__name__}: {str(error).splitlines()[0]}",
            mend="name a folder that AutoModelForCausalLM can load without remote code",
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
    if missing := sorted(loaded["missing_keys"]):
        raise PicoError(
            f"{folder} lacks weights: {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}",
            mend="name a folder with the weights of a causal LM, head included",
        )
    stored = model.dtype
    return model.float().to(device).eval(), stored


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise PicoError("transformers is not installed", mend="pip install 'pico-lab[export]'") from None
    return transformers


def _model_type(folder: Path) -> str | None:
    try:
        return json.loads((folder / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class States:
    """The states of one checkpoint; see pico.checkpoint for the names."""

    weights: Mapping[str, Tensor]
    """Parameter name -> weight, in the type in which it was stored."""
    activations: Mapping[str, Tensor]
    """Module name -> (rows * positions, features) float32, ordered by sample, then position."""
    gradients: Mapping[str, Tensor]
    """Parameter name -> gradient of the mean loss over the batch, float32."""


class Blocks:
    """The blocks of a model, whose modules are found by pico's names."""

    def __init__(self, model: nn.Module, architecture: Architecture, shape: Shape) -> None:
        self.architecture, self.shape = architecture, shape
        self.blocks = _submodule(model, architecture.layers)
        self.names = [name for name in KNOWN if name in architecture.modules]
        if not isinstance(self.blocks, nn.ModuleList | nn.Sequential) or not len(self.blocks):
            raise PicoError(f"{architecture.layers} is not a list of blocks", mend="correct the mapping's `layers`")

    def module(self, layer: int, name: str) -> nn.Module:
        """Returns the Hugging Face module whose outputs, or some of them, are pico's module `name`."""
        return _submodule(self.blocks[layer], self.architecture.modules[name])

    def weight(self, layer: int, name: str, values: Tensor | None = None) -> Tensor:
        """Returns the weight (out, in) of pico's module `name`, or that part of `values` in the module's layout."""
        whole = self.module(layer, name).weight if values is None else values
        assert isinstance(whole, Tensor)
        return self.outputs(name, whole.detach().T if not self.architecture.transposed else whole.detach()).T

    def outputs(self, name: str, values: Tensor) -> Tensor:
        """Returns those of (..., outputs of the module) that are pico's module `name`, in pico's order."""
        rows = output_rows(self.architecture, self.shape, name)
        if rows is None:
            return values
        if len(rows) > values.shape[-1] or int(rows.max()) >= values.shape[-1]:
            raise PicoError(
                f"{self.architecture.modules[name]} has {values.shape[-1]} outputs, too few for {name} of "
                f"{self.shape.n_heads} heads of {self.shape.head_dim}",
                mend="the mapping's `fused` does not fit this architecture",
            )
        return values[..., rows.to(values.device)]


def capture_states(
    model: Any,
    architecture: Architecture,
    rows: Tensor,
    *,
    modules: Sequence[str],
    layers: Sequence[int],
    positions: int,
    micro_batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> States:
    """States of the chosen `modules` (pico's names) of `layers` on `rows`, (n, seq_len + 1) int64.

    `residual` is a block's output, which has no gradient.
    The model, in eval mode and float32, is left as it was. Weights of all known modules of `layers`, and embeddings,
    are given in `dtype`. The micro-batch changes gradients by rounding only. Raises PicoError for a module that the
    mapping does not have.
    """
    blocks = Blocks(model, architecture, shape_of(model.config))
    if missing := [name for name in modules if name not in (*blocks.names, RESIDUAL)]:
        raise PicoError(f"this architecture has no {missing[0]}", mend=f"choose from: {', '.join(blocks.names)}")
    wanted = {(layer, name): blocks.module(layer, name) for layer in layers for name in modules if name != RESIDUAL}
    at = captured_positions(rows.shape[1] - 1, positions)
    hooked = {**wanted, **{(layer, RESIDUAL): blocks.blocks[layer] for layer in layers if RESIDUAL in modules}}
    kept: dict[tuple[int, str], list[Tensor]] = {key: [] for key in hooked}
    # a fused module is there once
    parameters: dict[int, Any] = {id(module): module.weight for module in wanted.values()}
    sums = {key: torch.zeros_like(weight) for key, weight in parameters.items()}

    def hook(key: tuple[int, str]) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output  # a block may give its attention, too
            # some models flatten sequences before their MLP
            outputs = output.detach().reshape(-1, rows.shape[1] - 1, output.shape[-1])[:, at]
            kept[key].append(blocks.outputs(key[1], outputs).flatten(0, 1).float().cpu())

        return keep

    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    handles = [module.register_forward_hook(hook(key)) for key, module in hooked.items()]
    try:
        model.requires_grad_(False)
        for weight in parameters.values():
            weight.requires_grad_(True)
        for loss in _losses(model, rows, micro_batch_size):
            if not parameters:  # the residual stream alone is wanted: the forward pass was enough
                continue
            for key, gradient in zip(sums, torch.autograd.grad(loss, list(parameters.values())), strict=True):
                sums[key] += gradient
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
    return States(
        weights=_weights(model, blocks, layers, dtype),
        activations={
            f"layers.{layer}" if name == RESIDUAL else f"layers.{layer}.{name}": torch.cat(parts)
            for (layer, name), parts in kept.items()
        },
        gradients={
            f"layers.{layer}.{name}.weight": blocks.weight(layer, name, sums[id(module)]).float().cpu()
            for (layer, name), module in wanted.items()
        },
    )


def _losses(model: Any, rows: Tensor, micro_batch_size: int) -> Iterator[Tensor]:
    """Yields the parts of the mean cross-entropy over all targets, one a micro-batch."""
    device = next(model.parameters()).device
    count = rows.shape[0] * (rows.shape[1] - 1)
    with torch.enable_grad():
        for part in rows.split(micro_batch_size):
            inputs, targets = part[:, :-1].to(device), part[:, 1:].to(device)
            logits = model(input_ids=inputs, use_cache=False).logits.float()
            yield F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / count


def _weights(model: Any, blocks: Blocks, layers: Sequence[int], dtype: torch.dtype) -> dict[str, Tensor]:
    found = {f"layers.{layer}.{name}.weight": blocks.weight(layer, name) for layer in layers for name in blocks.names}
    for name, module in (
        ("embedding_proj", model.get_input_embeddings()),
        ("de_embedding_proj", model.get_output_embeddings()),
    ):
        if module is not None:
            found[f"{name}.weight"] = module.weight.detach()
    return {name: weight.to(dtype).cpu() for name, weight in found.items()}


def _submodule(module: nn.Module, name: str) -> Any:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise PicoError(
            f"the model has no module {name} ({error})", mend="correct the mapping; docs/any-model.md shows one"
        ) from None


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
        """Yields as AttentionScorer does. Holds the scores of all layers of these rows until the last is taken.

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
                later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
                scores = scores.masked_fill(later, float("-inf"))
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
