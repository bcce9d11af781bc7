"""Memory and disk of training, part by part, from the shape alone.

The tensors that optimiser and autograd keep are counted one by one, as torch keeps them when the model runs eagerly; a
test holds `activation_bytes` to torch's own hooks. Compiled layers work some of it out anew, and need less. To the sum
comes memory that no tensor accounts for (`RESERVED_BYTES`).
"""

from dataclasses import dataclass

from torch import nn

from pico.flops import count_parameters
from pico.model import Decoder, DecoderConfig
from pico.model.cross_entropy import CHUNK_ELEMENTS
from pico.train.capture import captured_positions, chosen_layers
from pico.train.checkpoints import RESCUES_KEPT, checkpoint_steps
from pico.train.spec import RunSpec

RESERVED_BYTES = 2 * 2**30
"""Memory held back on a GPU for CUDA's context, workspaces of cuBLAS and NCCL, and gaps; a rule of thumb."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the fullest moment of training."""

    weights: int
    gradients: int
    optimizer: int
    copies: int
    """Copies of weights in bf16, which autocast makes for each forward pass."""
    activations: int
    """Tensors that the forward pass of a micro-batch keeps for the backward pass."""
    logits: int
    """A chunk of logits, and the gradients that the loss works out along with them."""
    capture: int
    """Memory for capturing learning dynamics, beyond an update's gradients and activations."""

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(vars(self).values())

    @property
    def fixed(self) -> int:
        """The parts that do not shrink with the micro-batch."""
        return self.weights + self.gradients + self.optimizer + self.copies


