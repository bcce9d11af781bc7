"""The report: complete, self-contained, deterministic, and unharmed by what is missing."""

import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from pico import report
from pico.errors import PicoError
from pico.identity import closure
from pico.report.figures.colours import LAYER_RAMPS, MODEL_RAMPS, ramp
from pico.report.figures.plots import HEADERS, write_plots
from pico.report.inputs.suite import Inputs, Suite, binned, gather, suite_metrics, suite_table
from pico.report.pages.index import draw, render, write_report

BESIDE = {"index.html", "explorer.html", "data.html", "data_docs/index.html"}
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Checker(HTMLParser):
    """Collects ids, links and tags, and fails on tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._look(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._look(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _look(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "xlink:href", "src"):
                self.references.append(value or "")


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    assert len(checker.ids) == len(set(checker.ids)), "two elements have one id"
    return checker


def test_page_is_well_formed_and_loads_nothing(shared: tuple[Suite, str]) -> None:
    page = shared[1]
    checker = check(page)
    assert {"main", "figure", "figcaption", "table", "svg", "nav"} <= checker.tags
    assert not checker.tags & {"script", "iframe", "object", "embed"}
    inside = [reference for reference in checker.references if reference.startswith("#")]
    assert set(inside) <= {f"#{one}" for one in checker.ids}
    # other pages lie beside this one, and are only linked
    assert all(one.startswith(("#", "data:")) or one in BESIDE for one in checker.references)
    assert not re.search(r"@import|url\((?!#)", page)
    assert len(page) < 3_000_000


def test_page_shows_every_part(shared: tuple[Suite, str]) -> None:
    suite, page = shared
    for anchor in (
        "suite",
        "training",
        "loss",
        "scaling",
        "domains-by-model",
        "dynamics",
        "cka",
        "change",
        "heat-per-simple",
        "heat-condition_number-simple",
        "heat-gini-simple",
        "heat-effective_rank-ov_circuit",
        "cka-linear",
        "heads",
        "spectra",
        "convergence",
        "stability",
        "benchmarks",
        "samples",
        "data",
        "gates",
        "settings",
    ):
        assert f'id="{anchor}"' in page, anchor
    assert page.count("<figcaption>") == page.count("<figure")
    for source in suite.sources:
        assert source["pin"] in page
    for task in suite.tasks:
        assert task in page
    assert "unigram baseline" in page
    assert "at most 100 examples" in page


def test_no_placeholder_colour_is_left(shared: tuple[Suite, str]) -> None:
    assert not re.search(r"#0a0[bcd][0-9a-f]{2}", shared[1])
    for variable in set(re.findall(r"var\((--[a-z0-9-]+)\)", shared[1])):
        assert re.search(rf"{variable}:", shared[1]), f"{variable} is used but not defined"


def test_generated_text_cannot_become_markup(shared: tuple[Suite, str]) -> None:
    assert "<b>&amp; tiny" not in shared[1]
    assert "&lt;b&gt;&amp;amp; tiny goes on" in shared[1]


def test_equal_inputs_give_equal_bytes(make_inputs: Callable[..., Inputs], tmp_path: Path) -> None:
    inputs = make_inputs("tiny")
    for name in ("one", "two"):
        write_report(gather(inputs), tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    pictures = {path.stem for path in files if path.parent.name == "figures"}
    assert {"loss", "cka", "heat-per-simple", "spectra", "stability", "benchmarks"} <= pictures
    assert all((tmp_path / "one" / "figures" / f"{key}.{kind}").exists() for key in pictures for kind in ("svg", "png"))
    assert [str(path) for path in files if path.parent.name != "figures"] == [
        "data.html",
        "explorer.html",
        "index.html",
        "metrics.json",
        "plots/benchmarks.csv",
        "plots/cka.csv",
        "plots/loss.csv",
        "plots/scaling.csv",
        "suite.json",
    ]
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    assert str(tmp_path) not in (tmp_path / "one" / "index.html").read_text()


@pytest.mark.parametrize("names", [["only"], ["tiny", "small", "medium", "large"]])
def test_any_number_of_models_and_missing_values(make_inputs: Callable[..., Inputs], names: list[str]) -> None:
    suite = gather(make_inputs(*names, nulls=True))
    page = render(draw(suite))
    check(page)
    assert 'id="heat-condition_number-simple"' not in page  # no value anywhere: no figure
    assert not re.search(r"\b(nan|None|inf)\b", re.sub(r"<style.*?</style>|data:image[^\"]*", "", page, flags=re.S))
    assert all(name in page for name in names)


def test_suite_json_is_as_the_contract_says(shared: tuple[Suite, str]) -> None:
    table = suite_table(shared[0])
    assert [entry["model"] for entry in table] == ["tiny", "small"]
    assert list(table[0]) == [
        "model",
        "parameters",
        "tokens",
        "heldout_bits_per_byte",
        "heldout_perplexity",
        "benchmarks",
    ]
    assert table[0]["parameters"] == 2 * 512 * 32 + 32 * 32 + 32 * 128
    assert table[0]["tokens"] == 2048 * 200
    assert set(table[0]["benchmarks"]["sciq"]) == {"metric", "value", "stderr", "chance", "n", "all"}
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    metrics = suite_metrics(shared[0])
    assert metrics["small"]["heldout_bits_per_byte"] == table[1]["heldout_bits_per_byte"]
    assert all(isinstance(value, int | float) for values in metrics.values() for value in values.values())


def test_models_are_ordered_by_size_whatever_params_say(make_inputs: Callable[..., Inputs]) -> None:
    inputs = make_inputs("tiny", "small", "medium")
    turned = Inputs(inputs.params, inputs.sources, inputs.provenance, inputs.gates, inputs.profile, inputs.models[::-1])
    assert [model.name for model in gather(turned).models] == ["tiny", "small", "medium"]


def test_dynamics_averages_heads_but_not_the_joined_circuit(shared: tuple[Suite, str]) -> None:
    grid = shared[0].models[0].dynamics.grid("effective_rank", "ov_circuit", "weights")
    assert grid.layers == [0, 1, 2, 3]
    assert grid.values[:, 0] == pytest.approx([8.5] * 4)  # heads have 8 and 9; the joined one, 1000, is left out
    assert grid.values[:, -1] == pytest.approx([6.5] * 4)


def test_dynamics_keeps_null_apart_from_zero(shared: tuple[Suite, str]) -> None:
    grid = shared[0].models[0].dynamics.grid("relative_change", "simple", "weights")
    assert np.isnan(grid.values[:, 0]).all()
    assert np.isfinite(grid.values[:, 1:]).all()


def test_binned_means_keep_the_total(shared: tuple[Suite, str]) -> None:
    steps, values = np.arange(1, 1001), np.linspace(5, 3, 1000)
    x, y = binned(steps.astype(float), values, bins=20)
    assert (np.diff(x) > 0).all()
    assert len(x) <= 20
    assert y[0] == pytest.approx(values[0], abs=0.01)
    assert np.interp(500, x, y) == pytest.approx(values[499], abs=0.01)
    assert binned(steps.astype(float), np.full(1000, np.nan), bins=20)[0].size == 0


def test_plots_are_long_tables_with_gaps_left_empty(make_inputs: Callable[..., Inputs], tmp_path: Path) -> None:
    write_plots(gather(make_inputs("tiny", "small", nulls=True)), tmp_path / "plots")
    for name, header in HEADERS.items():
        with open(tmp_path / "plots" / name, newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows, name
        assert tuple(rows[0]) == header
        assert {row["model"] for row in rows} == {"tiny", "small"}
        assert not {"nan", "None", "inf"} & {value for row in rows for value in row.values()}
    assert {row["task"] for row in rows} >= {"sciq", "piqa"}
    assert all(row["value"] == "" for row in rows if row["task"] == "sciq")


@pytest.mark.parametrize("missing", ["evaluation", "training", "analysis"])
def test_a_missing_out_is_named(make_inputs: Callable[..., Inputs], missing: str) -> None:
    inputs = make_inputs("tiny")
    path: Path = getattr(inputs.models[0], missing)
    for file in path.glob("*") if path.is_dir() else [path]:
        file.unlink()
    with pytest.raises(PicoError, match=re.escape(str(path))):
        gather(inputs)


def test_ramps_darken_steadily_in_light_mode() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ramps in (MODEL_RAMPS, LAYER_RAMPS):
        light, dark = ([luminance(colour) for colour in ramp(ramps[mode], 6)] for mode in ("light", "dark"))
        assert light == sorted(light, reverse=True)
        assert dark == sorted(dark)
        # WCAG asks 3:1 for graphics: against the page's near white, and against its near black.
        assert all((0.98 + 0.05) / (value + 0.05) >= 3 for value in light)
        assert all((value + 0.05) / (0.0085 + 0.05) >= 3 for value in dark)


def test_inputs_know_no_figures_and_figures_no_pages() -> None:
    for room, above in (("inputs", ("figures", "pages")), ("figures", ("pages",))):
        for path in (Path(report.__file__).parent / room).glob("*.py"):
            reached = closure(f"pico.report.{room}.{path.stem}")
            assert not [one for one in reached if one.startswith(tuple(f"pico.report.{name}" for name in above))], path
