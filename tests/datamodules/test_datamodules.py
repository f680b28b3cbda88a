import jsonargparse
import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medvlp.datamodules.mimic_cxr import MIMICCXRDataModule
from medvlp.datamodules.pairs import PairsDataModule
from medvlp.errors import ConfigError, DataError, TooManySkippedError, UnreadableItemError
from medvlp.phantom import FINDINGS, write_phantom
from medvlp.phantom.model import PhantomSpec
from medvlp.text import train_wordpiece

N = 40


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(rng.integers(0, 255, (20, 24), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    frame = pd.DataFrame(
        {
            "image": [f"{i}.png" for i in range(N)],
            "text": [f"Finding number {i} is seen. No change." for i in range(N)],
            "patient": [i // 2 for i in range(N)],
            "split": ["train"] * 30 + ["val"] * 6 + ["test"] * 4,
            "Edema": [i % 2 for i in range(N)],
        }
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    return str(tmp_path / "t.csv")


def _module(table, **options):
    defaults = {"batch_size": 4, "image_size": 16, "split_column": "split", "label_columns": ["Edema"]}
    return PairsDataModule(table, **{**defaults, **options})


def test_batches(table):
    data = _module(table)
    tokenizer = train_wordpiece(data.training_texts(), 100)
    data.attach_tokenizer(tokenizer, max_length=8, padding="max_length")
    batches = list(data.train_dataloader())
    assert len(batches) == 30 // 4 == len(data.train_dataloader())
    batch = batches[0]
    assert set(batch) == {
        *("image", "input_ids", "attention_mask", "word_groups", "text", "id", "index", "label", "skipped")
    }
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["input_ids"].shape == (4, 8)
    assert batch["label"].shape == (4, 1)
    assert [int(i.split(".")[0]) % 2 for i in batch["id"]] == batch["label"][:, 0].tolist()
    assert [data.train_set.ids[i] for i in batch["index"]] == batch["id"]
    assert data.label_names == ("Edema",)
    assert data.preprocess == {"transform": "g2d_paper", "size": 16, "intensity": "standard"}
    assert len(data.training_texts()) == 30


def test_evaluation_keeps_order_and_the_last_batch(table):
    data = _module(table, eval_batch_size=5)
    assert [len(b["id"]) for b in data.val_dataloader()] == [5, 1]
    assert torch.cat([b["index"] for b in data.test_dataloader()]).tolist() == [0, 1, 2, 3]
    assert "input_ids" not in next(iter(data.val_dataloader()))


def test_workers_give_the_same_batches(table):
    alone, many = (list(_module(table, num_workers=w, text_sampling="sentence").train_dataloader()) for w in (0, 2))
    for a, b in zip(alone, many, strict=True):
        assert a["id"] == b["id"]
        assert a["text"] == b["text"]
        assert torch.equal(a["image"], b["image"])


def test_fraction_is_nested_by_group(table):
    parts = [_module(table, fraction=f, group_column="patient") for f in (0.2, 0.6, 1.0)]
    for p in parts:
        p.setup()
    ids = [set(p.train_set.ids) for p in parts]
    assert ids[0] < ids[1] < ids[2]
    assert [len(i) for i in ids] == [6, 18, 30]
    assert all(len(p.val_set) == 6 and len(p.test_set) == 4 for p in parts)


def test_setup_reads_each_split_once(table, monkeypatch):
    data = _module(table)
    read, calls = data.read, []
    monkeypatch.setattr(data, "read", lambda split: calls.append(split) or read(split))
    data.setup("validate")
    data.setup("fit")
    data.setup()
    data.setup("fit")
    assert calls == ["validate", "train", "test"]


def test_unreadable_images_in_training(table, tmp_path):
    (tmp_path / "3.png").write_bytes(b"broken")
    skipped = [s for b in _module(table, on_error="skip").train_dataloader() for s in b["skipped"]]
    assert [i for i, _ in skipped] in ([], ["3.png"])  # two of the thirty are dropped as an incomplete batch
    dropping = next(iter(_module(table, on_error="skip", batch_size=30).train_dataloader()))
    assert [i for i, _ in dropping["skipped"]] == ["3.png"]
    assert sorted(dropping["index"].tolist()) == sorted([*range(3), 4, *range(4, 30)])
    for workers in (0, 1):  # a worker's error arrives as one line too, without its traceback
        with pytest.raises(
            UnreadableItemError, match=r"^cannot read .*3\.png: .*index 3 of the dataset; set on_error: skip"
        ) as caught:
            list(_module(table, batch_size=30, num_workers=workers).train_dataloader())
        assert "\n" not in str(caught.value)


def test_too_many_broken_records(table, tmp_path):
    frame = pd.read_csv(table)
    frame.loc[:2, "text"] = ""
    frame.to_csv(table, index=False)
    with pytest.raises(TooManySkippedError, match=r"3 of the 30 items of the train split.*max_skipped: 0\.05"):
        _module(table, on_error="skip").setup("fit")
    data = _module(table, on_error="skip", max_skipped=0.2)
    data.setup()
    report = data.skipped_at_index
    assert report.columns.tolist() == ["split", "id", "row", "reason", "broken"]
    assert report["row"].tolist() == [0, 1, 2]
    assert set(report["split"]) == {"train"}


def test_bad_settings(table):
    for wrong in ({"transform": "x"}, {"fraction": 0}, {"batch_size": 0}, {"max_skipped": 2}):
        with pytest.raises(ConfigError):
            _module(table, **wrong)
    with pytest.raises(ConfigError, match="do not fill one batch"):
        _module(table, batch_size=31).train_dataloader()
    with pytest.raises(ConfigError, match="sentence"):
        MIMICCXRDataModule("x", text_sampling="sentence", cleaning="mgca")
    frame = pd.read_csv(table)
    frame[frame["split"] != "train"].to_csv(table, index=False)
    with pytest.raises(DataError, match="training split is empty"):
        _module(table).setup("fit")


class _Seen(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.train_ids, self.val_index = [], []

    def training_step(self, batch, batch_idx):
        self.train_ids += batch["id"]
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        self.val_index += batch["index"].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_under_a_trainer(table, tmp_path):
    model = _Seen()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        num_sanity_val_steps=1,
    )
    trainer.fit(model, datamodule=_module(table))
    assert len(model.train_ids) == 2 * 28
    assert model.val_index == [*range(4), *range(6), *range(6)]


@pytest.mark.parametrize("module", [PairsDataModule, MIMICCXRDataModule])
def test_command_line_sees_every_argument(module):
    """jsonargparse resolves all types, and every argument has its line of help."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(module, "data")
    text = parser.format_help()
    for name in ("batch_size", "image_size", "transform", "fraction", "text_sampling", "on_error", "max_skipped"):
        assert f"--data.{name}" in text
    first = "table" if module is PairsDataModule else "root"
    parsed = parser.parse_args([f"--data.{first}=x", "--data.fraction=0.1"])
    assert parsed.data.fraction == 0.1
    for action in parser._actions:
        if action.dest.startswith("data.") and "phantom." not in action.dest:
            assert action.help


def test_phantom(tmp_path):
    # a phantom of this size leaves no need for a second process
    root = tmp_path / "phantom"
    spec = PhantomSpec(studies=24, size=64, split=(0.5, 0.25, 0.25))
    write_phantom("mimic_cxr", root, spec)
    data = MIMICCXRDataModule(
        str(root),
        phantom=spec,
        labels="truth",
        transform="phantom",
        image_size=32,
        batch_size=2,
        cache_dir=str(tmp_path),
    )
    data.prepare_data()  # finds it complete
    data.setup()
    assert data.label_names == FINDINGS
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 32, 32)
    assert not batch["label"].isnan().any()
    assert len(data.val_set) > 0
    assert len(data.test_set) > 0
    patients = [set(s.groups) for s in (data.train_set, data.val_set, data.test_set)]
    assert not patients[0] & patients[1]
    assert not patients[0] & patients[2]
    assert not any(r.endswith("report file") for r in data.skipped_at_index["reason"])
