"""Stage `report`: the page, the suite's table, and the data of `dvc plots`."""

import os
from pathlib import Path

from prefect import task

from flows.stage import Stage, run
from pico.config import Params
from pico.report.inputs.suite import Inputs, ModelPaths, Suite, gather, suite_metrics

DATA, REPORTS = Path("data"), Path("reports")


@task
def collect(params: Params) -> Suite:
    """Reads and checks the outs of the other stages."""
    scale = params.suite.scale
    inputs = Inputs(
        params=params,
        sources=DATA / "documents" / "sources.json",
        provenance=DATA / "tokens" / "provenance.json",
        gates=REPORTS / "gates.json",
        profile=DATA / "profile" / "profile.json",
        models=tuple(
            ModelPaths(
                name=name,
                run=DATA / "models" / scale / name,
                training=DATA / "models" / scale / name / "training.csv",
                analysis=DATA / "analysis" / scale / name,
                evaluation=DATA / "evaluation" / scale / name / "results.json",
                export=DATA / "export" / scale / name,
            )
            for name in params.suite.models
        ),
    )
    return gather(inputs)


@task
def write(suite: Suite) -> None:
    """Writes the pages and all tables."""
    # matplotlib lists the machine's fonts once and keeps the list; not in the user's home, which may be read-only.
    os.environ.setdefault("MPLCONFIGDIR", str(Path("runs", "report", "matplotlib").resolve()))
    from pico.report.pages.index import write_report  # imports matplotlib, so only now

    write_report(suite, REPORTS)


def report(stage: Stage) -> None:
    """Reads the outs of all stages and writes `reports/`."""
    suite = collect(stage.params)
    write(suite)
    rows = [{"model": name, **values} for name, values in suite_metrics(suite).items()]
    stage.table("suite", rows, "The suite at its last checkpoints")
    stage.link("report", REPORTS / "index.html", "The report")


if __name__ == "__main__":
    run("report", report)
