"""Tokens that were made before are the tokens that would be made now."""

import multiprocessing
import pickle
import random
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
import torch

from medvlp.errors import ConfigError, DataError
from medvlp.text import Collate, train_wordpiece
from medvlp.tokens import FILE, TokenCache

WORDS = ("the", "lungs", "are", "clear", "no", "focal", "consolidation", "cardiomegaly", "2.5", "cm", "Café")
LENGTH = 12


def _texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 25))) + "." for _ in range(count)]


TEXTS = [*_texts(120), "", "unknown \U0001f600"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(_texts(300), 120)


@pytest.fixture(scope="module")
def cache(tokenizer, tmp_path_factory):
    return TokenCache.build(tmp_path_factory.mktemp("cache"), tokenizer, LENGTH, [*TEXTS, *TEXTS])


def test_every_text_is_found(tokenizer, cache):
    assert len(cache) == len(set(TEXTS))
    for text in TEXTS:
        ids, words = cache.get(text)
        encoded = tokenizer([text], truncation=True, max_length=LENGTH)
        assert ids.tolist() == encoded["input_ids"][0]
        assert words.tolist() == [-1 if w is None else w for w in encoded.word_ids(0)]
        assert ids.dtype == words.dtype == np.int32
    assert cache.get("never seen") is None


@pytest.mark.parametrize("padding", ["longest", "max_length"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("cut", ["right", "left"])
def test_batches_are_the_same(tokenizer, tmp_path, padding, side, cut):
    tokenizer = pickle.loads(pickle.dumps(tokenizer))
    tokenizer.padding_side, tokenizer.truncation_side = side, cut
    texts = _texts(60)
    tokens = TokenCache.build(tmp_path, tokenizer, LENGTH, texts)
    plain, cached = Collate(tokenizer, LENGTH, padding), Collate(tokenizer, LENGTH, padding, tokens)
    batches = [texts[i : i + 7] for i in range(0, 60, 7)]
    batches += [[texts[0], "one that was not tokenised before"], [min(texts, key=len)]]
    for batch in batches:
        expected, found = plain.tokenize(batch), cached.tokenize(batch)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert torch.equal(value, found[key]), key
            assert value.dtype == found[key].dtype
            assert found[key].is_contiguous()


def test_tokens_of_another_tokenizer_or_length_are_refused(tokenizer, cache):
    Collate(tokenizer, LENGTH, tokens=cache)
    with pytest.raises(ConfigError, match="another tokenizer or another length"):
        Collate(tokenizer, LENGTH + 1, tokens=cache)
    with pytest.raises(ConfigError, match="another tokenizer or another length"):
        Collate(train_wordpiece(_texts(300, seed=1), 90), LENGTH, tokens=cache)
    with pytest.raises(ConfigError, match="another tokenizer or another length"):
        Collate(None, LENGTH, tokens=cache)


def test_only_missing_texts_are_tokenised(tokenizer, tmp_path, monkeypatch):
    a, b = _texts(50, seed=2), _texts(50, seed=3)
    first = TokenCache.build(tmp_path, tokenizer, LENGTH, a)
    written = (first.folder / FILE).stat().st_mtime_ns, (first.folder / FILE).read_bytes()
    asked: list[str] = []
    plain = type(tokenizer).__call__

    def counting(self, texts, **options):
        asked.extend(texts)
        return plain(self, texts, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counting)
    TokenCache.build(tmp_path, tokenizer, LENGTH, a[::-1])
    assert not asked
    assert written == ((first.folder / FILE).stat().st_mtime_ns, (first.folder / FILE).read_bytes())
    both = TokenCache.build(tmp_path, tokenizer, LENGTH, [*a, *b])
    assert set(asked) == set(b) - set(a)
    assert all(both.get(text) is not None for text in (*a, *b))
    assert all(first.get(text) is not None for text in a)  # opened before the file was replaced
    assert [p.name for p in first.folder.iterdir()] == [FILE]


def test_the_file_does_not_depend_on_the_order_of_the_texts(tokenizer, tmp_path):
    texts = _texts(40, seed=4)
    one = TokenCache.build(tmp_path / "1", tokenizer, LENGTH, texts)
    two = TokenCache.build(tmp_path / "2", tokenizer, LENGTH, texts[:11])
    two = TokenCache.build(tmp_path / "2", tokenizer, LENGTH, texts[::-1])
    assert one.folder.name == two.folder.name
    assert (one.folder / FILE).read_bytes() == (two.folder / FILE).read_bytes()


def test_no_text_in_clear(tokenizer, cache):
    stored = (cache.folder / FILE).read_bytes()
    assert not [word for word in WORDS if len(word) > 4 and word.encode() in stored]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read(cache, method):
    texts = TEXTS[:20]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        for text, (ids, words) in zip(texts, pool.map(cache.get, texts), strict=True):
            assert np.array_equal(ids, cache.get(text)[0])
            assert np.array_equal(words, cache.get(text)[1])


def test_several_ranks_build_at_once(tokenizer, tmp_path):
    """Each has all its own texts afterwards, whoever was last."""
    parts = [_texts(200, seed=s) for s in range(3)]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=TokenCache.build, args=(tmp_path, tokenizer, LENGTH, part)) for part in parts]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    left = TokenCache(TokenCache.folder_of(tmp_path, tokenizer, LENGTH))
    assert any(all(left.get(text) is not None for text in part) for part in parts)
    assert [p.name for p in left.folder.iterdir()] == [FILE]


def test_digests_with_equal_halves(cache):
    """Rows whose upper half is the same are told apart by the lower one."""
    twin = TokenCache.__new__(TokenCache)
    twin._high = np.array([1, 5, 5, 5, 9], dtype=np.uint64)
    twin._low = np.array([0, 1, 2, 7, 0], dtype=np.uint64)
    asked = np.array([[5, 7], [5, 3], [5, 1], [9, 0], [10, 0], [0, 0], [5, 2]], dtype=np.uint64)
    assert twin._find(asked).tolist() == [3, -1, 1, 4, -1, -1, 2]


def test_a_broken_file_has_a_remedy(tokenizer, tmp_path):
    folder = TokenCache.build(tmp_path, tokenizer, LENGTH, ["a"]).folder
    (folder / FILE).write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"tokens\.arrow is missing or broken; remove the folder"):
        TokenCache.build(tmp_path, tokenizer, LENGTH, ["a"])
    assert len(TokenCache.build(tmp_path, tokenizer, LENGTH + 1, [])) == 0


