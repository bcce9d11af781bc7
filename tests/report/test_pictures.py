"""Pictures and the explorer: what they are drawn from, what they hold, and what must never get into them."""

import base64
import hashlib
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image
from synthetic_runs import write_run

from pico.analysis.engine.run import analyze_run
from pico.analysis.metrics.catalogue import STATES, independence_null, metrics_of
from pico.errors import PicoError
from pico.report.any_model import write_pictures
from pico.report.figures import dynamics, sheets
from pico.report.figures.drawing import Figure, Painter
from pico.report.figures.results import band, scaling, seed_bands, seed_groups
from pico.report.figures.sheets import to_png, write_sheets
from pico.report.figures.similarity import layer_squares, sentence, step_squares
from pico.report.inputs.convergence import RunStability
from pico.report.inputs.dynamics import CKA, Spectra, null_level, read_dynamics, scaled_spectrum
from pico.report.inputs.suite import Suite
from pico.report.pages.explorer import KEY, embedded, explorer_data, render_explorer
from tests.report.conftest import LAYERS, STEPS, analysis


@pytest.mark.parametrize(("n", "p"), [(64, 16), (64, 256), (256, 64)])
def test_closed_nulls_are_what_independent_data_give(n: int, p: int) -> None:
    for metric in ("linear_cka", "debiased_cka", "mutual_knn"):
        sampled = independence_null(metric, n, p, draws=10)
        assert null_level(metric, n, p) == pytest.approx(sampled.mean(), abs=0.02), metric


def test_only_comparisons_have_a_null() -> None:
    assert null_level("gini", 64, 16) is None
    assert null_level("relative_change", 64, 16) is None
    assert null_level("no such metric", 64, 16) is None
    assert null_level("cca_mean", 32, 64) is None  # the metric itself refuses so few rows
    assert 0 < (null_level("svcca", 128, 8) or 0) < 0.5


def test_random_weights_lie_within_the_marchenko_pastur_edges() -> None:
    weight = 7 * np.random.default_rng(0).standard_normal((200, 800))
    spectra = Spectra("m", 0, (200, 800), [0], np.array([scaled_spectrum(weight)]))
    assert spectra.edges == pytest.approx((0.5, 1.5))
    assert spectra.values.min() == pytest.approx(0.5, abs=0.05)
    assert spectra.values.max() == pytest.approx(1.5, abs=0.05)


def test_every_metric_that_is_drawn_is_registered() -> None:
    drawn = {*CKA, "debiased_cka", dynamics.CHANGE_METRIC, dynamics.HEAD_METRIC}
    assert drawn | {one.metric for one in dynamics.HEAT_MAPS} <= set(metrics_of(STATES))


def test_files_are_whole_pictures(shared: tuple[Suite, str], tmp_path: Path) -> None:
    painter = Painter(shared[0])
    write_sheets(painter, [scaling(painter)], tmp_path)
    text = (tmp_path / "scaling.svg").read_text()
    ET.fromstring(text)
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"#0a0[bcdf][0-9a-f]{2}", text)
    for variable in set(re.findall(r"var\((--[a-z0-9-]+)\)", text)):
        assert f"{variable}:" in text, variable
    pixels = np.asarray(Image.open(tmp_path / "scaling.png").convert("RGB"))
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)[::7]}
    assert tuple(pixels[0, 0]) == (255, 255, 255)
    assert (0x15, 0x24, 0x6B) in {tuple(colour) for colour in pixels.reshape(-1, 3)}  # the widest model's own colour
    assert len(colours) > 20
    title = pixels[: round(32 * sheets.DPI / 72), : round(120 * sheets.DPI / 72)]
    assert 0.02 < (title < 128).all(axis=-1).mean() < 0.3  # text is there: a renderer without a font leaves it out


SMALL = """<svg xmlns="http://www.w3.org/2000/svg" width="60pt" height="30pt" viewBox="0 0 60 30">
<rect width="100%" height="100%" style="fill: var(--paper)"/><circle cx="9.3" cy="9.7" r="6.1" fill="#c2405f"/>
<path d="M 3 27 C 20 5 40 40 57 4" fill="none" stroke="#15246b" stroke-width="1.3" stroke-opacity="0.6"/>
<text x="14" y="20" style="font: 600 8px var(--sans); fill: #1c1e21">Step ● 10</text></svg>"""


