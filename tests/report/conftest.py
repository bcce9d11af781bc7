"""Small outs of every stage, true to docs/architecture.md, with values that no test reads as results."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from pico.config import Params, load_params
from pico.report.inputs.suite import Inputs, ModelPaths, Suite, gather
from pico.report.pages.index import draw, render

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 100, 200)
EVALUATED = (0, 4, 32, 200)
LAYERS, HEADS = 4, 2
MODULES = ("attention.o_proj", "attention.v_proj", "swiglu.w_2")
DOMAINS = ("code", "dialogue", "dictionary", "encyclopedia", "speeches")
TASKS = (("sciq", 0.25), ("arc_easy", 0.2513), ("piqa", 0.5), ("hellaswag", 0.25), ("lambada", 0.0))
WIDTHS = (32, 64, 128, 192, 256, 384)
VOCABULARY = 512


def write_inputs(folder: Path, names: Sequence[str], *, nulls: bool = False) -> Inputs:
    """Writes everything the report reads. `nulls`: missing benchmark values and errors, metrics without a value."""
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    params = Params.model_validate(
        params.model_dump()
        | {
            "suite": {"scale": "laptop", "models": list(names)},
            "models": {
                name: {"d_model": width, "activation_hidden_dim": 4 * width}
                for name, width in zip(names, WIDTHS, strict=False)
            },
        }
    )
    write(
        folder / "sources.json",
        [
            {
                "name": f"{domain}-source",
                "domain": domain,
                "licence": "CC BY-SA 4.0",
                "kind": "wheel",
                "pin": f"{domain}-package==1.0 sha256:{'ab' * 32}",
                "documents": 1000 * i,
                "bytes": 1_234_567 * i,
            }
            for i, domain in enumerate(DOMAINS, 1)
        ],
    )
    counts = {
        domain: {
            "documents": 1000 * i,
            "bytes": 1_234_567 * i,
            "tokens": 400_000 * i,
            "duplicates_dropped": i,
            "documents_read": 1001 * i,
            "train_documents": 980 * i,
            "train_tokens": 390_000 * i,
            "train_rows": 1500 * i,
            "heldout_documents": 20 * i,
            "heldout_tokens": 10_000 * i,
            "heldout_rows": 40,
            "tail_tokens_dropped": 17,
            "bytes_per_token": 3.1,
        }
        for i, domain in enumerate(DOMAINS, 1)
    }
    total = {key: sum(entry[key] for entry in counts.values()) for key in counts["code"]} | {"bytes_per_token": 3.1}
    unigram = {domain: 3.0 + 0.1 * i for i, domain in enumerate(DOMAINS)} | {"all": 3.2}
    write(folder / "provenance.json", {"domains": counts, "total": total, "unigram": unigram})
    write(
        folder / "gates.json",
        [
            {
                "rule": "document lengths in bytes",
                "where": "data/documents",
                "observed": "1 to 40,000",
                "limit": "1 to 5,000,000",
                "param": "gates.max_document_bytes",
                "passed": True,
            },
            {
                "rule": "no held-out row in training",
                "where": "data/tokens",
                "observed": 0,
                "limit": 0,
                "param": "",
                "passed": True,
            },
        ],
    )
    write(folder / "profile.json", profile_of(counts))
    models = tuple(
        write_model(folder, name, width, index, nulls)
        for index, (name, width) in enumerate(zip(names, WIDTHS, strict=False))
    )
    return Inputs(
        params,
        folder / "sources.json",
        folder / "provenance.json",
        folder / "gates.json",
        folder / "profile.json",
        models,
    )


def profile_of(counts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns the statistics of the documents that the gates leave."""
    pair = {"domain": "code", "source": "code-source", "row": 3, "id": "ab" * 32, "similarity": 0.85}
    return {
        "compared_documents": {"train": 2000, "heldout": 40},
        "heldout_runs_sampled_one_in": 4,
        "exact_duplicates": 0,
        "length_bins_per_octave": 4,
        "domains": {
            name: {
                "used_documents": entry["documents"],
                "train_documents": entry["train_documents"],
                "heldout_documents": entry["heldout_documents"],
                "mean_bytes": 1234.5,
                "near_duplicates": 1,
                "near_duplicates_fraction": 0.001,
                "heldout_near_duplicates": 0,
                "heldout_near_duplicates_fraction": 0,
                "heldout_runs": 5000,
                "overlap": 0.0125,
                "words": 100 * entry["documents"],
                "bytes": entry["bytes"],
                "lengths": [[64.0, 10], [128.0, 30], [256.0, 20]],
                "characters": {"letters": 800, "digits": 20, "white space": 180, "all": 1000},
                "fertility": [2.5, 3.0, 3.25, 4.0],
                "samples": [{"id": "cd" * 32, "bytes": 40, "text": f"<script>{name}</script> & \u202eturned\x00"}],
            }
            for name, entry in counts.items()
        },
        "near_duplicates": {
            "near_duplicates": [pair | {"other_source": "code-source", "other_row": 9, "other_id": "ef" * 32}],
            "heldout_near_duplicates": [],
        },
        "benchmarks": [
            {"benchmark": "sciq/validation", "examples": 1000, "checked": 990, "contaminated": 1, "fraction": 0.001,
             "found": [{"benchmark": "sciq/validation", "example": 17, "source": "code-source", "row": 5,
                        "id": "01" * 32, "text": "What <b>is</b> it"}]}
        ],
    }  # fmt: skip


