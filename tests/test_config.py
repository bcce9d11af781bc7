"""Settings: every scale resolves and is consistent; a wrong key, type or combination is named with its mend."""

import copy
import dataclasses
import functools
import importlib.util
import io
import operator
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.utils.hydra import compose_and_dump
from ruamel.yaml import YAML

from pico.config import DecoderConfig, Params, load_params, parse_params, section_of
from pico.errors import PicoError

ROOT = Path(__file__).resolve().parent.parent
SCALES = sorted(path.stem for path in (ROOT / "conf" / "scale").glob("*.yaml"))


def composed(scale: str, tmp_path: Path, *overrides: str) -> Path:
    """params.yaml of a scale, composed as DVC composes it."""
    target = tmp_path / f"{scale}.yaml"
    compose_and_dump(str(target), str(ROOT / "conf"), None, "config", "", [f"scale={scale}", *overrides])
    return target


def values(scale: str, tmp_path: Path) -> dict:
    return YAML(typ="safe", pure=True).load(composed(scale, tmp_path).read_text())


def test_the_five_scales_exist():
    assert SCALES == ["gpu", "laptop", "paper", "pico-1b", "smoke"]


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_composes_resolves_and_is_checked(scale, tmp_path):
    params = load_params(composed(scale, tmp_path))
    assert params.suite.scale == scale


