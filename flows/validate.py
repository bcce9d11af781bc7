"""Stage `validate`: Great Expectations gates on documents and tokens; a failed gate stops the graph."""

from pathlib import Path
from typing import Any

from prefect import task

from flows.stage import Stage, run
from pico.data.expectations import check, refuse
from pico.files import write_json

DOCUMENTS, TOKENS, OUT = Path("data/documents"), Path("data/tokens"), Path("reports/gates.json")
FAILED = Path("runs/validate/gates.json")
"""Where the results lie when a gate fails: the out is written only when all pass, because training depends on it."""


@task
def check_gates(documents: Path, tokens: Path, **limits: Any) -> list[dict[str, Any]]:
    """Runs every gate; gives one result a gate."""
    return check(documents, tokens, **limits)


def validate(stage: Stage) -> None:
    params = stage.params
    results = check_gates(
        DOCUMENTS, TOKENS, gates=params.gates, seq_len=params.packing.seq_len, vocab_size=params.model.vocab_size
    )
    table = [
        {
            "gate": result["gate"],
            "rule": result["rule"],
            "observed": str(result["observed"]),
            "limit": str(result["limit"]),
            "set by": result["param"],
            "passed": "yes" if result["passed"] else f"NO ({result['failures']} rows)",
        }
        for result in results
    ]
    stage.table("validate-gates", table, "Gates on documents and tokens")
    if not all(result["passed"] for result in results):
        OUT.unlink(missing_ok=True)
        write_json(FAILED, results)
    refuse(results, FAILED)
    FAILED.unlink(missing_ok=True)
    write_json(OUT, results)
    stage.logger.info("all %s gates passed", len(results))


if __name__ == "__main__":
    run("validate", validate)
