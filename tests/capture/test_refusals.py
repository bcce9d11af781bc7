"""Models that cannot be analysed are refused, with what to do."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from tiny_models import write_tokenizer

from pico.capture.architectures import ARCHITECTURES, architecture_of
from pico.capture.hugging_face import capture_states, load_model
from pico.capture.places import fetch, find, steps
from pico.capture.published import load_tensors
from pico.capture.run import Settings, captured_run
from pico.capture.text import batch, default_text, load_encoder
from pico.errors import PicoError


def test_an_unknown_architecture_is_named_with_those_known_and_the_way_out(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BloomConfig

    model = AutoModelForCausalLM.from_config(BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=256))
    model.save_pretrained(tmp_path / "bloom")
    write_tokenizer(tmp_path / "bloom")
    place, small = find(str(tmp_path / "bloom")), {"rows": 4, "seq_len": 8, "positions": 8}
    with pytest.raises(
        PicoError, match="architecture 'bloom' is not known; those that are: gpt_neox, gpt2, opt"
    ) as caught:
        captured_run(place, Settings(**small), tmp_path)
    assert "--mapping" in caught.value.mend
    qkv = dict.fromkeys([f"attention.{name}_proj" for name in "qkv"], "self_attention.query_key_value")
    modules = {**qkv, "attention.o_proj": "self_attention.dense", "swiglu.w_2": "mlp.dense_4h_to_h"}
    mapping = tmp_path / "bloom.json"
    mapping.write_text(json.dumps({"layers": "transformer.h", "modules": modules, "fused": "per_head"}))
    _, layers = captured_run(place, Settings(**small, mapping=mapping), tmp_path)
    assert layers == [0]
    mapping.write_text(json.dumps({"layers": "transformer.blocks", "modules": modules, "fused": "per_head"}))
    with pytest.raises(PicoError, match=r"no module transformer\.blocks"):
        captured_run(place, Settings(**small, mapping=mapping), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "x"}, "not a mapping"),
        ({"modules": {"attention.v_proj": "v"}}, "modules must have"),
        ({"fused": "per_group"}, "fused = 'per_group' is none of"),
        ({"fused": "blocks"}, "name one module"),
        ({"rotary": "thirds"}, "rotary = 'thirds'"),
    ],
)
def test_a_wrong_mapping_is_named(changes: dict, message: str, tmp_path: Path) -> None:
    opt = ARCHITECTURES["opt"]
    values = {"layers": opt.layers, "modules": dict(opt.modules)}
    (tmp_path / "m.json").write_text(json.dumps(values))
    assert architecture_of("whatever", tmp_path / "m.json") == opt
    (tmp_path / "m.json").write_text(json.dumps(values | changes))
    with pytest.raises(PicoError, match=message):
        architecture_of("whatever", tmp_path / "m.json")


def test_modules_that_an_architecture_lacks(folders: dict[str, Path]) -> None:
    model = load_model(folders["opt"], "cpu")[0]
    settings = {"layers": [0], "positions": 4, "micro_batch_size": 2}
    with pytest.raises(PicoError, match=r"no swiglu\.w_1"):
        capture_states(model, ARCHITECTURES["opt"], torch.zeros(2, 9).long(), modules=["swiglu.w_1"], **settings)


def test_code_and_pickles_of_others_are_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}))
    (tmp_path / "evil.py").write_text("raise SystemExit('this was run')")
    with pytest.raises(PicoError, match="architecture 'mine' is not one that transformers has"):
        captured_run(find(str(tmp_path)), Settings(), tmp_path)

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.write_text, (tmp_path / "owned", "x"))

    for name, content in (("a.pt", {"layers.0.x": Evil()}), ("b.pt", {"layers.0.x": "text"})):
        torch.save(content, tmp_path / name, pickle_module=pickle)
        with pytest.raises(PicoError, match=name):
            load_tensors(tmp_path / name)
    assert not (tmp_path / "owned").exists()


def test_missing_weights_are_not_made_up(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folders["llama"] / "model.safetensors")
    weights.pop("model.layers.1.self_attn.v_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folders["llama"] / "config.json").read_bytes())
    with pytest.raises(PicoError, match=r"lacks weights: model\.layers\.1\.self_attn\.v_proj\.weight"):
        load_model(tmp_path, "cpu")


def test_steps_are_told_by_names() -> None:
    def told(*names: str) -> list[int]:
        return list(steps({name: Path(name) for name in names}, "here"))

    assert told("step0", "step143000", "step1000-tokens4B") == [0, 143000, 1000]
    assert told("step_00000010", "checkpoint-500", "main=600") == [10, 500, 600]
    assert told("main") == [0]
    with pytest.raises(PicoError, match="'main' names no step"):
        told("step1", "main")
    with pytest.raises(PicoError, match="is step 1, which another one is"):
        told("step1", "step_01")


def test_places_that_hold_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PicoError, match="does not exist"):
        find(str(tmp_path / "nothing"))
    with pytest.raises(PicoError, match="holds no checkpoint"):
        find(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(PicoError, match="does not exist"):  # a mistyped path is not asked of the hub
        find("data/nothing")


def test_the_hub_gives_what_its_cache_has_and_else_says_why(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache as the hub's own library lays it out, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--someone--neox"
    for commit, branch in (("a" * 40, "step0"), ("b" * 40, "step512")):
        (model / "snapshots").mkdir(parents=True, exist_ok=True)
        (model / "snapshots" / commit).symlink_to(folders["gpt_neox"], target_is_directory=True)
        (model / "refs").mkdir(exist_ok=True)
        (model / "refs" / branch).write_text(commit)
    assert list(fetch("someone/neox", ["step512", "step0"])) == [512, 0]
    with pytest.raises(PicoError, match="someone/neox at step1 cannot be fetched"):
        fetch("someone/neox", ["step1"])


def test_texts_that_will_not_do(folders: dict[str, Path], tmp_path: Path) -> None:
    def rows(text: Path | None, **changes: int) -> torch.Tensor:
        settings = {"rows": 4, "seq_len": 7, "vocab_size": 256} | changes
        return batch(text, lambda: load_encoder(folders["opt"]), **settings)

    text = tmp_path / "text.txt"
    text.write_text("abcdefgh" * 4)
    encode = load_encoder(folders["opt"])
    assert rows(text).tolist() == [encode("abcdefgh")] * 4
    assert rows(None).flatten().tolist() == encode(default_text()[:32])
    with pytest.raises(PicoError, match=r"has 32 tokens, but --rows 5 of 7 positions need 40"):
        rows(text, rows=5)
    with pytest.raises(PicoError, match="not in the model's vocabulary of 8"):
        rows(text, vocab_size=8)
    text.write_bytes(b"\xff")
    with pytest.raises(PicoError, match="not UTF-8"):
        rows(text)
    with pytest.raises(PicoError, match="cannot be read"):
        rows(tmp_path / "nothing.txt")
    with pytest.raises(PicoError, match="holds no tokenizer"):
        batch(None, lambda: load_encoder(tmp_path), rows=1, seq_len=4, vocab_size=256)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(PicoError, match="no column input_ids"):
        rows(tmp_path / "bad.parquet")
