"""`nxm check` on saved models that obey their pattern, break it or are damaged."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    NomicBertConfig,
    NomicBertModel,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from nxm import NM, Integers, Unstructured, UserError, cli, find_targets
from nxm.export.packed import write_packed
from nxm.sets.saved import load_matrices, read_pattern, read_patterns, write_pattern

QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def check(monkeypatch, capsys):
    """Run the command in this process (a new one would spend seconds on imports)."""

    def run(*arguments) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["nxm", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code, stdout=captured.out, stderr=captured.err)

    return run


@pytest.fixture
def sparse(tiny_bert, tmp_path):
    targets = find_targets(tiny_bert)
    with torch.no_grad():
        for W in targets.values():
            W.copy_(NM(2, 4).project(W).Z)
    write_pattern(tiny_bert.config, NM(2, 4), targets)
    tiny_bert.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder, change) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_weights(folder, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.situation("check", "a model that a callback made sparse, saved with save_pretrained", "works")
def test_an_obeying_model_passes_matrix_by_matrix(sparse, check):
    done = check(sparse)
    assert done.returncode == 0, done.stderr
    assert "12 of 12 matrices obey 2:4" in done.stdout
    assert "bert.encoder.layer.1.output.dense.weight" in done.stdout


@pytest.mark.situation("check", "one weight too many is not zero", "refused")
def test_one_weight_too_many_fails(sparse, check):
    edit_weights(sparse, lambda tensors: tensors[QUERY][0, :4].fill_(1.0))
    done = check(sparse)
    assert done.returncode == 1
    assert "11 of 12 matrices obey 2:4" in done.stdout


def test_another_pattern_can_be_asked_for(sparse, check):
    assert check(sparse, "--pattern", "2:4").returncode == 0
    assert check(sparse, "--pattern", "1:4").returncode == 1
    done = check(sparse, "--pattern", "two:four")
    assert done.returncode == 1
    assert "--pattern" in done.stderr
    assert "2:4" in done.stderr
    assert "no multiple of the group size 5" in check(sparse, "--pattern", "2:5").stderr


@pytest.mark.situation("check", "a dense model without a pattern in its config", "refused")
def test_a_dense_model_needs_to_be_told_the_pattern(tiny_bert, tmp_path, check):
    tiny_bert.save_pretrained(tmp_path)
    assert "give one with --pattern" in check(tmp_path).stderr
    assert check(tmp_path, "--pattern", "2:4").returncode == 1


@pytest.mark.situation("check", "a truncated file or a missing folder", "refused")
def test_a_truncated_file_and_a_missing_folder_are_named(sparse, tmp_path, check):
    path = sparse / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "damaged or truncated" in check(sparse).stderr
    assert "no model folder here" in check(tmp_path / "absent").stderr


def test_patterns_survive_the_config(tiny_bert, tmp_path):
    for constraint in (NM(1, 8), Unstructured(0.25)):
        write_pattern(tiny_bert.config, constraint, ["a", "b"])
        tiny_bert.config.save_pretrained(tmp_path)
        loaded = type(tiny_bert.config).from_pretrained(tmp_path)
        assert read_pattern(loaded) == (constraint, ["a", "b"])


def test_it_is_a_command(sparse):
    done = subprocess.run(
        [sys.executable, "-m", "nxm", "check", str(sparse)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "12 of 12" in done.stdout


@pytest.mark.parametrize("pattern", [(), ("--pattern", "2:4")])
@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:100]), "damaged or truncated"),
        ("model.safetensors", lambda path: path.unlink(), "there is no such file"),
        ("config.json", lambda path: path.write_text('{"model_type": '), "no config of a model"),
        ("config.json", lambda path: path.write_text('{"model_type": "nonesuch"}'), "no config of a model"),
    ],
)
def test_a_damaged_folder_is_said_in_a_line(sparse, check, pattern, name, damage, said):
    damage(sparse / name)
    done = check(sparse, *pattern)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert f"{sparse}/{name}" in done.stderr
    assert said in done.stderr


# --- names, shards and stacks -------------------------------------------------------------------------------------

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BART = {
    "vocab_size": 60,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 64,
}
RENAMED = {  # transformers saves these under other names than they have in memory
    "vit": lambda: ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=4)),
    "swin": lambda: SwinForImageClassification(
        SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=2)
    ),
    "nomic": lambda: NomicBertModel(NomicBertConfig(**SIZES, vocab_size=60, pad_token_id=0)),
}


def save_sparse(model, folder, names=None, **options):
    """Make the targets 2:4, or the named ones alone, and save the model with this claim."""
    targets = find_targets(model)
    names = list(targets) if names is None else names
    with torch.no_grad():
        for name in names:
            targets[name].copy_(NM(2, 4).project(targets[name]).Z)
    write_pattern(model.config, NM(2, 4), names)
    model.save_pretrained(folder, **options)
    return folder


@pytest.mark.situation(
    "check", "ViT, Swin, NomicBERT and others that are saved under other names than in memory", "works"
)
@pytest.mark.parametrize("name", RENAMED)
def test_models_that_are_saved_under_other_names_are_checked(name, tmp_path, check):
    torch.manual_seed(0)
    model = RENAMED[name]()
    targets = list(find_targets(model))
    folder = save_sparse(model, tmp_path / "model")
    stored = load_file(folder / "model.safetensors")
    assert not set(targets) <= stored.keys()  # else this model tests nothing
    for arguments in ((), ("--pattern", "2:4")):
        done = check(folder, *arguments)
        assert done.returncode == 0, done.stderr
        assert f"{len(targets)} of {len(targets)} matrices obey 2:4" in done.stdout
    model = RENAMED[name]()
    folder = save_sparse(model, tmp_path / "part", targets[:1])
    assert "1 of 1 matrices obey" in check(folder).stdout
    done = check(folder, "--pattern", "2:4")
    assert done.returncode == 1
    assert f"1 of {len(targets)} matrices obey 2:4" in done.stdout


@pytest.mark.situation("check", "a model saved in shards", "works")
def test_shards_are_read_like_one_file(tiny_bert, tmp_path, check):
    folder = save_sparse(tiny_bert, tmp_path / "model", max_shard_size="10KB")
    assert not (folder / "model.safetensors").exists()
    for arguments in ((), ("--pattern", "2:4")):
        assert "12 of 12 matrices obey" in check(folder, *arguments).stdout
    shard = sorted(folder.glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:50])
    assert f"{shard}: damaged or truncated" in check(folder).stderr
    shard.unlink()
    assert f"{shard}: there is no such file" in check(folder).stderr
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "model.safetensors.index.json: no index of a model's files" in check(folder).stderr


@pytest.mark.situation("check", "a model whose decoder is dense: it is named as not checked", "works")
def test_large_matrices_without_a_pattern_are_named(tmp_path, check):
    model = BartForConditionalGeneration(BartConfig(**BART))
    encoder = [name for name in find_targets(model) if ".encoder." in name]
    done = check(save_sparse(model, tmp_path / "model", encoder))
    assert done.returncode == 0
    assert "12 of 12 matrices obey 2:4" in done.stdout
    assert "not checked, since without a pattern: 20 other large matrices, the largest model.decoder." in done.stdout


def test_tied_and_small_matrices_are_not_said_to_lack_a_pattern(tmp_path, check):
    model = BertForMaskedLM(BertConfig(**SIZES, vocab_size=60, pad_token_id=0))
    done = check(save_sparse(model, tmp_path / "model"))
    assert "1 other large matrix cls.predictions.transform.dense.weight" in done.stdout


@pytest.mark.situation("check", "a class of one's own that transformers does not have", "works")
def test_a_class_that_transformers_does_not_have_is_read_by_its_names(sparse, check):
    edit_config(sparse, lambda config: config.update(architectures=["Mine"]))
    assert "12 of 12 matrices obey" in check(sparse).stdout
    assert "12 of 12 matrices obey" in check(sparse, "--pattern", "2:4").stdout


def test_what_transformers_cannot_build_is_checked_by_the_names_in_its_file(sparse, check):
    edit_config(sparse, lambda config: config.update(hidden_size=17))
    assert "12 of 12 matrices obey" in check(sparse).stdout
    assert "transformers cannot build this model" in check(sparse, "--pattern", "2:4").stderr


@pytest.mark.situation("check", "weights that the config's class needs and the file lacks", "refused")
@pytest.mark.parametrize("pattern", [(), ("--pattern", "2:4")])
def test_a_matrix_that_is_missing_is_named(sparse, check, pattern):
    edit_weights(sparse, lambda tensors: tensors.pop(QUERY))
    done = check(sparse, *pattern)
    assert done.returncode == 1
    assert f"no tensor '{QUERY}'" in done.stderr


@pytest.mark.situation("check", "NaN or infinite weights", "refused")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_obey(sparse, check, value):
    def spoil(tensors):
        first = tensors[QUERY][0].nonzero()[0]
        tensors[QUERY][0, first] = value

    edit_weights(sparse, spoil)
    done = check(sparse)
    assert done.returncode == 1
    assert "11 of 12 matrices obey" in done.stdout
    assert "NaN or infinite" in done.stdout


@pytest.mark.situation(
    "check", "a damaged nxm_sparsity in the config: a string, no targets, an unknown kind", "refused"
)
@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("2:4", "nxm_sparsity is '2:4', which is not a pattern with its matrices"),
        ([], "nxm_sparsity is an empty list"),
        ({"kind": "nm", "n_nonzero": 2, "group_size": 4}, "the targets of nxm_sparsity are None"),
        ({"kind": "nm", "n_nonzero": 2, "group_size": 4, "targets": []}, "the targets of nxm_sparsity are []"),
        ({"kind": "nm", "n_nonzero": 2, "group_size": 4, "targets": QUERY}, "the targets of nxm_sparsity are 'bert"),
        ({"kind": "nm", "n_nonzero": 2, "group_size": 4, "targets": ["absent"]}, "no tensor 'absent'"),
        ({"kind": "nm", "n_nonzero": "2", "group_size": 4, "targets": [QUERY]}, "is not a pattern that nxm knows"),
        ({"kind": "nm", "n_nonzero": 4, "group_size": 2, "targets": [QUERY]}, "is not a pattern that nxm knows"),
        ({"kind": "heads", "targets": [QUERY]}, "is not a pattern that nxm knows"),
        (
            {"kind": "nm", "n_nonzero": 2, "group_size": 4, "targets": ["classifier.bias"]},
            "classifier.bias: has the shape (2,)",
        ),
    ],
)
def test_a_damaged_claim_is_said_in_a_line(sparse, check, written, said):
    edit_config(sparse, lambda config: config.update(nxm_sparsity=written))
    done = check(sparse)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert said in done.stderr


# --- integers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def integers(tiny_bert, tmp_path):
    targets = find_targets(tiny_bert)
    constraint = Integers(4, NM(2, 4))
    with torch.no_grad():
        for W in targets.values():
            W.copy_(constraint.project(W).Z)
    write_pattern(tiny_bert.config, constraint, targets)
    tiny_bert.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rows(stdout: str) -> dict[str, list[str]]:
    """Return the columns of each matrix in the table of a check."""
    lines = [line.split() for line in stdout.splitlines() if line.strip().startswith("bert.encoder")]
    return {name: columns for name, *columns in lines}


@pytest.mark.situation("check", "integers: the pattern, the grid and the bits a weight, by matrix", "works")
def test_of_integers_pattern_and_grid_are_checked_and_bits_are_printed(integers, tmp_path, check):
    done = check(integers)
    assert done.returncode == 0, done.stderr
    tensors = load_file(integers / "model.safetensors")
    found = rows(done.stdout)
    assert len(found) == 12
    total = weights = 0
    for name, (shape, _, *columns) in found.items():
        out, inside = tensors[name].shape
        bits = out * inside / 2 * (4 + 2) + 16 * out  # codes and positions of the half, and a scale per row
        assert shape == f"{out}x{inside}"
        assert columns == ["True", "True", f"{bits / (out * inside):.3f}", "True"]
        total, weights = total + bits, weights + out * inside
    assert f"12 matrices of integers take {total / weights:.3f} bits a weight, positions and scales included: " in (
        done.stdout
    )
    assert (
        f"{32 * weights / total:.2f} times smaller than in fp32, {16 * weights / total:.2f} than in bf16" in done.stdout
    )
    write_packed(integers, tmp_path / "packed")
    again = check(tmp_path / "packed")
    assert again.returncode == 0, again.stderr
    assert rows(again.stdout) == found
    size = (tmp_path / "packed/packed.safetensors").stat().st_size / 2**20
    assert f"the whole model, packed, takes {size:.2f} MiB" in again.stdout
    about = float(re.search(r"MiB, packed about (\S+) MiB", done.stdout)[1])
    assert about == pytest.approx(size, abs=0.02)  # the file has a header, too


@pytest.mark.situation("check", "integers: a weight off the grid, or one too many that is not zero", "refused")
def test_a_weight_off_the_grid_is_told_from_one_that_breaks_the_pattern(integers, check):
    whole = load_file(integers / "model.safetensors")
    place = int(whole[QUERY][0].nonzero()[0])
    edit_weights(integers, lambda tensors: tensors[QUERY][0, place].mul_(1.01))
    done = check(integers)
    assert done.returncode == 1
    assert "11 of 12 matrices obey 2:4 int4" in done.stdout
    assert rows(done.stdout)[QUERY][2:] == ["True", "False", "-", "False"]
    assert "matrices of integers take" not in done.stdout
    save_file(whole, integers / "model.safetensors", metadata={"format": "pt"})
    edit_weights(integers, lambda tensors: tensors[QUERY][0].copy_(tensors[QUERY][0].abs().amax()))
    assert rows(check(integers).stdout)[QUERY][2:] == ["False", "True", "-", "False"]
    save_file(whole, integers / "model.safetensors", metadata={"format": "pt"})
    edit_weights(integers, lambda tensors: tensors[QUERY][0, place].fill_(torch.nan))
    assert rows(check(integers).stdout)[QUERY][2:5] == ["False", "False", "-"]


def test_integers_that_were_saved_in_bf16_left_their_grid(integers, check):
    edit_weights(integers, lambda tensors: tensors.update({name: W.bfloat16() for name, W in tensors.items()}))
    done = check(integers)
    assert done.returncode == 1
    assert rows(done.stdout)[QUERY][2:4] == ["True", "False"]


@pytest.mark.situation("check", "a damaged packed checkpoint", "refused")
def test_a_damaged_packed_checkpoint_is_named(integers, tmp_path, check):
    write_packed(integers, tmp_path / "packed")
    path = tmp_path / "packed/packed.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    done = check(tmp_path / "packed")
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "packed.safetensors: damaged or truncated" in done.stderr


# --- several patterns in one model ---------------------------------------------------------------------------------


@pytest.mark.situation("saving", "two patterns in one model: 2:4 for attention, 1:4 for the rest", "works")
@pytest.mark.situation("check", "two patterns in one model", "works")
def test_a_model_may_have_several_patterns(tiny_bert, tmp_path, check):
    targets = find_targets(tiny_bert)
    attention = [name for name in targets if "attention" in name]
    rest = [name for name in targets if name not in attention]
    for constraint, names in ((NM(2, 4), attention), (NM(1, 4), rest)):
        with torch.no_grad():
            for name in names:
                targets[name].copy_(constraint.project(targets[name]).Z)
        write_pattern(tiny_bert.config, constraint, names, dict(tiny_bert.named_parameters()))
    tiny_bert.save_pretrained(tmp_path)
    loaded = type(tiny_bert.config).from_pretrained(tmp_path)
    assert read_patterns(loaded) == [(NM(2, 4), attention), (NM(1, 4), rest)]
    with pytest.raises(UserError, match=r"several patterns \(2:4, 1:4\) where one is expected"):
        read_pattern(loaded)
    done = check(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "8 of 8 matrices obey 2:4" in done.stdout
    assert "4 of 4 matrices obey 1:4" in done.stdout
    edit_weights(tmp_path, lambda tensors: tensors[attention[0]][0, :4].fill_(1.0))
    done = check(tmp_path)
    assert done.returncode == 1
    assert "7 of 8 matrices obey 2:4" in done.stdout
    assert "4 of 4 matrices obey 1:4" in done.stdout


def test_one_claim_is_written_as_it_always_was(tiny_bert):
    entry = {"kind": "nm", "n_nonzero": 2, "group_size": 4, "targets": ["a", "b"]}
    write_pattern(tiny_bert.config, NM(2, 4), ["a", "b"])
    assert list(tiny_bert.config.nxm_sparsity.items()) == list(entry.items())
    write_pattern(tiny_bert.config, NM(2, 4), {"a": None, "b": None})
    assert tiny_bert.config.nxm_sparsity == entry


@pytest.mark.situation("saving", "a second training with another pattern on the same matrices", "works")
def test_the_latest_claim_on_a_matrix_is_the_valid_one(tiny_bert):
    config = tiny_bert.config
    write_pattern(config, NM(2, 4), ["a", "b", "c"])
    write_pattern(config, NM(1, 4), ["b"])
    assert read_patterns(config) == [(NM(2, 4), ["a", "c"]), (NM(1, 4), ["b"])]
    write_pattern(config, NM(1, 4), ["c", "d"])
    assert read_patterns(config) == [(NM(2, 4), ["a"]), (NM(1, 4), ["b", "c", "d"])]
    write_pattern(config, Unstructured(0.5), ["a", "b", "c", "d"])
    assert read_patterns(config) == [(Unstructured(0.5), ["a", "b", "c", "d"])]


@pytest.mark.situation(
    "saving", "a second training on other matrices, in which the first ones left their pattern", "works"
)
def test_an_earlier_claim_keeps_only_the_matrices_that_hold(tiny_bert):
    sparse, dense = torch.eye(8), torch.ones(8, 8)
    config = tiny_bert.config
    write_pattern(config, NM(2, 4), ["holds", "left", "gone", "nan", "vector"])
    weights = {"holds": sparse, "left": dense, "nan": sparse * torch.nan, "vector": torch.zeros(8), "new": sparse}
    with pytest.warns(UserWarning, match="no longer claims 2:4 for 4 matrices that have left it, first left"):
        write_pattern(config, NM(1, 4), ["new"], weights)
    assert read_patterns(config) == [(NM(2, 4), ["holds"]), (NM(1, 4), ["new"])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_pattern(config, NM(1, 4), ["new"], weights)


def test_a_damaged_former_claim_does_not_cost_the_training(tiny_bert):
    tiny_bert.config.nxm_sparsity = "2:4"
    with pytest.warns(UserWarning, match="former pattern is replaced, since it cannot be read"):
        write_pattern(tiny_bert.config, NM(2, 4), ["a"])
    assert read_pattern(tiny_bert.config) == (NM(2, 4), ["a"])


def test_matrices_are_those_of_the_file(sparse):
    stored = load_file(sparse / "model.safetensors")
    assert torch.equal(load_matrices(sparse, [QUERY])[QUERY], stored[QUERY])
