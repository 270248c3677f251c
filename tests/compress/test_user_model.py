"""A user's model is found, its head recognised, and what cannot be read is named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import BertConfig

from nxm.compress.encode import encode, readable_length
from nxm.compress.examples import Columns, Examples
from nxm.compress.model import find_model, fitting_classes, load_start, load_tokenizer
from nxm.compress.settings import IMAGES
from nxm.distillation.loss import IGNORED_LABEL
from nxm.errors import UserError
from tiny_models import save_model
from user_data import distilbert_of, save_tagger, save_tiny
from user_images import save_vision


def examples(
    task: str = "classification", classes: tuple[str, ...] = ("bad", "good"), labels: list | None = None
) -> Examples:
    labels = labels if labels is not None else [classes[0], classes[-1]]
    return Examples(task, Columns(("text",), ("label",)), [("a b",), ("c",)], labels, classes, "data.csv")


@pytest.mark.situation("nxm compress", "a model without safetensors, without config or without a tokenizer", "refused")
def test_a_folder_that_lacks_a_file_is_named(tmp_path):
    whole = save_tiny(tmp_path / "whole")
    for gone, message in (
        (("config.json",), "config.json is missing"),
        (("model.safetensors",), r"there is no model\.safetensors; it has pytorch_model\.bin\. .* never a pickle"),
        (("tokenizer.json", "vocab.txt"), "there is no tokenizer"),
    ):
        folder = tmp_path / gone[0]
        shutil.copytree(whole, folder)
        for name in gone:
            (folder / name).unlink(missing_ok=True)
        (folder / "pytorch_model.bin").touch()
        with pytest.raises(UserError, match=message):
            find_model(str(folder))


def test_a_path_that_is_not_there_is_no_name_on_the_hub(tmp_path):
    for name in (str(tmp_path / "none"), "./none", "a/b/c"):
        with pytest.raises(UserError, match="there is no such folder, and it is no name of a model on the Hub"):
            find_model(name)


@pytest.mark.situation("nxm compress", "a name on the Hub without a network", "refused")
def test_without_a_network_a_name_on_the_hub_says_so():  # conftest.py sets HF_HUB_OFFLINE
    with pytest.raises(UserError, match=r"nonesuch/model.*There is no local folder 'nonesuch/model' either"):
        find_model("nonesuch/model")


@pytest.mark.situation("nxm compress", "texts for a model of images, images for a model of texts", "refused")
def test_a_model_of_another_kind_of_data_is_refused_by_name(tmp_path):
    vision = save_vision(tmp_path / "vit")
    with pytest.raises(UserError, match=r"ViTForImageClassification reads pixel_values .*supported are classification"):
        find_model(str(vision))
    text = save_tiny(tmp_path / "bert")
    with pytest.raises(UserError, match="BertForSequenceClassification reads input_ids, the data are images"):
        find_model(str(text), IMAGES)


def test_a_tokenizer_that_cannot_pad_or_has_too_many_words_is_named(tmp_path):
    folder = save_tiny(tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": None}))
    with pytest.raises(UserError, match="the tokenizer has no padding token"):
        load_tokenizer(find_model(str(folder)), "classification")
    small = save_tiny(tmp_path / "small", vocab_size=40)
    with pytest.raises(UserError, match="the tokenizer has 58 words, the model 40"):
        load_tokenizer(find_model(str(small)), "classification")


def config(names: list[str], kind: str = "BertForSequenceClassification", problem: str | None = None) -> BertConfig:
    return BertConfig(
        architectures=[kind],
        id2label=dict(enumerate(names)),
        label2id={n: i for i, n in enumerate(names)},
        problem_type=problem,
    )


@pytest.mark.situation("nxm compress", "a model with a head for these labels: not fine-tuned again", "works")
@pytest.mark.parametrize(
    ("own", "theirs", "found"),
    [
        (["GOOD", "bad"], ("bad", "good"), ("good", "bad")),
        (["neutral", "good", "bad"], ("bad", "good"), ("neutral", "good", "bad")),
        (["LABEL_0", "LABEL_1"], ("0", "1"), ("0", "1")),
        (["NEGATIVE", "POSITIVE"], ("0", "1"), ("0", "1")),
        (["LABEL_0", "LABEL_1"], ("bad", "good"), None),  # which is which is not known
        (["LABEL_0", "LABEL_1", "LABEL_2"], ("0", "1"), None),
        (["good", "worse"], ("bad", "good"), None),
    ],
)
def test_a_head_fits_if_it_has_the_labels(own, theirs, found):
    assert fitting_classes(config(own), examples(classes=theirs)) == found


def test_a_head_of_another_task_does_not_fit():
    two, one = ["bad", "good"], ["LABEL_0"]
    assert fitting_classes(config(two, "BertForMaskedLM"), examples()) is None
    assert fitting_classes(config(two, "BertForTokenClassification"), examples()) is None
    assert fitting_classes(config(two, problem="multi_label_classification"), examples()) is None
    assert fitting_classes(config(two), examples("multi-label", labels=[(), ("bad",)])) is None
    assert fitting_classes(config(two, problem="multi_label_classification"), examples("multi-label")) == (
        "bad",
        "good",
    )
    assert fitting_classes(config(one), examples("regression", (), [0.5, 1.0])) == ()
    assert fitting_classes(config(two), examples("regression", (), [0.5, 1.0])) is None


def test_a_new_head_is_the_same_each_time_and_knows_the_labels(tmp_path):
    origin = find_model(str(save_tiny(tmp_path / "model")))
    three = examples(classes=("a", "b", "c"))
    one, other, third = (load_start(origin, three, True, seed) for seed in (0, 0, 1))
    assert torch.equal(one.classifier.weight, other.classifier.weight)
    assert not torch.equal(one.classifier.weight, third.classifier.weight)
    assert one.config.id2label == {0: "a", 1: "b", 2: "c"}
    score = load_start(origin, examples("regression", (), [1.0, 4.0]), True, 0)
    assert score.classifier.bias.item() == pytest.approx(2.5)


def test_the_head_of_a_fine_tuned_model_stays(tmp_path):
    torch.manual_seed(0)
    model = distilbert_of(["good", "bad"])
    origin = find_model(str(save_model(tmp_path / "model", model, pattern=None)))
    classes = fitting_classes(origin.config, examples())
    loaded = load_start(origin, examples().with_classes(classes), False, 5)
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    assert loaded.config.id2label == {0: "good", 1: "bad"}


@pytest.mark.situation("nxm compress", "texts longer than the model reads: cut, and counted", "works")
def test_long_texts_are_cut_and_counted(tmp_path):
    origin = find_model(str(save_tiny(tmp_path / "model")))
    tokenizer = load_tokenizer(origin, "classification")
    model = load_start(origin, examples(), True, 0)
    assert readable_length(model, tokenizer, None) == 64
    assert readable_length(model, tokenizer, 16) == 16
    with pytest.raises(UserError, match="max_length = 65: the model reads at most 64 tokens"):
        readable_length(model, tokenizer, 65)
    long = Examples("classification", examples().columns, [("a " * 100,), ("b",)], ["bad", "good"], ("bad", "good"), "")
    encoded = encode(long, tokenizer, model, 64)
    assert (encoded.cut, encoded.rows["length"][:]) == (1, [64, 3])


def test_a_tag_belongs_to_the_first_token_of_its_word(tmp_path):
    origin = find_model(str(save_tagger(tmp_path / "model", ["O", "B-X"])))
    tagged = Examples("token-classification", examples().columns, [("ab", "c")], [["B-X", "O"]], ("O", "B-X"), "")
    tokenizer, model = load_tokenizer(origin, "token-classification"), load_start(origin, tagged, False, 0)
    encoded = encode(tagged, tokenizer, model, 16)
    assert encoded.rows["labels"][0] == [IGNORED_LABEL, 1, IGNORED_LABEL, 0, IGNORED_LABEL]