def test_a_png_has_the_same_pixels_on_every_machine() -> None:
    png = to_png(SMALL, {"--paper": "#ffffff"})
    assert png == to_png(SMALL, {"--paper": "#ffffff"})
    pixels = Image.open(io.BytesIO(png)).convert("RGB")
    assert pixels.size == (100, 50)
    assert (
        hashlib.sha256(pixels.tobytes()).hexdigest()
        == "5eaab8471e45d67989db2e9f98d7317300f5caaa786e1b351b82d6332a2d4836"
    )
    with pytest.raises(KeyError, match="--unheard-of"):
        to_png("<svg><text fill='var(--unheard-of)'/></svg>", {"--paper": "#ffffff"})


def test_a_missing_font_is_no_picture_without_text(
    shared: tuple[Suite, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheets, "FONT_FILES", [*sheets.FONT_FILES, str(tmp_path / "Missing.ttf")])
    with pytest.raises(PicoError, match=r"Missing\.ttf"):
        write_sheets(Painter(shared[0]), [], tmp_path)


def test_every_series_is_in_the_explorer(shared: tuple[Suite, str]) -> None:
    suite = shared[0]
    data = explorer_data(suite)
    for model, columns in zip(suite.models, data["models"], strict=True):
        rows = model.dynamics.table
        values = np.frombuffer(base64.b64decode(columns["values"]), "<f4").reshape(-1, len(columns["steps"]))
        assert columns["steps"] == list(STEPS)
        assert np.isfinite(values).sum() == rows.num_rows - rows["value"].null_count
        keys = [
            tuple(data["names"][key][columns["series"][key][series]] for key in KEY) for series in range(len(values))
        ]
        assert len(set(keys)) == len(keys)
        for row in rows.to_pylist()[::37]:
            found = values[keys.index(tuple(row[key] for key in KEY)), columns["steps"].index(row["step"])]
            assert found == pytest.approx(row["value"], rel=1e-6) if row["value"] is not None else np.isnan(found)
        assert {status for _, _, status in columns["status"]} == {"zero"}  # of the change at step 0
        levels = {keys[series][0]: level for series, level in columns["nulls"]}
        assert levels == pytest.approx({"debiased_cka": 0.0, "linear_cka": 32 / 96}, abs=1e-6)


def test_the_explorer_stands_alone(shared: tuple[Suite, str]) -> None:
    page = render_explorer(shared[0])
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=\"(?!data:)", page)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)
    for key in KEY:
        assert f'<label for="{key}">' in page
        assert f'<select id="{key}">' in page
    assert page == render_explorer(shared[0])


def test_names_cannot_leave_the_script_element(shared: tuple[Suite, str]) -> None:
    name = "</script><script>alert(1)</script><!-- &amp; \u2028"
    suite = replace(shared[0], models=[replace(shared[0].models[0], name=name)])
    page = render_explorer(suite)
    assert page.count("</script>") == 2
    assert "alert(1)</script>" not in page
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, flags=re.S)
    assert text
    assert json.loads(text[1])["models"][0]["name"] == name
    assert not set(embedded({"a": "<>&"})) & set("<>&")


def test_squares_are_drawn_only_where_all_pairs_were_compared(shared: tuple[Suite, str], tmp_path: Path) -> None:
    assert not {"cka-steps", "cka-layers"} & {figure.key for figure in squares(shared[0])}
    folder = tmp_path / "analysis"
    folder.mkdir()
    for step in STEPS:
        table = analysis("tiny", step, 0, False)
        chosen = pc.and_(pc.equal(table["metric"], "debiased_cka"), pc.equal(table["split"], "val"))
        rows = [row for row in table.filter(chosen).to_pylist() if "w_2" in row["params"]]
        more = [row | {"target_step": other, "value": 0.5} for row in rows for other in STEPS[:-1]]
        more += [
            row | {"value": 0.25, "target_layer": other}
            for row in rows
            for other in range(LAYERS)
            if other != row["layer"] and row["step"] == STEPS[-1]
        ]
        more += [row | {"target_run": "other", "value": 0.0} for row in rows]
        pa.parquet.write_table(
            pa.concat_tables([table, pa.Table.from_pylist(more, table.schema)]), folder / f"step_{step:08d}.parquet"
        )
    dynamics = read_dynamics(folder)
    steps = dynamics.step_pairs("debiased_cka", "simple", "val", "swiglu.w_2", 2)
    layers = dynamics.layer_pairs("debiased_cka", "simple", "val", "swiglu.w_2")
    assert steps is not None
    assert layers is not None
    assert steps.places == list(STEPS)
    assert np.isfinite(steps.values).all()
    assert layers.places == list(range(LAYERS))
    assert layers.values[0, 1] == 0.25
    # the curves to the last checkpoint are what they were
    assert dynamics.table.equals(shared[0].models[0].dynamics.table)
    suite = replace(shared[0], models=[replace(shared[0].models[0], dynamics=dynamics)])
    assert {"cka-steps", "cka-layers"} == {figure.key for figure in squares(suite)}


