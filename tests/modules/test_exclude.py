"""Tokens that poolings leave out, against Transformers' hidden states of each caption alone, pooled by hand.

B batch, L layers, T tokens, D hidden size.
"""

import json

import numpy as np
import pytest
import torch
from helpers.language_models import WORDS, features, save_model
from helpers.text_encoders import save_encoder
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from lit_extract.common.errors import InputError
from lit_extract.modules.language import LanguageExtractor
from lit_extract.modules.pooling import find_sinks
from lit_extract.modules.text_encoder import TextEncoderExtractor

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
# "red" has a massive embedding in the models below. Words that the tokenizer does not know are none of its own.
CAPTIONS = [
    "a man sits on the red car",
    "the dog",
    "red",
    "two people with a zebra near the </s> red red street tree",
    "the red the blue the car the street the tree on a woman",
    "red red red dog",
]
ENCODER_CAPTIONS = [text.replace("</s>", "[SEP]") for text in CAPTIONS]
TIMES = 200


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    model = save_model(folder, "llama")
    make_massive(model.get_input_embeddings(), 3 + WORDS.index("red"))
    model.save_pretrained(folder)
    write(folder, CAPTIONS)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    save_encoder(folder, "bert")
    write(folder, ENCODER_CAPTIONS)
    return folder


def make_massive(embeddings, token):
    with torch.no_grad():
        embeddings.weight[token] *= TIMES


def write(folder, texts):
    lines = "".join(f"{row},{json.dumps(text)}\n" for row, text in enumerate(texts))
    (folder / "captions.csv").write_text(f"nsd_id,caption\n{lines}")


def extractor_of(folder, **settings):
    kind = TextEncoderExtractor if "bert" in folder.name else LanguageExtractor
    extractor = kind(str(folder), layers="hidden_states", **{"pool": ["avg", "last"], **settings}).eval()
    extractor.configure_model()
    return extractor


@torch.no_grad()
def reference(folder, exclude):
    """Of each caption average and last token (L, D) of those that stay, and how many are left out: (), and (L,)."""
    kind, texts = (AutoModel, ENCODER_CAPTIONS) if "bert" in folder.name else (AutoModelForCausalLM, CAPTIONS)
    model = kind.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        states = torch.cat(model(ids, output_hidden_states=True).hidden_states).double().numpy()
        pieces = tokenizer.convert_ids_to_tokens(ids[0])
        stay = np.ones(len(pieces), dtype=bool)
        if "bos" in exclude:
            stay[0] = False
        if "special" in exclude:
            stay &= ~np.isin(pieces, ["<s>", "</s>", "[CLS]", "[SEP]"])
        averages, lasts, sinks = [], [], []
        for tokens in states[:, stay]:
            norms = np.sqrt((tokens**2).sum(axis=1))
            keep = np.ones(len(norms), dtype=bool)
            if "sinks" in exclude:
                keep = norms <= 10 * np.sort(norms)[(len(norms) - 1) // 2]
            averages.append(tokens[keep].mean(axis=0))
            lasts.append(tokens[keep][-1])
            sinks.append(int((~keep).sum()))
        yield np.array(averages), np.array(lasts), int((~stay).sum()), sinks


@pytest.mark.parametrize("budget", [1, 10_000])
@pytest.mark.parametrize(
    ("name", "exclude"),
    [
        ("llama", ["bos"]),
        ("llama", ["special"]),
        ("llama", ["sinks"]),
        ("llama", ["sinks", "special"]),
        ("bert", ["special"]),
        ("bert", ["sinks"]),
    ],
)
def test_what_stays_is_pooled_and_what_does_not_is_counted(request, name, exclude, budget):
    folder = request.getfixturevalue(name)
    extractor = extractor_of(folder, exclude=exclude)
    actual = features(extractor, folder / "captions.csv", token_budget=budget)
    expected = [*zip(*reference(folder, exclude), strict=True)]
    for pool, of_pool in zip(("avg", "last"), expected[:2], strict=True):
        torch.testing.assert_close(actual[pool], torch.from_numpy(np.array(of_pool)).float(), **CLOSE)
    assert ("n_excluded" in actual) == (exclude != ["sinks"])
    if "n_excluded" in actual:
        assert actual["n_excluded"].tolist() == list(expected[2])
        assert max(expected[2]) > 0
    assert ("n_sinks" in actual) == ("sinks" in exclude)
    if "n_sinks" in actual:
        assert actual["n_sinks"].tolist() == list(expected[3])
        assert (max(map(max, expected[3])) > 0) == (name == "llama"), "BERT normalizes what a block puts out"


def test_a_setting_alone_is_as_a_list_of_it_and_the_order_does_not_matter(llama):
    assert LanguageExtractor(str(llama), exclude="sinks").exclude == ["sinks"]
    provenance = LanguageExtractor(str(llama), exclude=["sinks", "bos"]).provenance()
    assert (provenance["exclude"], provenance["sinks_above"]) == (["bos", "sinks"], 10)


def test_without_it_the_provenance_is_as_it_was(llama, bert):
    for kind, folder in ((LanguageExtractor, llama), (TextEncoderExtractor, bert)):
        for exclude in (None, []):
            extractor = kind(str(folder), exclude=exclude)
            assert {"exclude", "sinks_above", "longest_caption"}.isdisjoint(extractor.provenance())
            assert extractor.extras == {"n_tokens": "int32"}


def test_bos_is_the_same_as_the_older_setting(llama):
    new, old = (
        features(extractor_of(llama, **settings), llama / "captions.csv")
        for settings in ({"exclude": "bos"}, {"exclude_bos": True})
    )
    assert all(torch.equal(new[pool], old[pool]) for pool in ("avg", "last"))


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("llama", {"exclude": ["bos"], "exclude_bos": True}, r"bos can't be combined with model\.exclude_bos True"),
        ("llama", {"exclude": ["sinks", "sinks"]}, r"must be some of bos, special, sinks, none twice"),
        ("llama", {"exclude": ["cls"]}, r"must be some of bos, special, sinks, none twice"),
        ("llama", {"exclude": ["sinks"], "pool": "tokens"}, r"with model\.pool tokens, which keeps all tokens"),
        ("bert", {"exclude": ["special"], "special_tokens": "excluded"}, r"with model\.special_tokens excluded"),
        ("bert", {"exclude": ["special"], "pool": ["avg", "cls"]}, r"with model\.pool cls, which is one token"),
        ("bert", {"exclude": ["sinks"], "pool": "head"}, r"with model\.pool head, which is the model's own output"),
    ],
)
def test_what_does_not_fit_together_is_refused(request, name, settings, said):
    with pytest.raises(InputError, match=said):
        extractor_of(request.getfixturevalue(name), **settings)


