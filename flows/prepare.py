"""Stage `prepare`: cleaning, tokenizer, held-out sets, packed and shuffled token shards."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from prefect import task

from flows.lab import environment
from flows.stage import Stage, run
from pico.data.preparation.pipeline import prepare as prepare_tokens
from pico.files import read_json, write_json

DOCUMENTS, TOKENS, PROVENANCE = Path("data/documents"), Path("data/tokens"), Path("reports/data.json")

RAY_BYTES = 2**28
"""Text from which Ray is worth its start-up."""

SAID = 0.1
"""Share of the work between two lines in a log."""


def prepare(stage: Stage) -> None:
    params = stage.params
    size = sum(entry["bytes"] for entry in read_json(DOCUMENTS / "sources.json"))
    on_ray = size >= RAY_BYTES
    if "TOKENIZERS_PARALLELISM" in environment.SET_BY_US:  # on Ray, tasks take the processors; here, threads do
        os.environ["TOKENIZERS_PARALLELISM"] = "false" if on_ray else "true"
    with stage.ray() if on_ray else nullcontext(), _progress(stage, size) as progress:
        provenance = prepare_tokens(
            DOCUMENTS,
            TOKENS,
            tokenizer=params.tokenizer,
            cleaning=params.cleaning,
            packing=params.packing,
            vocab_size=params.model.vocab_size,
            step=task,
            progress=progress,
        )
    write_json(PROVENANCE, provenance)
    total = provenance["total"]
    stage.logger.info(
        "%s documents (dropped: %s), %s tokens, %s training rows of %s",
        f"{total['documents']:,}", _reasons(total), f"{total['tokens']:,}", f"{total['train_rows']:,}",
        provenance["row_tokens"],
    )  # fmt: skip
    stage.table("prepare-domains", _table(provenance), "What became of each domain")
    stage.link("prepare-tokens", TOKENS, "Tokenizer, shards and held-out rows")


def _table(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns one line a domain, and one for all."""
    return [
        {
            "domain": domain,
            "documents": entry["documents"],
            "dropped": _reasons(entry),
            "tokens": entry["tokens"],
            "bytes per token": round(entry["bytes_per_token"], 3),
            "repetitions": round(entry["repetitions"], 3) if "repetitions" in entry else None,
            "held-out rows": entry["heldout_rows"],
            "unigram bits per byte": round(provenance["unigram"].get(domain, float("nan")), 3),
        }
        for domain, entry in [*sorted(provenance["domains"].items()), ("all", provenance["total"])]
    ]


def _reasons(entry: dict[str, Any]) -> str:
    """Returns the reasons for which documents were dropped, and how many."""
    counts = {"exact duplicates": entry["duplicates_dropped"], "sampled out": entry["sampled_out"], **entry["dropped"]}
    return ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in counts.items() if number) or "none"


@contextmanager
def _progress(stage: Stage, size: int) -> Iterator[Callable[[float], None]]:
    """A bar on the terminal, and Prefect's progress artifact; which receive the fraction of the work that is done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("preparing"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with (
        stage.progress("prepare", "Preparing the text") as artifact,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        line = bar.add_task("preparing", total=size)

        said = 0.0

        def update(fraction: float) -> None:
            nonlocal said
            bar.update(line, completed=int(fraction * size))
            artifact(fraction)
            if not console.is_terminal and fraction - said >= SAID:
                stage.logger.info("prepared %.0f of %.0f MB", fraction * size / 1e6, size / 1e6)
                said = fraction

        yield update


if __name__ == "__main__":
    run("prepare", prepare)
