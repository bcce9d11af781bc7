"""Stage `prepare`: cleaning, tokenizer, held-out sets, packed and shuffled token shards."""

import os
from pathlib import Path
from typing import Any

from prefect import task

from flows.lab.environment import SET_BY_US
from flows.stage import RAY_BYTES, Stage, run
from pico.data.preparation.pipeline import prepare as prepare_tokens
from pico.files import read_json, write_json

DOCUMENTS, TOKENS, PROVENANCE = Path("data/documents"), Path("data/tokens"), Path("reports/data.json")


def prepare(stage: Stage) -> None:
    """Makes the token shards, and publishes how many documents, tokens and rows each domain has."""
    params = stage.params
    size = sum(entry["bytes"] for entry in read_json(DOCUMENTS / "sources.json"))
    on_ray = size >= RAY_BYTES
    if "TOKENIZERS_PARALLELISM" in SET_BY_US:  # on Ray, tasks take the processors; here, threads do
        os.environ["TOKENIZERS_PARALLELISM"] = "false" if on_ray else "true"
    with stage.ray(on_ray), stage.progress(size / 1e6, "MB") as bar:
        provenance = prepare_tokens(
            DOCUMENTS,
            TOKENS,
            tokenizer=params.tokenizer,
            cleaning=params.cleaning,
            packing=params.packing,
            vocab_size=params.model.vocab_size,
            step=task,
            progress=bar.fraction,
        )
    write_json(PROVENANCE, provenance)
    total = provenance["total"]
    stage.logger.info(
        "%s documents (dropped: %s), %s tokens, %s training rows of %s",
        f"{total['documents']:,}", _reasons(total), f"{total['tokens']:,}", f"{total['train_rows']:,}",
        provenance["row_tokens"],
    )  # fmt: skip
    stage.table("prepare-domains", _table(provenance), "Documents, tokens and rows of each domain")
    stage.link("prepare-tokens", TOKENS, "Tokenizer, shards and held-out rows")


def _table(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a row for each domain, and one for all."""
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
    """Returns how many documents were dropped for which reason."""
    counts = {"exact duplicates": entry["duplicates_dropped"], "sampled out": entry["sampled_out"], **entry["dropped"]}
    return ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in counts.items() if number) or "none"


if __name__ == "__main__":
    run("prepare", prepare)
