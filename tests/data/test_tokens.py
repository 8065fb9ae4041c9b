"""Tokens of captions: sentencepiece against sentencepiece, truncation, batches, and what is shown."""

import json
import random

import pytest
import sentencepiece

from lit_extract.common.errors import InputError
from lit_extract.data import CaptionDataModule
from lit_extract.data.tokens import load_tokenizer

TEXTS = ["a man sits", "  two  spaces", "café naïve 日本 3 1234", "tab\there", "dog.  cat </s> x", "trailing "]


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    """A sentencepiece model that merges blanks, as OpenLLaMA's does, in a folder of LLaMA's format."""
    folder = tmp_path_factory.mktemp("openllama")
    words = "a the man woman dog cat sits on near red car two people café naïve".split()
    generator = random.Random(0)
    (folder / "corpus.txt").write_text("\n".join(" ".join(generator.choices(words, k=12)) for _ in range(1000)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def test_sentencepiece_backend_equals_sentencepiece_where_the_converted_tokenizer_does_not(llama_folder):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(llama_folder / "tokenizer.model"))
    expected = [[processor.bos_id(), *processor.encode(text)] for text in TEXTS]
    assert load_tokenizer("sentencepiece", str(llama_folder), {}).encode(TEXTS) == expected
    assert load_tokenizer("huggingface", str(llama_folder), {}).encode(TEXTS) != expected  # why the backend is there


@pytest.mark.parametrize("backend", ["sentencepiece", "huggingface"])
def test_many_texts_at_once_have_the_tokens_of_each_alone(llama_folder, backend):
    """Threads share the texts."""
    generator = random.Random(0)
    texts = [" ".join(generator.choices(" ".join(TEXTS).split(), k=generator.randint(1, 40))) for _ in range(2000)]
    tokenizer = load_tokenizer(backend, str(llama_folder), {})
    assert tokenizer.encode(texts) == [tokenizer.encode([text])[0] for text in texts]


def test_sentencepiece_tokens_can_be_looked_at(llama_folder):
    tokenizer = load_tokenizer("sentencepiece", str(llama_folder), {})
    ids = tokenizer.encode(["a man"])[0]
    assert tokenizer.token_texts(ids)[0] == "<s>"
    assert "".join(tokenizer.token_texts(ids)[1:]).replace("▁", " ").strip() == "a man"


def test_unknown_backend_and_missing_tokenizer(tmp_path):
    with pytest.raises(InputError, match=r"model\.tokenizer: 'spacy' must be one of huggingface, sentencepiece"):
        load_tokenizer("spacy", str(tmp_path), {})
    with pytest.raises(InputError, match="can't be loaded"):
        load_tokenizer("huggingface", str(tmp_path), {})


def module(tmp_path, llama_folder, texts, context=None, **settings):
    path = tmp_path / "captions.csv"
    path.write_text("nsd_id,caption\n" + "".join(f"{i},{json.dumps(text)}\n" for i, text in enumerate(texts)))
    preprocessing = {
        "tokenizer": "sentencepiece",
        "source": str(llama_folder),
        "options": {},
        "context": context,
        "exclude_bos": False,
    }
    return CaptionDataModule(str(path), "test", preprocessing=preprocessing, **settings)


def test_batches_hold_each_caption_once_padded_on_the_right(tmp_path, llama_folder):
    texts = ["a man " * k for k in (1, 9, 2, 7, 3, 1, 12)]
    data = module(tmp_path, llama_folder, texts, token_budget=40, shard_rows=4)
    data.setup()
    tokenizer = load_tokenizer("sentencepiece", str(llama_folder), {})
    seen = {}
    for batch in data.predict_dataloader():
        assert batch["input_ids"].numel() <= 40
        for row, ids, mask in zip(batch["index"].tolist(), batch["input_ids"], batch["attention_mask"], strict=True):
            length = int(mask.sum())
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
            assert row not in seen
            seen[row] = ids[:length].tolist()
    assert [seen[row] for row in range(len(texts))] == tokenizer.encode([text.strip() for text in texts])


def test_too_long_captions_are_named_or_cut(tmp_path, llama_folder, caplog):
    caplog.set_level("INFO")
    texts = ["a man", "a man sits near the red car and two people"]
    with pytest.raises(InputError, match=r"context of 6 tokens: 1 \(\d+ tokens\); .*truncate true"):
        module(tmp_path, llama_folder, texts, context=6).setup()
    data = module(tmp_path, llama_folder, texts, context=6, truncate=True)
    data.setup()
    assert max(data.lengths) == 6
    assert data.provenance()["truncate"] is True
    assert "truncated to 6 tokens: 1 (" in caplog.text


def test_show_tokens_prints_the_first_captions(tmp_path, llama_folder, caplog):
    caplog.set_level("INFO")
    module(tmp_path, llama_folder, ["a man", "a dog", "a cat"], show_tokens=2).setup()
    lines = caplog.messages
    assert len(lines) == 2
    assert lines[0].startswith("'a man' has ")
    assert "1|<s>" in lines[0]


@pytest.mark.parametrize("change", ["text", "order", "id"])
def test_provenance_sees_changes_of_the_captions(tmp_path, llama_folder, change):
    texts = ["a man", "a dog"]
    first = module(tmp_path, llama_folder, texts)
    first.setup()
    other = module(tmp_path, llama_folder, {"text": ["a man", "a cat"], "order": texts[::-1], "id": texts}[change])
    if change == "id":
        path = tmp_path / "captions.csv"
        path.write_text(path.read_text().replace("\n1,", "\n9,"))
    other.setup()
    assert first.provenance()["tokens_sha256"] != other.provenance()["tokens_sha256"]


def test_captions_of_a_known_dataset_need_its_ids(tmp_path, llama_folder):
    data = module(tmp_path, llama_folder, ["a man"], dataset="things")
    with pytest.raises(InputError, match=r"no column things_id.*it has nsd_id, caption; rename"):
        data.setup()


@pytest.mark.parametrize(
    ("setting", "value"), [("token_budget", 0), ("shard_rows", 0), ("prompt_name", "a/b"), ("dataset", "..")]
)
def test_settings_out_of_range(tmp_path, setting, value):
    with pytest.raises(InputError, match=rf"data\.{setting}: "):
        CaptionDataModule(**{"captions": "x.csv", "prompt_name": "test", setting: value})