def test_columns_that_do_not_fit_each_other_are_refused(tokenizer, tmp_path):
    path = TokenCache.build(tmp_path, tokenizer, LENGTH, ["a", "two words"]).folder / FILE
    with pa.ipc.open_file(path) as file:
        table = file.read_all()
    shifted = pa.array([[1], [2, 2, 2, 2, 2]], type=table.schema.field("words").type)
    nothing = pa.array([None, [1]], type=shifted.type)
    for damaged in (
        table.replace_schema_metadata({}),
        table.replace_schema_metadata({"format": "x"}),
        table.drop_columns(["words"]),
        table.set_column(3, "words", shifted),
        table.set_column(2, "ids", nothing).set_column(3, "words", nothing),
    ):
        with pa.ipc.new_file(path, damaged.schema) as writer:
            writer.write_table(damaged)
        with pytest.raises(DataError, match=r"tokens\.arrow is .*; remove the folder"):
            TokenCache(path.parent)


def test_only_the_owner_can_read_tokens(tokenizer, tmp_path):
    folder = TokenCache.build(tmp_path, tokenizer, LENGTH, ["a"]).folder
    assert (folder.stat().st_mode & 0o777, (folder / FILE).stat().st_mode & 0o777) == (0o700, 0o600)


def _samples(count: int, **extra) -> list[dict]:
    return [
        {"image": torch.zeros(3, 8, 8), "id": f"i{n}", "index": n, "label": torch.zeros(2), **extra}
        for n in range(count)
    ]


def test_samples_without_text_and_with_targets(tokenizer):
    batch = Collate(tokenizer)(_samples(3))
    assert set(batch) == {"image", "id", "index", "label", "skipped"}
    boxes = [torch.zeros(n, 4) for n in range(3)]
    samples = _samples(3, mask=torch.ones(1, 8, 8), size=torch.tensor([9, 7]), geometry=torch.arange(10), text="a")
    for sample, own in zip(samples, boxes, strict=True):
        sample.update(boxes=own, box_labels=torch.zeros(len(own), dtype=torch.int64))
    batch = Collate(tokenizer)(samples)
    assert batch["mask"].shape == (3, 1, 8, 8)
    assert batch["size"].tolist() == [[9, 7]] * 3
    assert batch["geometry"].shape == (3, 10)
    assert [len(b) for b in batch["boxes"]] == [len(b) for b in batch["box_labels"]] == [0, 1, 2]
    assert batch["input_ids"].shape[0] == 3
