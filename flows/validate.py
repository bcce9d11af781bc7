"""Stage `validate`: Great Expectations gates on documents and tokens; a failed gate stops the graph."""

import shutil
from pathlib import Path
from typing import Any

from prefect import task

from flows.stage import RAY_BYTES, Stage, run
from pico.data.gates.check import check, refuse
from pico.expectations.data_docs import write_data_docs
from pico.files import publishing, read_json, write_json

DOCUMENTS, TOKENS, BENCHMARKS = Path("data/documents"), Path("data/tokens"), Path("data/benchmarks")
OUT, DOCS, PROFILE = Path("reports/gates.json"), Path("reports/data_docs"), Path("data/profile")
FAILED = Path("runs/validate")
"""The folder of gates.json and the Data Docs when a gate fails: outs are written only when all pass, because training
depends on them."""
TITLE = "Gates on documents and tokens"

check_gates = task(name="check_gates")(check)


def validate(stage: Stage) -> None:
    """Runs the gates and publishes `reports/gates.json`, `reports/data_docs/` and `data/profile/`."""
    params = stage.params
    own = [suite.file for suite in params.gates.suites if suite.on in ("documents", "tokens", "benchmarks")]
    stage.require_deps(own, "gates.suites")
    size = sum(entry["bytes"] for entry in read_json(DOCUMENTS / "sources.json"))
    FAILED.mkdir(parents=True, exist_ok=True)
    with stage.ray(size >= RAY_BYTES), stage.progress(size / 1e6, "MB") as bar:
        checked = check_gates(
            DOCUMENTS, TOKENS, BENCHMARKS, scratch=FAILED, progress=bar.fraction,
            gates=params.gates, packing=params.packing, vocab_size=params.model.vocab_size,
        )  # fmt: skip
    results = [*checked.results, *checked.own]
    stage.table("validate-gates", _table(results), "Gates on documents and tokens")
    if not checked.passed:
        OUT.unlink(missing_ok=True)
        for folder in (DOCS, PROFILE):
            shutil.rmtree(folder, ignore_errors=True)
        write_json(FAILED / "gates.json", results)
        write_data_docs(checked.suites, FAILED / "data_docs", title=TITLE)
        stage.link("validate-data-docs", FAILED / "data_docs" / "index.html", "The gates as Data Docs")
        refuse(results, FAILED / "data_docs" / "index.html")
    with publishing(DOCS) as folder:
        write_data_docs(checked.suites, folder, title=TITLE)
        if checked.own:
            write_json(folder / "suites.json", checked.own)
    with publishing(PROFILE) as folder:
        write_json(folder / "profile.json", checked.profile)
    write_json(OUT, checked.results)
    shutil.rmtree(FAILED, ignore_errors=True)
    stage.link("validate-data-docs", DOCS / "index.html", "The gates as Data Docs")
    stage.logger.info("all %s gates passed", sum(result["passed"] is True for result in results))


def _table(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one line a gate."""
    return [
        {
            "gate": result["gate"],
            "rule": result["rule"],
            "observed": str(result["observed"]),
            "limit": str(result["limit"]),
            "set by": result["param"],
            "passed": {True: "yes", None: "not asked"}.get(result["passed"], f"NO ({result['failures']} rows)"),
        }
        for result in results
    ]


if __name__ == "__main__":
    run("validate", validate)
