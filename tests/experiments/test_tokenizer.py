"""Every tokenizer gives text back; the trained one is the same for the same text."""

import json

import pytest
import tokenizers

from experiments.text.tokenizer import load_tokenizer

DOCUMENTS = [
    f"The {adjective} {noun} of number {i}_{i} went there, and didn't come back! «Où ça?» 漢字\n"
    for i in range(60)
    for adjective, noun in (("old", "sailor"), ("bright", "lanterns"), ("younger", "sisters"))
]
TEXTS = [
    "",
    " ",
    "The older sailor's lantern…",
    "  two  spaces\n\ttab",
    "naïve 漢字 ²½ १२ a_b 🙂",
    "e\u0301",
]


@pytest.mark.parametrize("name", ["bytes", "bpe-300", "bpe-400"])
def test_text_survives(tmp_path, name):
    tokenizer = load_tokenizer(name, DOCUMENTS, tmp_path)
    rows = tokenizer.encode(TEXTS)
    assert [tokenizer.decode(row) for row in rows] == TEXTS
    assert all(0 <= i < tokenizer.vocab_size for row in rows for i in row)
    assert tokenizer.decode([tokenizer.bos_id, *rows[2], tokenizer.eos_id]) == TEXTS[2]
    assert not {tokenizer.bos_id, tokenizer.eos_id} & {i for row in rows for i in row}


def test_trained_vocabulary_has_the_size_asked_for_and_compresses(tmp_path):
    tokenizer = load_tokenizer("bpe-400", DOCUMENTS, tmp_path)
    assert tokenizer.vocab_size == 400
    ids = sum(map(len, tokenizer.encode(DOCUMENTS)))
    assert ids < 0.5 * sum(len(document.encode()) for document in DOCUMENTS)


def test_training_is_deterministic(tmp_path):
    one, two = (load_tokenizer("bpe-400", DOCUMENTS, tmp_path / str(i)) for i in range(2))
    assert one.fingerprint == two.fingerprint
    other = load_tokenizer("bpe-400", [text.upper() for text in DOCUMENTS], tmp_path)
    assert other.fingerprint != one.fingerprint


def test_trained_tokenizer_is_kept(tmp_path):
    def unread():
        raise AssertionError("the documents were read again")
        yield

    first = load_tokenizer("bpe-300", DOCUMENTS, tmp_path, corpus_sha256="ab" * 32)
    again = load_tokenizer("bpe-300", unread(), tmp_path, corpus_sha256="ab" * 32)
    assert again.fingerprint == first.fingerprint


def test_remembered_words_give_the_models_own_ids(tmp_path):
    tokenizer = load_tokenizer("bpe-400", DOCUMENTS, tmp_path)
    (file,) = (tmp_path / "tokenizers").glob("*.json")
    model = tokenizers.Tokenizer.from_file(str(file))
    assert json.loads(file.read_text())["model"]["type"] == "BPE"
    for texts in (DOCUMENTS, TEXTS[:4], DOCUMENTS[::-1]):
        assert tokenizer.encode(texts) == [model.encode(text).ids for text in texts]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bpe-100", "bpe-100: expected at least 258 ids"),
        ("bpe-100000", "the corpus yields [0-9]+ ids; ask for fewer"),
        ("bpe-", "unknown tokenizer 'bpe-': expected 'mistral', 'bytes' or 'bpe-N'"),
        ("gpt2", "unknown tokenizer 'gpt2'"),
    ],
)
def test_impossible_tokenizers_are_refused(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        load_tokenizer(name, DOCUMENTS, tmp_path)


def test_mistral_has_llamas_size_and_special_ids():
    tokenizer = load_tokenizer("mistral", [])
    assert tokenizer.vocab_size == 32_000
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    text = "The harbour was frozen: 漢字 🙂."
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([1, *ids, 2]) == text
    assert tokenizer.fingerprint.startswith("dadfd56d")
