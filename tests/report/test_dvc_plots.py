"""`dvc plots show` draws the report's tables with the repository's templates, into a page that loads nothing."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pico.report.inputs.suite import Inputs, gather
from pico.report.pages.index import write_report

ROOT = Path(__file__).parents[2]


def test_page_of_dvc_plots_holds_its_scripts() -> None:
    page = (ROOT / ".dvc" / "plots_page.html").read_text(encoding="utf-8")
    assert not re.search(r"<script[^>]* src=", page)
    assert re.findall(r'data-library="([a-z-]+) [\d.]+"', page) == ["vega", "vega-lite", "vega-embed"]
    assert page.count("Redistribution and use in source and binary forms") == 3  # the licence of each
    assert page.count("{plot_divs}") == 1


@pytest.mark.slow
def test_dvc_draws_all_plots_offline(make_inputs: Callable[..., Inputs], tmp_path: Path) -> None:
    declared = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    if "plots" not in declared:
        pytest.fail("dvc.yaml declares no plots")
    repository = tmp_path / "repository"
    repository.mkdir()
    write_report(gather(make_inputs("tiny", "small", nulls=True)), repository / "reports")

    def run(*command: str) -> str:
        environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
        return subprocess.run(
            command, cwd=repository, check=True, capture_output=True, text=True, env=environment
        ).stdout

    dvc = [sys.executable, "-m", "dvc"]
    run("git", "init", "-q")
    run(*dvc, "init", "-q")
    shutil.copytree(ROOT / ".dvc" / "plots", repository / ".dvc" / "plots", dirs_exist_ok=True)
    shutil.copy(ROOT / ".dvc" / "plots_page.html", repository / ".dvc")
    run(*dvc, "config", "plots.html_template", "plots_page.html")
    with open(repository / "dvc.yaml", "w", encoding="utf-8") as file:
        YAML().dump({"plots": declared["plots"], "metrics": ["reports/metrics.json"]}, file)
    run(*dvc, "plots", "show")
    page = (repository / "dvc_plots" / "index.html").read_text(encoding="utf-8")
    assert page.count("vegaEmbed('#") == len(declared["plots"])
    assert not re.search(r"<script[^>]* src=", page)
    assert "heldout_bits_per_byte" in run(*dvc, "metrics", "show")
