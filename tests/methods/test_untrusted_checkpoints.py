"""Checkpoints that nobody vouches for: nothing but the file is opened, and whatever is wrong with it is one line."""

import copy
import random
import re
import sys
import sysconfig
import warnings
import zipfile
from pathlib import Path

import helpers
import medvlp_baselines.template
import pytest
import torch
from helpers import datamodule, sizes, trainer
from medvlp_baselines.template.module import TemplateMethod

import medvlp
from medvlp.encoders.loading import read_weights
from medvlp.encoders.text import MODEL_TYPES, TextEncoder, TextEncoderConfig
from medvlp.errors import CheckpointError, ConfigError, MedVLPError, NotSupportedError
from medvlp.training.checkpoint_io import check_checkpoint

HYPER = ("medvlp", "hyperparameters")
IMAGE = (*HYPER, "image")
TEXT = (*HYPER, "text")
ARCHITECTURE = (*TEXT, "architecture")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A small method's checkpoint as it is in memory."""
    torch.manual_seed(0)
    model = TemplateMethod(**sizes())
    model.attach_tokenizer(helpers.tokenizer())
    model.preprocess, model.label_names = {"transform": "phantom", "size": 32, "intensity": "standard"}, ["Edema"]
    path = tmp_path_factory.mktemp("sound") / "m.ckpt"
    model.save(path)
    return torch.load(path, weights_only=True)


@pytest.fixture
def write(sound, tmp_path):
    """Writes the checkpoint with entries changed: a path of keys → what is put there."""

    def put(changes):
        checkpoint = copy.deepcopy(sound)
        for keys, value in changes.items():
            place = checkpoint
            for key in keys[:-1]:
                place = place[key]
            place[keys[-1]] = value
        torch.save(checkpoint, tmp_path / "m.ckpt")
        return tmp_path / "m.ckpt"

    return put


class Gate:
    """An audit hook: while it is shut, files outside the interpreter's own folders and sockets are noted."""

    def __init__(self):
        self.allowed = None
        self.seen = []
        code = {str(Path(module.__file__).parents[1]) for module in (medvlp, medvlp_baselines.template)}
        folders = {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, *code, "/proc", "/sys"}
        self.own = tuple(f"{folder}/" for folder in folders)
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.allowed is None:
            return
        if event == "open" and isinstance(arguments[0], str):
            if arguments[0] not in self.allowed and not arguments[0].startswith(self.own):
                self.seen.append((event, arguments[0]))
        elif event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "urllib.", "ctypes.dlopen")):
            self.seen.append((event, arguments))

    def load(self, path):
        self.allowed, self.seen = {str(path)}, []
        try:
            return medvlp.load(path)
        finally:
            self.allowed = None


@pytest.fixture(scope="module")
def gate():
    return Gate()


def hostile(file):
    """Settings that make a network open a file, ask a hub, or run code, each with whether it must be refused."""
    wrapper = {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {"checkpoint_path": file}}
    overlay = {"file": file}
    return {
        "checkpoint_path": ({(*IMAGE, "options"): {"checkpoint_path": file}}, False),
        "cache_dir": ({(*IMAGE, "options"): {"cache_dir": file}}, False),
        "weights": ({(*IMAGE, "weights"): file, (*IMAGE, "weights_prefix"): "a."}, False),
        "pretrained": ({(*IMAGE, "pretrained"): True}, False),
        "overlay": (
            {(*IMAGE, "pretrained"): True, (*IMAGE, "options"): {"pretrained_cfg_overlay": overlay}},
            False,
        ),
        "overlay url": (
            {(*IMAGE, "pretrained"): True, (*IMAGE, "options"): {"pretrained_cfg": {"url": "http://127.0.0.1:9/x"}}},
            False,
        ),
        "hub": ({(*IMAGE, "name"): "hf-hub:owner/model"}, True),
        "old hub": ({(*IMAGE, "name"): "hf_hub:owner/model"}, True),
        "folder": ({(*IMAGE, "name"): f"local-dir:{file}"}, True),
        "path": ({(*IMAGE, "name"): file}, True),
        "unknown option with a path": ({(*IMAGE, "options"): {"act_layer": file}}, True),
        "feature class": ({(*IMAGE, "options"): {"feature_cfg": {"feature_cls": "fx"}}}, True),
        "text folder": ({(*TEXT, "pretrained"): file, ARCHITECTURE: None}, False),
        "text hub": ({(*TEXT, "pretrained"): "owner/model"}, False),
        "wrapper": ({ARCHITECTURE: wrapper}, True),
        "encoder-decoder": ({(*ARCHITECTURE, "model_type"): "vision-text-dual-encoder"}, True),
        "kernel": ({(*ARCHITECTURE, "attn_implementation"): "owner/kernel"}, False),
        "inner kernel": ({(*ARCHITECTURE, "_attn_implementation_internal"): "owner/kernel"}, False),
        "remote code": ({(*ARCHITECTURE, "auto_map"): {"AutoModel": "owner/repo--m.Model"}}, False),
        "quantisation": ({(*ARCHITECTURE, "quantization_config"): {"quant_method": "bitsandbytes"}}, False),
        "name of a folder": ({(*ARCHITECTURE, "_name_or_path"): file}, False),
        "labels": ({(*ARCHITECTURE, "num_labels"): 10**12}, False),
        "activation": ({(*ARCHITECTURE, "hidden_act"): "kernels-community/activation"}, True),
        "prompts": ({(*HYPER, "prompts"): file}, False),
        "prompts url": ({(*HYPER, "prompts"): "http://127.0.0.1:9/prompts.json"}, False),
        "tokenizer file": ({("medvlp", "tokenizer", "special_tokens"): {"tokenizer_file": file}}, True),
        "tokenizer code": ({("medvlp", "tokenizer", "special_tokens"): {"auto_map": {"AutoTokenizer": file}}}, True),
        "tokenizer gguf": ({("medvlp", "tokenizer", "special_tokens"): {"gguf_file": file}}, True),
        "Lightning's own": ({("hyper_parameters",): {"_class_path": "os.system", "_instantiator": "os.system"}}, False),
    }


