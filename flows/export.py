"""Stage `export`: a Hugging Face folder from the last checkpoint."""

from pathlib import Path
from typing import Any

from prefect import task

from flows.stage import Stage, run
from pico.checkpoint import Checkpoint, checkpoints
from pico.config import Params
from pico.errors import PicoError
from pico.export.hugging_face import verify_export, write_model
from pico.export.model_card import continuations, model_card
from pico.export.tokenizer import heldout_rows, write_tokenizer
from pico.files import publishing, read_json, write_atomic, write_json
from pico.flops import count_parameters
from pico.model import DecoderConfig
from pico.spread import with_threads

DATA = Path("data")
ROWS_PER_DOMAIN = 1
"""Held-out rows of each domain that the export is checked on."""


@task
def convert(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    """Writes weights, configuration and tokenizer."""
    meta = write_tokenizer(folder, DATA / "tokens" / "tokenizer", max_seq_len=checkpoint.config["max_seq_len"])
    write_model(folder, checkpoint, dtype=dtype, eos_id=meta["eos_id"])


@task
def check(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Compares logits with ours on held-out text; nothing is published if they differ."""
    rows = heldout_rows(DATA / "tokens", ROWS_PER_DOMAIN)[:, :-1]
    worst = verify_export(folder, checkpoint, rows)
    return {"rows": len(rows), "tokens": rows.numel(), "largest logit difference": worst}


@task
def sample(folder: Path) -> list[dict[str, str]]:
    """Writes greedy continuations, by one thread, because the order of a sum decides ties."""
    samples = with_threads(continuations, (folder,), 1)
    write_json(folder / "samples.json", samples)
    return samples


@task
def describe(model: str, params: Params, checkpoint: Checkpoint, folder: Path, samples: list[dict[str, str]]) -> None:
    """Writes the model card."""
    results = read_json(DATA / "evaluation" / params.suite.scale / model / "results.json")
    found = [entry for entry in results if entry["step"] == checkpoint.step]
    if not found:
        raise PicoError(f"step {checkpoint.step} of {model} was not evaluated", mend="run: dvc repro benchmark")
    config = DecoderConfig.from_dict(checkpoint.config)
    counts = count_parameters(config)
    card = model_card(
        model,
        params,
        config,
        results=found[0],
        samples=samples,
        parameters=counts.total,
        embedding_parameters=counts.embeddings,
    )
    write_atomic(folder / "README.md", card)


def export(stage: Stage) -> None:
    """Writes aside, checks, and only then publishes `data/export/SCALE/MODEL/`."""
    model, scale = stage.model, stage.params.suite.scale
    found = checkpoints(DATA / "models" / scale / model)
    if not found:
        raise PicoError(f"{model} has no checkpoint", where=str(DATA / "models" / scale / model), mend="run: dvc repro")
    with publishing(DATA / "export" / scale / model) as folder:
        convert(found[-1], folder, stage.params.export.dtype)
        checked = check(found[-1], folder)
        describe(model, stage.params, found[-1], folder, sample(folder))
        rows = [{"file": path.name, "bytes": path.stat().st_size} for path in sorted(folder.iterdir())]
    stage.table(f"export-{model}", rows, f"Files of {model}, step {found[-1].step}")
    stage.table(f"export-check-{model}", [checked], "Logits of the exported folder against the trained model's")


if __name__ == "__main__":
    run("export", export, per_model=True)