def write_model(folder: Path, name: str, width: int, index: int, nulls: bool) -> ModelPaths:
    """The outs of one model."""
    paths = ModelPaths(
        name,
        folder / "models" / name,
        folder / "models" / name / "training.csv",
        folder / "analysis" / name,
        folder / "evaluation" / name / "results.json",
        folder / "export" / name,
    )
    random = np.random.default_rng(index)
    for step in STEPS:
        checkpoint = paths.run / "checkpoints" / f"step_{step:08d}"
        checkpoint.mkdir(parents=True)
        write(checkpoint / "config.json", {"d_model": width, "n_layers": LAYERS})
        settings = {"model": name, "seed": 42, "decoder": {"d_model": width}}
        write(checkpoint / "trainer.json", {"step": step, "identity": {"data": {}, "settings": settings}})
        save_file(
            {
                "embedding_proj.weight": np.zeros((VOCABULARY, width), np.float32),
                "de_embedding_proj.weight": np.zeros((VOCABULARY, width), np.float32),
                "layers.0.attention.q_proj.weight": np.zeros((width, width), np.float32),
                "layers.0.swiglu.w_2.weight": random.standard_normal((width, 4 * width)).astype(np.float32),
            },
            checkpoint / "model.safetensors",
        )
    gap = 0.25 * index
    lines = ["step,tokens,learning_rate,train_loss,gradient_norm,heldout_loss"]
    for step in range(1, STEPS[-1] + 1):
        loss = 3.2 - gap + 3 * math.exp(-step / 40) + 0.1 * math.sin(9 * step)
        held = f"{loss + 0.1:.6f}" if step % 20 == 0 else ""
        lines.append(f"{step},{2048 * step},0.002,{loss:.6f},1.0,{held}")
    write(paths.training, "\n".join(lines) + "\n")
    write(paths.evaluation, [evaluation(step, index, nulls) for step in EVALUATED])
    write(
        paths.export / "samples.json",
        [
            {"prompt": prompt, "continuation": f" <b>&amp; {name} goes on\nand on."}
            for prompt in ("The people", "Hello!")
        ],
    )
    paths.analysis.mkdir(parents=True)
    for step in STEPS:
        pq.write_table(analysis(name, step, index, nulls), paths.analysis / f"step_{step:08d}.parquet")
    return paths


def evaluation(step: int, index: int, nulls: bool) -> dict[str, Any]:
    """One entry of results.json."""
    progress = math.log1p(step) / math.log1p(STEPS[-1])
    bits = 4.2 - (1.9 + 0.15 * index) * progress
    heldout = {
        domain: {
            "nats": 100.0,
            "tokens": 10_240,
            "bytes": 31_000,
            "perplexity": 40.0 * (1 + i),
            "bits_per_byte": bits + 0.1 * i,
        }
        for i, domain in enumerate((*DOMAINS, "all"))
    }
    benchmarks = {
        task: {
            "metric": "acc_norm",
            "value": chance + 0.05 * (index + 1) * progress,
            "stderr": 0.04,
            "chance": chance,
            "n": 100,
            "all": {"acc": 0.3},
        }
        for task, chance in TASKS
    }
    if nulls:
        benchmarks["sciq"] |= {"value": None, "stderr": None}
        benchmarks["piqa"] |= {"stderr": None}
        if step:
            del benchmarks["lambada"]
    return {"step": step, "tokens": 2048 * step, "heldout": heldout, "benchmarks": benchmarks}