def training_memory(
    config: DecoderConfig,
    *,
    micro_batch: int,
    seq_len: int,
    bf16: bool,
    cuda: bool,
    shards: int = 1,
    noise_batch: int = 0,
    state_elements: int | None = None,
) -> Memory:
    """Returns the memory of a micro-batch of rows of `seq_len`.

    shards: processes over which weights, gradients and moments are sharded (FSDP2); noise_batch: rows of the small
    batches of a capture, 0 where nothing is captured; state_elements: values that the optimizer keeps, by default
    AdamW's two a weight.
    """
    counts = count_parameters(config)
    size = 4 * counts.total
    # FSDP2 holds the embeddings, which are wrapped together, and two blocks as a whole besides the shares.
    gathered = 4 * (counts.embeddings + 2 * (counts.attention + counts.mlp) // config.n_layers) if shards > 1 else 0
    activations = activation_bytes(config, micro_batch, seq_len, bf16=bf16, cuda=cuda)
    logits = logits_bytes(config, micro_batch * seq_len, bf16=bf16, cuda=cuda)
    capture = 0
    if noise_batch:
        rows = min(micro_batch, noise_batch)
        # The mean over all rows, and the gradients of a small batch; two of these while micro-batches are added up.
        # Of a sharded model, the first process gathers the weights, too.
        kept = size * ((2 if rows == noise_batch else 3) + (shards > 1))
        kept += activation_bytes(config, rows, seq_len, bf16=bf16, cuda=cuda)
        kept += logits_bytes(config, rows * seq_len, bf16=bf16, cuda=cuda)
        capture = max(0, kept - (size + gathered) // shards - activations - logits)
    return Memory(
        weights=size // shards + gathered,
        gradients=size // shards + gathered,
        optimizer=(2 * size if state_elements is None else 4 * state_elements) // shards,
        copies=2 * (counts.attention + counts.mlp + config.vocab_size * config.d_model) if bf16 else 0,
        activations=activations,
        logits=logits,
        capture=capture,
    )


def activation_bytes(config: DecoderConfig, rows: int, seq_len: int, *, bf16: bool, cuda: bool) -> int:
    """Returns the bytes that autograd keeps of `Decoder.hidden` for its backward pass, weights and copies apart.

    In each block: the inputs of its seven products (in bf16 each product casts its own), what the two norms, SwiGLU and
    attention (queries, keys, values, output, one float32 a head) need. All but the products' own values is float32.
    """
    width, hidden = config.d_model, config.activation_hidden_dim
    heads, kv_heads, head_dim = config.attention_n_heads, config.attention_n_kv_heads, config.head_dim
    size = 2 if bf16 else 4
    # Elements that a norm of width n keeps: its input and one or two statistics a row; torch's RMSNorm on a CPU, which
    # is made of simpler operations, the scaled input as well.
    layer_norm = config.norm == "layernorm"
    scaled = not layer_norm and not cuda

    def norm(n: int) -> int:
        return 4 * (n * (1 + scaled) + 1 + layer_norm)

    inputs = (5 if bf16 else 2) * size * width  # of q, k, v and of w_0, w_1; o_proj's is attention's output
    attention = size * (2 * heads + 2 * kv_heads) * head_dim + 4 * heads
    # w_0's output, the gate, w_1's output and w_2's input; relu keeps its output, which is the gate
    gated = (3 if config.activation == "relu" else 4) * size * hidden
    block = 2 * norm(width) + inputs + attention + gated
    if config.qk_norm:
        block += (heads + kv_heads) * norm(head_dim)
    ids = 8 * rows * seq_len + (8 * seq_len if config.positions == "learned" else 0)
    return rows * seq_len * (config.n_layers * block + norm(width)) + ids


def logits_bytes(config: DecoderConfig, tokens: int, *, bf16: bool, cuda: bool) -> int:
    """Returns the bytes that `linear_cross_entropy` holds at once.

    They are two float32 blocks of logits, the gradient of the output matrix with the product that is being added to it,
    and the gradient of the hidden states.
    """
    size = 2 if bf16 else 4
    rows = min(tokens, max(16, CHUNK_ELEMENTS["cuda" if cuda else "cpu"] // config.vocab_size))
    matrix = config.vocab_size * config.d_model
    return 8 * rows * config.vocab_size + (4 + size) * matrix + size * tokens * config.d_model


@dataclass(frozen=True)
class Disk:
    """Bytes of a run's tensors on disk; names, hashes and settings beside them are some kilobytes a checkpoint."""

    checkpoints: int
    weights: int
    dynamics: int
    """Activations and gradients of all checkpoints, on two batches."""
    states: int
    """The optimiser's states, in the last checkpoint."""
    working: int
    """Rescue checkpoints, which exist while it trains."""

    @property
    def total(self) -> int:
        """The sum of all parts, at the fullest moment."""
        return self.weights + self.dynamics + self.states + self.working


def run_disk(spec: RunSpec, seq_len: int) -> Disk:
    """Returns the disk space of one model's run. Raises PicoError for captured layers that the model does not have.

    The held-out batch is taken to have as many rows as the training one; there may be fewer.
    """
    kept = len(checkpoint_steps(spec.training.steps, spec.checkpoints.every))
    counts = count_parameters(spec.decoder)
    matrices = counts.attention + counts.mlp
    weights, moments = 4 * counts.total, 4 * spec.optimizer.state_elements(matrices, counts.total - matrices)
    if spec.decoder.tied_embeddings:
        weights += 4 * spec.decoder.vocab_size * spec.decoder.d_model  # a file holds them under both names
    settings, model = spec.learning_dynamics, Decoder(spec.decoder, seed=None)
    layers = chosen_layers(model, settings.layers)
    positions = settings.batch_size * len(captured_positions(seq_len, settings.positions))
    states = 0
    for layer in layers.values():
        weight = layer.get_parameter("weight")
        features = weight.shape[-1] if isinstance(layer, nn.Embedding) else weight.shape[0]
        states += 4 * (features * positions + weight.numel())
    if layers and 2 * settings.noise_batch <= settings.batch_size:  # squared lengths of gradients
        states += 8 * len(list(model.parameters())) * (settings.batch_size // settings.noise_batch + 1)
    return Disk(
        checkpoints=kept,
        weights=kept * weights,
        dynamics=kept * 2 * states,
        states=moments,
        working=RESCUES_KEPT * (weights + moments),
    )
