"""The data page: every document accounted for, whatever the reasons are called; nothing of the data becomes markup."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from test_report import BESIDE, check

from pico.report.figures.drawing import Painter
from pico.report.inputs.suite import Inputs, Suite, gather
from pico.report.pages.data import dropped, further, render_data, steps
from pico.report.pages.index import draw


@pytest.fixture(scope="module")
def page(shared: tuple[Suite, str]) -> str:
    pictures = draw(shared[0])
    return render_data(pictures.painter, pictures.data)


def test_page_is_well_formed_loads_nothing_and_shows_every_part(shared: tuple[Suite, str], page: str) -> None:
    checker = check(page)
    assert not checker.tags & {"script", "iframe", "object", "embed"}
    inside = {reference for reference in checker.references if reference.startswith("#")}
    assert inside <= {f"#{one}" for one in checker.ids}
    assert all(one.startswith(("#", "data:")) or one.split("#")[0] in BESIDE for one in checker.references)
    assert not re.search(r"@import|url\((?!#)", page)
    for anchor in ("sources", "steps", "data-mix", "data-lengths", "data-fertility", "characters", "duplicates",
                   "contamination", "extracts", "gates"):  # fmt: skip
        assert f'id="{anchor}"' in page, anchor
    for source in shared[0].sources:
        assert source["pin"] in page
        assert source["licence"] in page
    for variable in set(re.findall(r"var\((--[a-z0-9-]+)\)", page)):
        assert re.search(rf"{variable}:", page), f"{variable} is used but not defined"
    assert "sciq/validation" in page
    assert "Example 17, in code-source 5" in page
    assert not re.search(r"\b(nan|None|inf)\b", re.sub(r"<style.*?</style>", "", page, flags=re.S))


def test_texts_cannot_become_markup_nor_turn_what_is_around_them(page: str) -> None:
    assert "&lt;script&gt;code&lt;/script&gt; &amp; \ufffdturned\ufffd" in page
    assert "<b>is</b>" not in page
    assert not re.search(r"[\x00\u202e]", page)


def test_reasons_are_found_whatever_they_are_called() -> None:
    entry = {
        "documents_read": 100, "duplicates_dropped": 5, "sampled_out": 3, "tail_documents_dropped": 9,
        "heldout_rows_left_out": 7, "bytes_per_token": 3.0, "dropped": {"near_duplicate": 2, "haunted": 1},
        "documents": 89, "train_documents": 80, "heldout_documents": 9,
    }  # fmt: skip
    assert dropped(entry) == {"duplicates_dropped": 5, "sampled_out": 3, "near_duplicate": 2, "haunted": 1}
    lines = steps({"domains": {"code": entry}, "total": entry})
    assert [name for name, _, _ in lines] == [
        "Fetched", "exact duplicates", "beyond the domain's share", "near-duplicates", "haunted", "Used",
        "of them trained on", "of them held out",
    ]  # fmt: skip
    assert lines[1][1] == {"code": 5, "total": 5}


def test_documents_that_are_not_accounted_for_have_a_line_of_their_own() -> None:
    entry = {"documents_read": 100, "duplicates_dropped": 5, "documents": 90}
    lines = {name: counts for name, counts, _ in steps({"domains": {"code": entry}, "total": entry})}
    assert lines["not accounted for"] == {"code": 5, "total": 5}


def test_other_counts_are_shown_where_there_are_any() -> None:
    entry = {"tokens": 10, "redacted": {"email": 3}, "unheard_of": 1}
    assert further({"domains": {"code": entry}, "total": entry}) == [
        ("Tokens", {"code": 10, "total": 10}), ("Redacted: email", {"code": 3, "total": 3})
    ]  # fmt: skip
    assert further({}) == []
    assert steps({}) == []


def test_equal_inputs_give_equal_bytes(make_inputs: Callable[..., Inputs]) -> None:
    suite = gather(make_inputs("tiny"))
    pages = [render_data(pictures.painter, pictures.data) for pictures in (draw(suite), draw(suite))]
    assert pages[0] == pages[1]


def test_a_corpus_of_rows_says_so_and_which_gates_were_not_asked(make_inputs: Callable[..., Inputs]) -> None:
    suite = gather(make_inputs("tiny"))
    notice = "rows were held out one by one"
    pictures = draw(suite)
    assert notice not in render_data(pictures.painter, pictures.data)
    gates = [
        {**suite.gates[0], "gate": "documents.length", "passed": None, "observed": "not applicable: of one length"}
    ]
    rows = replace(suite, provenance={**suite.provenance, "unit": "row", "shuffled": False}, gates=gates)
    page = render_data(Painter(rows), pictures.data)
    assert notice in page
    assert "in the order in which they were read" in page
    assert "not applicable: of one length" in page
    assert "<td>not asked</td>" in page
    assert '<span class="fail">' not in page
