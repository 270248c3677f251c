"""What README.md says works as it stands, and its numbers are the results files'."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import smoke_source
from nxm import NM, find_targets

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


SNIPPETS = re.findall(r"<!-- snippet -->\n```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["callback", "teacher"])
def test_the_library_snippets_run_as_they_stand(snippet, tmp_path, monkeypatch):
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, TrainingArguments

    assert len(snippet.strip().splitlines()) < 10
    smoke_source.write(tmp_path / "source", tasks=())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "source" / "weights")
    rows = [tokenizer("cat sits" if i % 2 else "old dog runs") | {"labels": i % 2} for i in range(64)]
    model, dense = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "source" / "weights", num_labels=2)
        for _ in range(2)
    )
    names = {
        "model": model,
        "dense": dense,
        "tokenizer": tokenizer,
        "train_dataset": Dataset.from_list(rows),
        "args": TrainingArguments(
            output_dir=str(tmp_path / "out"), num_train_epochs=4, report_to="none", disable_tqdm=True, use_cpu=True
        ),
    }
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), names)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "sparse-model")
    assert all(NM(2, 4).contains(W) for W in find_targets(saved).values())


def test_generated_blocks_are_what_the_results_say():
    done = subprocess.run(
        [sys.executable, "-m", "nxm.report.readme", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_that_the_readme_names_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