@pytest.mark.parametrize("case", hostile(""))
def test_nothing_but_the_file_is_opened(write, gate, tmp_path, case):
    other = tmp_path / "other.json"
    other.write_text("{}")
    changes, refused = hostile(str(other))[case]
    path = write(changes)
    if case == "checkpoint_path":  # the first load of a process imports libraries
        medvlp.load(write({}))
        path = write(changes)
    if refused:
        with pytest.raises(CheckpointError, match=re.escape(path.name)):
            gate.load(path)
    else:
        gate.load(path)
    assert gate.seen == []


def test_the_gate_sees_other_files(write, gate, tmp_path, monkeypatch):
    monkeypatch.setattr(TemplateMethod, "on_load_checkpoint", lambda *_: open(tmp_path / "other", "w").close())
    gate.load(write({}))
    assert gate.seen == [("open", str(tmp_path / "other"))]


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ((*HYPER, "embed_dim"), 10**12),
        ((*HYPER, "embed_dim"), 10**9),
        ((*ARCHITECTURE, "vocab_size"), 10**12),
        ((*ARCHITECTURE, "vocab_size"), 10**7),
        ((*ARCHITECTURE, "num_hidden_layers"), 10**6),
        ((*ARCHITECTURE, "max_position_embeddings"), 10**7),
        ((*TEXT, "keep_layers"), 10**12),
        ((*IMAGE, "depth"), 10**12),
        ((*IMAGE, "options"), {"block_args": {"width": 10**12}}),
        ((*IMAGE, "options"), {"channels": [10**6, 10**6, 10**6, 10**6]}),
    ],
)
def test_a_network_larger_than_its_weights_is_not_built(write, keys, value):
    with pytest.raises(CheckpointError, match=r"m\.ckpt"):
        medvlp.load(write({keys: value}))


def places(value, above=()):
    """Every path of keys in nested dictionaries."""
    for key, item in value.items():
        yield (*above, key)
        if isinstance(item, dict) and (*above, key) != ("state_dict",):
            yield from places(item, (*above, key))


def test_every_entry_of_another_type_is_one_line(sound, write):
    draw = random.Random(0)
    others = (None, [], {}, 7, -1, 2.5, float("nan"), True, "x", "/etc/passwd", 10**12, [["a"]], {"a": {"b": 1}}, b"x")
    keys = [keys for keys in places(sound) if keys[0] in ("medvlp", "state_dict", "pytorch-lightning_version")]
    assert len(keys) > 40
    for place in keys:
        for value in draw.sample(others, 3):
            error = error_of(write({place: value}))
            assert error is None or place == ("medvlp", "method") or ("m.ckpt" in error and "\n" not in error)


def error_of(path):
    try:
        medvlp.load(path)
    except (CheckpointError, ConfigError) as error:  # the latter of a method that is not registered
        return str(error)
    return None