def named(tree: object, path: tuple = ()) -> Iterator[tuple]:
    """The place of every setting of params.yaml, those of list entries included."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inner in entries:
        yield (*path, key)
        yield from named(inner, (*path, key))


def test_no_default_in_code_stands_in_for_a_setting_that_params_yaml_lacks(tmp_path):
    """DVC sees params.yaml alone: what it does not name could change unseen."""
    tree = values("paper", tmp_path)
    whole = parse_params(tree)
    of_sources = tree["corpus"]["defaults"].keys()
    for *parents, last in named(tree):
        left_out = copy.deepcopy(tree)
        node = functools.reduce(operator.getitem, parents, left_out)
        if not isinstance(node, dict) or parents[-1:] == ["members"]:  # names that the user gives
            continue
        value = node.pop(last)
        if parents[:2] == ["corpus", "sources"] and last in of_sources:
            continue  # taken from corpus.defaults
        try:
            found = parse_params(left_out)
        except PicoError:
            continue
        assert (value, found) == (None, whole), (*parents, last)


def test_a_source_takes_what_it_does_not_name_from_the_defaults(tmp_path):
    tree = values("laptop", tmp_path)
    mine = {"name": "mine", "domain": "notes", "licence": "private", "kind": "files"}
    tree["corpus"]["sources"] = [mine, {**mine, "name": "other", "reader": "text"}]
    tree["corpus"]["defaults"] |= {"reader": "csv", "text_field": "body"}
    first, second = parse_params(tree).corpus.sources
    assert (first.reader, first.text_field, first.glob) == ("csv", "body", "**")
    assert (second.reader, second.text_field) == ("text", "body")
    del tree["corpus"]["defaults"]["text_field"]
    with pytest.raises(PicoError, match=r"1 setting is wrong\n  - corpus\.defaults\.text_field is missing"):
        parse_params(tree)


def test_settings_are_read_without_torch():
    program = "import sys, pico.config; pico.config.load_params(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_sections_of_a_model_are_the_fields_of_the_decoder(tmp_path):
    tree = values("laptop", tmp_path)
    names = {field.name for field in dataclasses.fields(DecoderConfig)}
    assert tree["model"].keys() | tree["models"]["tiny"].keys() == names
    tree["model"] |= {"qk_norm": True, "positions": "learned"}
    decoder = parse_params(tree).decoder("small")
    assert decoder.to_dict() == {**tree["model"], **tree["models"]["small"]}
    assert decoder.departures == {"qk_norm": True, "positions": "learned"}


@pytest.mark.parametrize("scale", SCALES)
def test_only_width_differs_between_the_models_of_a_suite(scale, tmp_path):
    params = load_params(composed(scale, tmp_path))
    widths = [params.models[name].d_model for name in params.suite.models]
    assert widths == sorted(set(widths))
    assert all(set(dict(width)) == {"d_model", "activation_hidden_dim"} for width in params.models.values())


def test_paper_scale_is_the_published_one(tmp_path):
    params = load_params(composed("paper", tmp_path))
    assert [params.models[name].d_model for name in params.suite.models] == [96, 384, 768, 1536]
    assert (params.model.n_layers, params.model.attention_n_heads, params.model.attention_n_kv_heads) == (12, 12, 4)
    assert (params.model.vocab_size, params.packing.seq_len) == (50304, 2048)
    assert (params.training.steps, params.training.batch_size, params.optimizer.lr) == (200_000, 1024, 3e-4)
    assert (params.schedule.kind, params.schedule.warmup_steps) == ("linear", 2500)
    assert params.training.gradient_clip == 0


def test_the_committed_params_are_those_of_the_default_scale(tmp_path):
    assert (ROOT / "params.yaml").read_text() == composed("laptop", tmp_path).read_text()


def test_an_override_reaches_its_key(tmp_path):
    assert load_params(composed("smoke", tmp_path, "optimizer.lr=0.01")).optimizer.lr == 0.01


@pytest.mark.parametrize(
    ("section", "wrong", "right"),
    [("optimizer", "learning_rat", "lr"), ("training", "batchsize", "batch_size"), ("", "optimiser", "optimizer")],
)
def test_an_unknown_key_is_named_with_the_nearest_right_one(section, wrong, right, tmp_path):
    tree = values("laptop", tmp_path)
    (tree[section] if section else tree)[wrong] = 1
    with pytest.raises(PicoError) as caught:
        parse_params(tree)
    prefix = f"{section}." if section else ""
    assert f"{prefix}{wrong} is not a known setting" in str(caught.value)
    if wrong != "learning_rat":  # nothing is near to that one
        assert f"did you mean {prefix}{right}?" in str(caught.value)


def test_an_unknown_key_in_a_list_is_named(tmp_path):
    tree = values("laptop", tmp_path)
    tree["corpus"]["sources"][0]["licens"] = "MIT"
    with pytest.raises(PicoError, match=r"corpus\.sources\.0\.licens .* did you mean corpus\.sources\.0\.licence\?"):
        parse_params(tree)


@pytest.mark.parametrize("value", ["fast", True, -1.0, None, [0.1]])
def test_a_wrong_value_is_named_with_its_key(value, tmp_path):
    tree = values("laptop", tmp_path)
    tree["optimizer"]["lr"] = value
    with pytest.raises(PicoError, match=r"optimizer\.lr = "):
        parse_params(tree)


def test_all_wrong_settings_are_reported_at_once(tmp_path):
    tree = values("laptop", tmp_path)
    tree["optimizer"]["lr"] = "fast"
    del tree["seed"], tree["packing"]["shuffle"]
    with pytest.raises(PicoError, match="3 settings are wrong"):
        parse_params(tree)


def test_all_settings_that_do_not_fit_together_are_reported_at_once(tmp_path):
    tree = values("laptop", tmp_path)
    tree["packing"]["seq_len"] = tree["schedule"]["warmup_steps"] = 10_000
    with pytest.raises(PicoError, match=r"2 settings are wrong(?s:.*)packing\.seq_len(?s:.*)schedule\.warmup_steps"):
        parse_params(tree)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("models", "small", "d_model"), 65, r"models\.small\.d_model = 65 is not .* of model\.attention_n_heads = 4"),
        (("models", "small", "d_model"), 68, r"models\.small\.d_model = 68 .* twice model\.attention_n_heads = 4"),
        (
            ("model", "attention_n_kv_heads"),
            3,
            r"1 setting is .*\n.*\.attention_n_heads = 4 is .* model\.attention_n_kv",
        ),
        (("tokenizer", "vocab_size"), 5000, "exceeds model.vocab_size"),
        (("packing", "seq_len"), 4096, "exceeds model.max_seq_len"),
        (("training", "workers"), 3, "not a multiple of training.workers"),
        (("suite", "models"), ["tiny"], "they must be the same"),
        (("suite", "models"), ["../elsewhere"], "suite.models"),
        (("suite", "scale"), "../elsewhere", "suite.scale"),
        (("schedule", "warmup_steps"), 100_000, "warmup_steps"),
        (("learning_dynamics", "noise_batch"), 9, "more than half of learning_dynamics.batch_size = 16"),
        (("training", "steps"), 10**12, r"training\.steps = 1000000000000"),
        (("training", "steps"), 99_999_999, "would keep more than 100000 checkpoints"),
        (("model", "n_layers"), 100_000, r"model\.n_layers"),
        (("optimizer", "beta2"), 1.0, r"optimizer\.beta2"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(path, value, message, tmp_path):
    tree = values("laptop", tmp_path)
    *parents, last = path
    node = tree
    for part in parents:
        node = node[part]
    node[last] = value
    with pytest.raises(PicoError, match=message):
        parse_params(tree)


def test_numbers_as_yaml_1_2_writes_them_are_numbers(tmp_path):
    """DVC dumps 0.00001 as 1e-05, which YAML 1.1 readers take for text."""
    file = composed("laptop", tmp_path, "optimizer.lr=0.00001")
    assert load_params(file).optimizer.lr == 1e-5


def test_missing_and_broken_files_say_how_to_mend(tmp_path):
    with pytest.raises(PicoError, match="pico scale laptop"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1,\n")
    with pytest.raises(PicoError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PicoError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("")
    with pytest.raises(PicoError, match="wrong"):
        load_params(tmp_path / "params.yaml")


def test_every_key_has_a_meaning_and_the_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "tools" / "settings_page.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.page() == tool.PAGE.read_text(), "run: python tools/settings_page.py"
    for field in Params.model_fields.values():
        for name, inner in getattr(section_of(field.annotation), "model_fields", {}).items():
            assert inner.description or section_of(inner.annotation), f"{name} has no docstring"


def test_params_survive_a_round_trip(tmp_path):
    params = load_params(composed("laptop", tmp_path))
    stream = io.StringIO()
    YAML(typ="safe").dump(params.model_dump(), stream)
    assert parse_params(YAML(typ="safe").load(stream.getvalue())) == params
