"""What a run leaves on disk, and what it needs there while it works."""

from dataclasses import dataclass

from torch import nn

from pico.flops import count_parameters
from pico.model import Decoder
from pico.train.capture import captured_positions, chosen_layers
from pico.train.checkpoints import RESCUES_KEPT, checkpoint_steps
from pico.train.spec import RunSpec


@dataclass(frozen=True)
class Disk:
    """Bytes of tensors; names, hashes and settings beside them are some kilobytes a checkpoint."""

    checkpoints: int
    """How many are kept."""
    weights: int
    """Of all checkpoints."""
    dynamics: int
    """Activations and gradients of all checkpoints, on two batches."""
    states: int
    """The optimiser's, in the last checkpoint."""
    working: int
    """Besides, while it trains: rescue checkpoints."""

    @property
    def total(self) -> int:
        """At the fullest."""
        return self.weights + self.dynamics + self.states + self.working


def run_disk(spec: RunSpec, seq_len: int) -> Disk:
    """Of one model's run. Raises PicoError for layers that the model does not have.

    The held-out batch is taken to have as many rows as the training one; there may be fewer.
    """
    kept = len(checkpoint_steps(spec.training.steps, spec.checkpoints.every))
    counts = count_parameters(spec.decoder)
    matrices = counts.attention + counts.mlp
    weights, moments = 4 * counts.total, 4 * spec.optimizer.state_elements(matrices, counts.total - matrices)
    if spec.decoder.tied_embeddings:
        weights += 4 * spec.decoder.vocab_size * spec.decoder.d_model  # a file holds them under both names
    settings = spec.learning_dynamics
    model = Decoder(spec.decoder, seed=None)
    layers = chosen_layers(model, settings.layers)
    positions = settings.batch_size * len(captured_positions(seq_len, settings.positions))
    sizes = (_features(layer) * positions + layer.get_parameter("weight").numel() for layer in layers.values())
    states = 4 * sum(sizes)
    if layers and 2 * settings.noise_batch <= settings.batch_size:  # squared lengths of gradients
        states += 8 * len(list(model.parameters())) * (settings.batch_size // settings.noise_batch + 1)
    return Disk(
        checkpoints=kept,
        weights=kept * weights,
        dynamics=kept * 2 * states,
        states=moments,
        working=RESCUES_KEPT * (weights + moments),
    )


def _features(layer: nn.Module) -> int:
    """The width of a layer's output."""
    weight = layer.get_parameter("weight")
    return weight.shape[-1] if isinstance(layer, nn.Embedding) else weight.shape[0]