def analysis(name: str, step: int, index: int, nulls: bool) -> pa.Table:
    """The table of one checkpoint."""
    rows: list[dict[str, Any]] = []
    progress = math.log1p(step) / math.log1p(STEPS[-1])

    def row(
        metric: str,
        component: str,
        data_type: str,
        layer: int,
        value: float | None,
        module: str | None = None,
        head: int | None = None,
        split: str | None = None,
        target: int | None = None,
    ) -> None:
        params = json.dumps({"module": module} if module else {}, sort_keys=True, separators=(",", ":"))
        rows.append(
            {
                "run": name,
                "step": step,
                "tokens": 2048 * step,
                "metric": metric,
                "params": params,
                "target_step": target,
                "target_run": None,
                "target_layer": None,
                "component": component,
                "data_type": data_type,
                "layer": layer,
                "head": head,
                "split": split,
                "value": value,
                "status": "ok" if value is not None else "zero",
                "n": 64,
                "p": 32,
                "rank": 32,
                "input_dtype": "float32",
            }
        )

    for layer in range(LAYERS):
        for place, module in enumerate(MODULES):
            similarity = min(1.0, progress * (0.8 + 0.08 * (LAYERS - layer)) ** (1 + place))
            for split in ("train", "val"):
                row("debiased_cka", "simple", "activations", layer, similarity, module, split=split, target=STEPS[-1])
            per = 0.95 - 0.2 * progress * (layer + 1) / LAYERS - 0.02 * index
            row("per", "simple", "weights", layer, per, module)
            row("effective_rank", "simple", "weights", layer, 32 * per, module)
            row("condition_number", "simple", "weights", layer, None if nulls else 10 + 1000 * progress, module)
            row("gini", "simple", "weights", layer, None if nulls and layer == 1 else 0.4 + 0.1 * progress, module)
            change = None if step == 0 else 0.01 * step**0.5
            before = max((other for other in STEPS if other < step), default=None)
            row("relative_change", "simple", "weights", layer, change, module, target=before)
            row("linear_cka", "simple", "activations", layer, similarity, module, split="val", target=STEPS[-1])
        for head in range(HEADS):
            row("effective_rank", "ov_circuit", "weights", layer, 8 - 2 * progress + head, head=head)
            row("per", "ov_circuit", "weights", layer, None if nulls else 0.5 + 0.1 * head, head=head)
        row("effective_rank", "ov_circuit", "weights", layer, 1000.0)
    schema = pa.schema(
        [
            ("run", pa.string()),
            ("step", pa.int64()),
            ("tokens", pa.int64()),
            ("metric", pa.string()),
            ("params", pa.string()),
            ("target_step", pa.int64()),
            ("target_run", pa.string()),
            ("target_layer", pa.int64()),
            ("component", pa.string()),
            ("data_type", pa.string()),
            ("layer", pa.int64()),
            ("head", pa.int64()),
            ("split", pa.string()),
            ("value", pa.float64()),
            ("status", pa.string()),
            ("n", pa.int64()),
            ("p", pa.int64()),
            ("rank", pa.int64()),
            ("input_dtype", pa.string()),
        ]
    )
    return pa.Table.from_pylist(rows, schema)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


@pytest.fixture
def make_inputs(tmp_path: Path) -> Callable[..., Inputs]:
    """`make_inputs("tiny", "small", nulls=True)`"""
    return lambda *names, **options: write_inputs(tmp_path / "outs", names, **options)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Suite, str]:
    """A suite of two models and its page."""
    suite = gather(write_inputs(tmp_path_factory.mktemp("shared"), ["tiny", "small"]))
    return suite, render(draw(suite))