def test_bos_needs_a_tokenizer_that_adds_one(bert):
    with pytest.raises(InputError, match=r"^model\.exclude: bos, but .* does not start captions with a BOS token"):
        features(extractor_of(bert, exclude="bos"), bert / "captions.csv")


@pytest.mark.parametrize(("bos", "is_warned_of"), [(False, True), (True, False)])
def test_where_the_tokenizer_adds_no_token_that_nothing_is_left_out_is_said(bos, is_warned_of, tmp_path, caplog):
    save_model(tmp_path, "llama", bos=bos)
    write(tmp_path, ["a dog", "the street"])
    actual = features(extractor_of(tmp_path, exclude="special"), tmp_path / "captions.csv")
    assert actual["n_excluded"].tolist() == [int(bos)] * 2
    assert ("model.exclude: special has no effect" in caplog.text) == is_warned_of


def test_captions_of_which_nothing_would_be_left_are_named(llama, tmp_path):
    write(tmp_path, ["a dog", "</s>", "a man", "</s> </s>"])
    with pytest.raises(InputError, match=r"^model\.exclude: special leaves no token of captions: 1, 3; leave them out"):
        features(extractor_of(llama, exclude=["special", "sinks"]), tmp_path / "captions.csv")


def test_special_tokens_of_captions_that_are_cut_are_those_that_stay(tmp_path, bert):
    write(tmp_path, ["a dog " * 60, "a dog"])
    extractor = extractor_of(bert, exclude="special")
    actual = features(extractor, tmp_path / "captions.csv", truncate=True)
    assert actual["n_excluded"].tolist() == [2, 2]
    assert actual["n_tokens"].tolist() == [64, 4]


def test_sinks_of_several_captions_a_row_are_counted_together(llama, tmp_path):
    (tmp_path / "several.csv").write_text(f"nsd_id,captions\n0,{CAPTIONS[0]};{CAPTIONS[4]}\n1,{CAPTIONS[3]}\n")
    extractor = extractor_of(llama, exclude=["bos", "sinks"])
    alone = features(extractor, llama / "captions.csv")
    actual = features(extractor, tmp_path / "several.csv", captions_used="all")
    assert actual["n_sinks"].tolist() == [
        (alone["n_sinks"][0] + alone["n_sinks"][4]).tolist(),
        alone["n_sinks"][3].tolist(),
    ]
    assert actual["n_excluded"].tolist() == [2, 1]
    torch.testing.assert_close(actual["avg"][0], (alone["avg"][0] + alone["avg"][4]) / 2, **CLOSE)


def hidden(*rows):
    """Tokens of these norms, all in another direction than the axes; the padding is NaN."""
    longest = max(map(len, rows))
    norms = torch.tensor([[*row, *[torch.nan] * (longest - len(row))] for row in rows])
    return norms[..., None] * torch.tensor([0.6, 0.0, -0.8]), torch.tensor(
        [[place < len(row) for place in range(longest)] for row in rows]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sinks_have_ten_times_the_lower_median(dtype):
    rows = [
        ([100.0, 1, 2, 3, 4, 5], [1, 0, 0, 0, 0, 0]),  # the lower median is 3
        ([29.0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0]),
        ([100.0, 1], [1, 0]),
        ([100.0], [0]),
        ([100.0, 100, 1], [0, 0, 0]),  # half of them: no sinks but the caption
        ([0.0, 0, 1], [0, 0, 1]),
        ([torch.inf, 1, 2], [0, 0, 0]),  # to be seen
        ([1.0, 2, 300, torch.nan], [0, 0, 1, 0]),
    ]
    states, mask = hidden(*(norms for norms, _ in rows))
    found = find_sinks(states.to(dtype), mask)
    for row, (norms, expected) in enumerate(rows):
        assert found[row, : len(norms)].int().tolist() == expected, norms
        assert not found[row, len(norms) :].any()
