"""Packed windows: nothing lost, nothing twice, and every iterator resumes exactly."""

import gzip
import itertools
import json

import numpy as np
import pytest

from experiments.text import packing
from experiments.text.batches import DataConfig, load
from experiments.text.packing import Windows

BATCH = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    words = ["harbour", "winter", "letter", "garden", "engine", "silver", "mountain", "river"]
    for i, chosen in enumerate(itertools.permutations(words, 3)):
        (path / f"{i:03d}.txt").write_text(
            "The {} near the {} behind a {} was quiet.".format(*chosen)
        )
    return path


@pytest.fixture
def config(folder, tmp_path):
    return DataConfig(
        str(folder), "bytes", seq_len=32, cache_dir=str(tmp_path), validation_tokens=256
    )


@pytest.fixture
def c4_config(tmp_path):
    """A folder laid out like C4 on the hub."""
    (tmp_path / "c4" / "en").mkdir(parents=True)
    for split, count in (("train", 3), ("validation", 1)):
        for i in range(count):
            name = f"c4-{split}.{i:05d}-of-{count:05d}.json.gz"
            with gzip.open(tmp_path / "c4" / "en" / name, "wt") as file:
                for j in range(400):
                    text = f"{split} file {i} document {j}"
                    row = {"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "http://x"}
                    file.write(json.dumps(row) + "\n")
    return DataConfig(
        f"c4:{tmp_path / 'c4'}", "bytes", seq_len=64, cache_dir=str(tmp_path), validation_tokens=700
    )


def take(iterator, count):
    return [next(iterator)["tokens"] for _ in range(count)]


def assert_resumes_exactly(config, seed, before, after):
    """Stops after each count of batches, restores in fresh objects, compares what follows."""
    iterator = load(config).train(BATCH, seed)
    batches, states = [], [iterator.get_state()]
    for _ in range(max(before) + after):
        batches.append(next(iterator)["tokens"])
        states.append(iterator.get_state())
    for count in before:
        restored = load(config).train(BATCH, seed)
        restored.set_state(json.loads(json.dumps(states[count])))
        assert restored.get_state() == states[count]
        np.testing.assert_array_equal(take(restored, after), batches[count : count + after])
        used = load(config).train(BATCH, seed)  # an iterator that has gone elsewhere already
        take(used, 3)
        used.set_state(states[count])
        np.testing.assert_array_equal(take(used, after), batches[count : count + after])
    return batches


def test_windows_predict_every_token_once():
    tokens = np.arange(1, 102, dtype=np.uint16)
    windows = Windows(tokens, 20)
    assert len(windows) == 5
    cut = windows.take(np.arange(5))
    assert cut.dtype == np.int32
    np.testing.assert_array_equal(cut[:, :-1].ravel(), tokens[:-1])
    np.testing.assert_array_equal(cut[:, 1:].ravel(), tokens[1:])
    assert len(Windows(tokens[:20], 20)) == 0
    assert len(Windows(tokens[:0], 20)) == 0


def test_an_epoch_holds_every_window_once_in_an_order_of_its_own(config):
    data = load(config)
    windows = len(data.validation_windows), len(data.train_source)
    assert min(windows) > BATCH
    assert windows[1] % BATCH  # so that a batch spans two epochs below
    rows = np.concatenate(take(data.train(BATCH, seed=1), 2 * windows[1] // BATCH + 1))
    epochs = rows[: windows[1]], rows[windows[1] : 2 * windows[1]]
    everything = data.train_source.take(np.arange(windows[1]))

    def ordered(rows):
        return sorted(map(tuple, rows.tolist()))

    assert rows.shape[1] == config.seq_len + 1
    for epoch in epochs:
        assert ordered(epoch) == ordered(everything)
        assert not np.array_equal(epoch, everything)
    assert not np.array_equal(*epochs)
    other_seed = np.concatenate(take(data.train(BATCH, seed=2), windows[1] // BATCH))
    assert not np.array_equal(other_seed, epochs[0][: len(other_seed)])


def test_documents_stand_between_bos_and_eos(config, folder):
    data = load(config)
    texts = []
    for windows in (data.train_source, data.validation_windows):
        row = windows.tokens.tolist()
        bos, eos = data.tokenizer.bos_id, data.tokenizer.eos_id
        starts = [i for i, token in enumerate(row) if token == bos]
        ends = [i for i, token in enumerate(row) if token == eos]
        assert starts == [0] + [end + 1 for end in ends[:-1]]
        assert ends[-1] == len(row) - 1
        texts += [data.tokenizer.decode(row[a + 1 : b]) for a, b in zip(starts, ends, strict=True)]
    assert sorted(texts) == sorted(path.read_text() for path in folder.iterdir())
    assert texts != sorted(texts)


def test_training_resumes_exactly_across_epochs(config):
    batches_of_epoch = len(load(config).train_source) // BATCH
    before = [0, 1, batches_of_epoch - 1, batches_of_epoch, 2 * batches_of_epoch + 3]
    assert_resumes_exactly(config, seed=5, before=before, after=6)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_the_same_global_batch(config, count):
    data = load(config)
    shares = [data.train(BATCH, 0, process_index=i, process_count=count) for i in range(count)]
    for expected in take(data.train(BATCH, 0), 5):
        joined = np.concatenate([next(share)["tokens"] for share in shares])
        np.testing.assert_array_equal(joined, expected)
    validation = [
        data.validation(BATCH, process_index=i, process_count=count) for i in range(count)
    ]
    for expected, *parts in zip(data.validation(BATCH), *validation, strict=True):
        joined = np.concatenate([part["tokens"] for part in parts])
        np.testing.assert_array_equal(joined, expected["tokens"])


@pytest.mark.parametrize(("batch_size", "index", "count"), [(4, 0, 3), (4, 2, 2), (0, 0, 1)])
def test_an_uneven_share_is_refused(config, batch_size, index, count):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} can't be shared evenly"):
        load(config).train(batch_size, 0, process_index=index, process_count=count)


def test_validation_is_fixed_spread_and_bounded(config):
    data = load(config)
    batches = [batch["tokens"] for batch in data.validation(BATCH)]
    np.testing.assert_array_equal(
        batches, [batch["tokens"] for batch in load(config).validation(BATCH)]
    )
    assert np.shape(batches) == (2, BATCH, config.seq_len + 1)  # 256 tokens are 8 windows
    np.testing.assert_array_equal(batches[0][0], data.validation_windows.take([0])[0])
    last = len(data.validation_windows) - 1
    np.testing.assert_array_equal(batches[-1][-1], data.validation_windows.take([last])[0])
    assert len(np.unique(np.concatenate(batches), axis=0)) == 8
    # No validation document is learnt from.
    train = bytes(data.train_source.tokens.astype(np.uint8))
    for text in data.tokenizer.decode(data.validation_windows.tokens.tolist()).split("quiet.")[:-1]:
        assert text.encode() not in train


def test_too_little_text_is_refused(config):
    with pytest.raises(ValueError, match=r"batch_size=100 windows of 32 tokens, got 8"):
        load(config).validation(100)
    config = DataConfig(config.dataset, "bytes", seq_len=10_000, cache_dir=config.cache_dir)
    with pytest.raises(ValueError, match=r"validation text has .* at least seq_len \+ 1 = 10001"):
        load(config)
    with pytest.raises(ValueError, match="seq_len=0"):
        load(DataConfig(config.dataset, "bytes", seq_len=0, cache_dir=config.cache_dir))


def test_bytes_per_token(config):
    data = load(config)
    tokens = data.validation_windows.tokens
    text_bytes = np.sum(tokens < 256)
    assert data.bytes_per_token == text_bytes / len(tokens)
    assert data.vocab_size == 258
    assert load(DataConfig(config.dataset, "bpe-300", 32, config.cache_dir)).bytes_per_token > 1.5


def test_fingerprint_covers_text_tokenizer_and_length(config, folder, tmp_path):
    def fingerprint(dataset=config.dataset, tokenizer="bytes", seq_len=32):
        return load(DataConfig(str(dataset), tokenizer, seq_len, config.cache_dir)).fingerprint

    first = fingerprint()
    assert first == fingerprint()
    int(first, 16)
    other_text = tmp_path / "other"
    other_text.mkdir()
    for path in folder.iterdir():
        (other_text / path.name).write_text(path.read_text().replace("quiet", "quite"))
    fingerprints = {
        first,
        fingerprint(other_text),
        fingerprint(tokenizer="bpe-300"),
        fingerprint(seq_len=31),
    }
    assert len(fingerprints) == 4


def test_text_is_tokenized_once(config, monkeypatch):
    first = take(load(config).train(BATCH, 0), 3)
    monkeypatch.setattr(packing, "flatten", None)
    np.testing.assert_array_equal(take(load(config).train(BATCH, 0), 3), first)
    with pytest.raises(TypeError):
        load(DataConfig(config.dataset, "bpe-300", 32, config.cache_dir))


def test_large_vocabularies_get_wider_integers(monkeypatch):
    class Wide:
        vocab_size, bos_id, eos_id = 70_000, 69_998, 69_999

        def encode(self, texts):
            return [[65_536 + len(text)] for text in texts]

    tokens = packing.flatten(["a", "bb"], Wide())
    assert tokens.tolist() == [69_998, 65_537, 69_999, 69_998, 65_538, 69_999]


def test_c4_streams_every_document_once_an_epoch(c4_config):
    data = load(c4_config)
    iterator = data.train(BATCH, 0)
    tokens = np.concatenate([rows[:, :-1].ravel() for rows in take(iterator, 140)])
    texts = data.tokenizer.decode(tokens[tokens != 257].tolist()).split("train ")[1:]
    assert sorted(texts[:1200]) == sorted(
        f"file {i} document {j}" for i in range(3) for j in range(400)
    )
    assert len(set(texts[1200:-1])) == len(texts) - 1201 > 50  # on into the second epoch
    assert texts[:50] != texts[1200:1250]
    assert iterator.get_state()["epoch"] == 1  # which orders the files anew


def test_c4_resumes_exactly_across_blocks_and_epochs(c4_config):
    assert_resumes_exactly(c4_config, seed=1, before=[0, 1, 50, 100, 127, 131], after=4)


def test_c4_processes_share_and_validation_is_fixed(c4_config):
    data = load(c4_config)
    halves = [data.train(BATCH, 3, process_index=i, process_count=2) for i in range(2)]
    for expected in take(data.train(BATCH, 3), 3):
        np.testing.assert_array_equal(np.concatenate([next(h)["tokens"] for h in halves]), expected)
    batches = [batch["tokens"] for batch in data.validation(BATCH)]
    assert np.shape(batches) == (2, BATCH, 65)
    np.testing.assert_array_equal(
        batches, [batch["tokens"] for batch in load(c4_config).validation(BATCH)]
    )
    assert "validation file 0" in data.tokenizer.decode(batches[0].ravel().tolist())
    assert 0.8 < data.bytes_per_token < 1


def test_c4_without_its_files_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file en/c4-validation"):
        load(DataConfig(f"c4:{tmp_path}", "bytes", cache_dir=str(tmp_path)))
