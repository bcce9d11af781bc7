"""The memory of training on one GPU, part by part, from the shape alone.

What the optimiser and autograd keep is counted tensor by tensor, as torch keeps it when the model runs eagerly; a test
holds `activation_bytes` to torch's own hooks. Compiled layers work some of it out anew, and need less. To the sum comes
what no tensor accounts for (`RESERVED_BYTES`).
"""

from dataclasses import dataclass

from pico.flops import count_parameters
from pico.model import DecoderConfig
from pico.model.cross_entropy import CHUNK_ELEMENTS

RESERVED_BYTES = 2 * 2**30
"""Of a GPU: CUDA's context, workspaces of cuBLAS and NCCL, and gaps between tensors. A rule of thumb, not a count."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the fullest moment of training."""

    weights: int
    gradients: int
    optimizer: int
    copies: int
    """Of weights in bf16, which autocast makes for each forward pass."""
    activations: int
    """What the forward pass of a micro-batch keeps for the backward pass."""
    logits: int
    """A chunk of logits, and the gradients that the loss works out along with them."""
    capture: int
    """What capturing learning dynamics needs beyond an update's gradients and activations."""

    @property
    def total(self) -> int:
        """All parts."""
        return sum(vars(self).values())

    @property
    def fixed(self) -> int:
        """What does not shrink with the micro-batch."""
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

    shards: processes that weights, gradients and moments are dealt out to (FSDP2); noise_batch: rows of the small
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
    """What autograd keeps of `Decoder.hidden` for its backward pass, weights and their copies apart.

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
    """What `linear_cross_entropy` holds at once: two float32 blocks of logits, the gradient of the output matrix with
    the product that is being added to it, and the gradient of the hidden states."""
    size = 2 if bf16 else 4
    rows = min(tokens, max(16, CHUNK_ELEMENTS["cuda" if cuda else "cpu"] // config.vocab_size))
    matrix = config.vocab_size * config.d_model
    return 8 * rows * config.vocab_size + (4 + size) * matrix + size * tokens * config.d_model
