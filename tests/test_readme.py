"""What README.md says works as it stands, and its numbers are the results files'."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from transformers import AutoTokenizer

import smoke_source
from nxm import NM, find_targets

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_snippet_runs_as_it_stands(tmp_path, monkeypatch):
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, TrainingArguments

    snippet = re.search(r"<!-- snippet -->\n```python\n(.*?)```", README, flags=re.DOTALL)[1]
    assert len(snippet.strip().splitlines()) < 10
    smoke_source.write(tmp_path / "source", tasks=())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "source" / "weights")
    rows = [tokenizer("cat sits" if i % 2 else "old dog runs") | {"labels": i % 2} for i in range(64)]
    names = {
        "model": AutoModelForSequenceClassification.from_pretrained(tmp_path / "source" / "weights", num_labels=2),
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