@pytest.mark.parametrize("place", [("state_dict",), ("medvlp",), ("medvlp", "tokenizer"), HYPER, IMAGE])
@pytest.mark.parametrize("value", [None, [1], 3, "resnet18", {1: 2}])
def test_whole_parts_of_another_type(write, place, value):
    with pytest.raises(CheckpointError, match=r"m\.ckpt"):
        medvlp.load(write({place: value}))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("medvlp", "tokenizer", "padding_side"), "up", "padding_side is 'up'; expected left or right"),
        (("medvlp", "prompts"), {"name": "a", "version": 1, "prompts": {"Edema": ["only one"]}}, "prompts.Edema"),
        (("medvlp", "preprocess"), "xx", r"preprocess is 'xx'; expected dict"),
        (IMAGE, "resnet18", "image is 'resnet18'; expected"),
        ((*IMAGE, "depth"), "2", r"image\.depth is '2'; expected int"),
        ((*ARCHITECTURE, "model_type"), "gpt5", "unknown text encoder 'gpt5'; expected one of: albert, bert"),
        (("medvlp", "tokenizer", "special_tokens"), {}, "no padding token"),
        ((*HYPER, "two\nlines"), 1, "unknown hyper-parameter"),
        ((*IMAGE, "options"), {"two\nlines": b"x"}, "image is"),
        ((*HYPER, "colour"), 1, "unknown hyper-parameter 'colour'; expected one of: embed_dim"),
        ((*HYPER, "temperature"), float("inf"), "temperature is inf; expected a finite number"),
    ],
)
def test_messages_name_the_entry(write, keys, value, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        medvlp.load(write({keys: value}))
    assert "\n" not in str(caught.value)


def spoilt(weights, how):
    name = "image_head.weight"
    value = weights[name]
    weights[name] = {
        "all NaN": torch.full_like(value, float("nan")),
        "one NaN": value.clone().index_fill_(0, torch.tensor(0), float("nan")),
        "infinite": value.clone().fill_(float("-inf")),
        "complex": value.to(torch.complex64),
        "whole numbers": value.to(torch.int32),
        "meta": value.to("meta"),
        "sparse": value.to_sparse(),
        "too large for float32": value.double() * 1e300 * 1e8,
        "a number": 3.0,
        "claims to be huge": torch.zeros(1).expand(10**12),
    }[how]
    return weights


HOW = [
    *("all NaN", "one NaN", "infinite", "complex", "whole numbers", "meta", "sparse", "too large for float32"),
    *("a number", "claims to be huge"),
]


@pytest.mark.parametrize("how", HOW)
def test_weights_that_are_no_numbers_do_not_load(sound, write, how):
    path = write({("state_dict",): spoilt(dict(sound["state_dict"]), how)})
    with pytest.raises(CheckpointError, match=r"m\.ckpt" if how == "sparse" else r"m\.ckpt.*image_head\.weight"):
        medvlp.load(path)


def _longer(entries):
    entries["m/data/3"] += bytes(64)


def _shorter(entries):
    entries["m/data/3"] = entries["m/data/3"][:-4]


def _exchanged(entries):
    sizes = {len(data): name for name, data in entries.items() if "/data/" in name}
    first, second = list(sizes.values())[:2]
    entries[first], entries[second] = entries[second], entries[first]


def _gone(entries):
    del entries["m/data/3"]


@pytest.mark.parametrize("read", [medvlp.load, check_checkpoint, read_weights], ids=lambda read: read.__name__)
@pytest.mark.parametrize("change", [_longer, _shorter, _exchanged, _gone, "packed", "twice"])
def test_a_repacked_file_of_other_sizes_does_not_load(write, change, read):
    path = write({})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    if callable(change):
        change(entries)
    pack = zipfile.ZIP_DEFLATED if change == "packed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", pack) as archive, warnings.catch_warnings(action="ignore"):
        for name, data in [*entries.items(), *list(entries.items())[: change == "twice"]]:
            archive.writestr(name, data)
    with pytest.raises(CheckpointError, match=r"m\.ckpt"):
        read(path)


@pytest.mark.parametrize("packed", [True, False])
def test_weights_of_any_torch_are_read_whole(tmp_path, packed):
    whole = torch.arange(12.0)
    weights = {"a": whole[2:5], "b": whole.view(3, 4), "c": torch.zeros(0), "d": torch.ones(2), "e": torch.zeros(0)}
    torch.save({"model": weights, "step": 3}, tmp_path / "w.pth", _use_new_zipfile_serialization=packed)
    read = read_weights(tmp_path / "w.pth")
    assert list(read) == [f"model.{name}" for name in weights]
    for name, value in weights.items():
        assert torch.equal(read[f"model.{name}"], value)


def test_a_prompt_set_comes_back_whole(sound, write):
    stored = {"prompts": {"Edema": [["wet"], []]}, "synonyms": {"Oedema": "Edema"}, "negation": False, "source": "me"}
    loaded = medvlp.load(write({("medvlp", "prompts"): {"name": "own", "version": 3, **stored}}))
    loaded.prompts = None
    path = write({("medvlp", "prompts"): {"name": "own", "version": 3, **stored}, (*HYPER, "prompts"): None})
    prompts = medvlp.load(path).prompts
    assert (prompts.negation, prompts.synonyms) == (False, {"Oedema": "Edema"})
    assert prompts.prompts == {"Edema": (("wet",), ())}