def squares(suite: Suite) -> list[Figure]:
    painter = Painter(suite)
    return [figure for figure in (step_squares(painter), layer_squares(painter)) if figure]


def test_runs_that_differ_by_seed_get_a_band(shared: tuple[Suite, str]) -> None:
    assert seed_groups(shared[0].models) == []
    assert seed_bands(Painter(shared[0])) is None
    first, other = shared[0].models[0], replace(shared[0].models[0], name="tiny-2")
    suite = replace(shared[0], models=[first, other, shared[0].models[1]])
    assert [[model.name for model in group] for group in seed_groups(suite.models)] == [["tiny", "tiny-2"]]
    figure = seed_bands(Painter(suite))
    assert figure is not None
    assert "tiny, tiny-2" in figure.caption
    steps, mean, low, high = band(
        [(np.array([1.0, 2, 4]), np.array([1.0, 2, 3])), (np.array([1.0, 4]), np.array([3.0, 7]))]
    )
    assert (steps.tolist(), mean.tolist(), low.tolist(), high.tolist()) == ([1, 4], [2, 5], [1, 3], [3, 7])


def test_scores_of_behaviour_are_drawn_against_loss(shared: tuple[Suite, str]) -> None:
    model = shared[0].models[0]
    rows = model.dynamics.table.slice(0, len(STEPS)).to_pylist()
    rows = [
        row | {"metric": "induction_score", "step": step, "value": 0.1, "head": head, "first": True}
        for row, step in zip(rows, STEPS, strict=True)
        for head in (0, 1)
    ]
    table = pa.concat_tables([model.dynamics.table, pa.Table.from_pylist(rows, model.dynamics.table.schema)])
    suite = replace(shared[0], models=[replace(model, dynamics=replace(model.dynamics, table=table))])
    drawn = {figure.key for figure in dynamics.dynamics_figures(Painter(suite))}
    assert {key for key in drawn if key.startswith("score-")} == {"score-induction_score"}
    assert not any(dynamics.score_against_loss(Painter(shared[0]), score) for score in dynamics.SCORES)


def summary(run: str, median: float | None, early: int) -> RunStability:
    return RunStability(run, 10, 10 if median else 0, early, median, 0.5)


def test_the_sentence_follows_the_numbers() -> None:
    agrees = sentence([summary("tiny", 0.9, 0), summary("mid", 0.5, 2), summary("large", 0.1, 9)])
    assert "The wider the model, the sooner" in agrees
    assert "as “Tending Towards Stability” reports" in agrees
    late = sentence([summary("tiny", 0.9, 0), summary("mid", 0.8, 0), summary("large", 0.7, 0)])
    assert "the sooner" in late
    assert "doesn't show that" in late
    against = sentence([summary("tiny", 0.3, 0), summary("large", None, 0)])
    assert "the later" in against
    assert "not before the end for large" in against
    assert "in no order of size" in sentence(
        [summary("tiny", 0.3, 0), summary("mid", 0.6, 0), summary("large", 0.5, 0)]
    )
    assert "nothing to compare" in sentence([summary("only", 0.3, 0)])


@pytest.mark.parametrize("steps", [(5,), (0, 1, 2, 4)], ids=["one checkpoint", "four"])
def test_any_model_has_the_pictures_that_its_table_is_enough_for(tmp_path: Path, steps: tuple[int, ...]) -> None:
    write_run(tmp_path / "run", steps=steps)
    metrics = ["debiased_cka", "per", "relative_change", "frobenius_norm"]
    analyze_run(tmp_path / "run", "given", metrics, ["simple"], tmp_path / "table")
    shutil.copytree(tmp_path / "table", tmp_path / "again")
    drawn = write_pictures(tmp_path / "table", tmp_path / "run", "given")
    over_steps = ["change", "stability"] if len(steps) > 1 else []
    assert sorted(drawn) == sorted(["cka", "heat-per-simple", "spectra", *over_steps])
    files = {path.name for path in (tmp_path / "table" / "figures").iterdir()}
    assert files == {f"{key}.{kind}" for key in drawn for kind in ("svg", "png")}
    text = "".join(path.read_text() for path in (tmp_path / "table" / "figures").glob("*.svg"))
    assert "n = 32 rows" in text
    write_pictures(tmp_path / "again", tmp_path / "run", "given")
    for name in files:
        assert (tmp_path / "table/figures" / name).read_bytes() == (tmp_path / "again/figures" / name).read_bytes()
    assert (tmp_path / "table/explorer.html").read_bytes() == (tmp_path / "again/explorer.html").read_bytes()