def test_lightnings_own_loading_is_refused(write):
    with pytest.raises(NotSupportedError, match=r"medvlp\.load"):
        TemplateMethod.load_from_checkpoint(write({}))


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_text_encoders_of_every_accepted_type_come_back_from_what_they_store(kind):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    small = {"hidden_size": 32, "dim": 32, "embedding_size": 32, "intermediate_size": 48, "hidden_dim": 48}
    small |= {"num_hidden_layers": 2, "n_layers": 2, "num_attention_heads": 2, "n_heads": 2}
    small |= {"vocab_size": 64, "max_position_embeddings": 40, "pad_token_id": 0}
    settings = {key: value for key, value in small.items() if hasattr(CONFIG_MAPPING[kind](), key)}
    first = TextEncoder(TextEncoderConfig(architecture={"model_type": kind, **settings}, max_length=16))
    from medvlp.encoders.text import without_text_sources

    stored = without_text_sources(TextEncoderConfig(architecture=first.architecture, max_length=16))
    again = TextEncoder(stored)
    again.load_state_dict(first.state_dict())
    ids = torch.arange(5, 21).reshape(2, 8)
    first, again = first.eval(), again.eval()
    torch.testing.assert_close(again(ids, torch.ones_like(ids)), first(ids, torch.ones_like(ids)))


# ---------------------------------------------------------------- going on with training


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run's checkpoint in mid-run, in memory, and its data."""
    folder = tmp_path_factory.mktemp("stopped")
    data = datamodule(folder / "data")
    run = trainer(folder / "run", max_steps=2, max_epochs=-1, limit_val_batches=0)
    torch.manual_seed(0)
    run.fit(TemplateMethod(**sizes()), datamodule=data)
    run.save_checkpoint(folder / "two.ckpt")
    return torch.load(folder / "two.ckpt", weights_only=True), folder


def resume(stopped, tmp_path, change):
    checkpoint, folder = copy.deepcopy(stopped[0]), stopped[1]
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    run = trainer(tmp_path / "run", max_steps=4, max_epochs=-1, limit_val_batches=0)
    run.fit(
        TemplateMethod(**sizes()),
        datamodule=datamodule(folder / "data"),
        ckpt_path=str(tmp_path / "changed.ckpt"),
        weights_only=True,
    )
    return run


def test_a_sound_one_resumes(stopped, tmp_path):
    assert resume(stopped, tmp_path, lambda c: None).global_step == 4


def group(c):
    return c["optimizer_states"][0]["param_groups"][0]


DAMAGE = {
    "no loops": lambda c: c.pop("loops"),
    "loops null": lambda c: c.update(loops=None),
    "loops a list": lambda c: c.update(loops=[]),
    "no fit loop": lambda c: c["loops"].pop("fit_loop"),
    "progress a text": lambda c: c["loops"]["fit_loop"]["epoch_progress"]["current"].update(completed="x"),
    "progress negative": lambda c: c["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"].update(ready=-3),
    "epoch a text": lambda c: c.update(epoch="one"),
    "step null": lambda c: c.update(global_step=None),
    "no optimiser": lambda c: c.update(optimizer_states=[]),
    "optimisers gone": lambda c: c.pop("optimizer_states"),
    "no schedule": lambda c: c.update(lr_schedulers=[]),
    "schedule of texts": lambda c: c["lr_schedulers"][0].update(last_epoch="x"),
    "learning rate a text": lambda c: group(c).update(lr="x"),
    "learning rate NaN": lambda c: group(c).update(lr=float("nan")),
    "no betas": lambda c: group(c).pop("betas"),
    "moments of another shape": lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(3)),
    "moments NaN": lambda c: c["optimizer_states"][0]["state"][0]["exp_avg"].fill_(float("nan")),
    "weights NaN": lambda c: spoilt(c["state_dict"], "all NaN"),
    "weights gone": lambda c: c.update(state_dict=None),
    "tokenizer null": lambda c: c["medvlp"].update(tokenizer=None),
    "preprocess a list": lambda c: c["medvlp"].update(preprocess=[]),
    "a path out of the run": lambda c: c["callbacks"].update(x={"kth_best_model_path": "<run>/../../thesis"}),
    "a path on a server": lambda c: c["callbacks"].update(x={"best_k_models": {"s3://bucket/all": 0}}),
    "a callback null": lambda c: c["callbacks"].update(x=None),
    "callbacks a text": lambda c: c.update(callbacks="x"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_one_does_not_resume(stopped, tmp_path, what):
    with pytest.raises(CheckpointError, match=r"changed\.ckpt") as caught:
        resume(stopped, tmp_path, DAMAGE[what])
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, MedVLPError)
