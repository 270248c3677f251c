"""The report card of a run, as Markdown and as one HTML file, and the model card of the compressed model.

All three are rendered from the numbers in report.json and from nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, StrictUndefined

from nxm.compress.score import LABELS
from nxm.compress.settings import ANSWERS, IMAGES
from nxm.durations import say_duration

HEADS = {
    "token-classification": "TokenClassification",
    ANSWERS: "QuestionAnswering",
    IMAGES: "ImageClassification",
}
FEW_ROWS = 200  # held out: one is then half a point of accuracy

_REPORT = """\
# {{ title }}

{{ verdict }}

## Score

{{ label[0]|upper }}{{ label[1:] }} on {{ rows.held_out }} held-out rows ({{ held_out_place }}), in points \
(score x 100), with 95 % intervals by bootstrap over the rows; the difference is paired.

| Model | {{ label }} | 95 % interval |
|:--|--:|--:|
| Dense | {{ points(scores.before.value) }} | {{ between(scores.before) }} |
| Compressed to {{ to }} | {{ points(scores.after.value) }} | {{ between(scores.after) }} |
| Difference | {{ signed(scores.difference.value) }} | {{ signed(scores.difference.low) }} to \
{{ signed(scores.difference.high) }} |
{%- if export.score is defined %}
| Exported ({{ export.format }}) | {{ points(export.score) }} | |
{%- endif %}
{% if others %}
Other metrics, dense and compressed: {{ others }}.
{% endif %}
{%- if constant is not none %}
Always answering the most frequent class would have an accuracy of {{ points(constant) }}.
{% endif %}
## Check

{{ check.obeying }} of {{ check.matrices }} matrices obey {{ to }}; {{ percent(check.density) }} of their entries are \
not zero. {{ check_words }}

## Size

| | |
|:--|--:|
| Dense model, file | {{ mib(size.dense_bytes) }} |
| Compressed model, file | {{ mib(size.compressed_bytes) }} |
{%- if size.packed_bytes %}
| Compressed model, packed (about) | {{ mib(size.packed_bytes) }} |
{%- endif %}
{%- if export.bytes is defined %}
| Export to {{ export.format }} | {{ mib(export.bytes) }} |
{%- endif %}
| Bits per weight of the {{ check.matrices }} matrices, positions and scales included | \
{{ "%.2f"|format(size.bits_per_weight) }} |
| Share of the model's weights in these matrices | {{ percent(size.share) }} |

{{ size_words }}

## Speed on this machine

{{ machine.cpu }}, {{ machine.cores }} cores, device {{ machine.device }}; {{ inputs }}.

| Form | Batch | Median ms | 10th to 90th percentile | Times as fast as dense | Products ran in |
|:--|--:|--:|--:|--:|:--|
{%- for row in latency %}
{%- if row.absent is defined %}
| {{ row.form }} | {{ row.batch }} | absent | | | {{ row.absent }} |
{%- else %}
| {{ row.form }} | {{ row.batch }} | {{ "%.2f"|format(row.median_ms) }}{{ " (noisy)" if row.noisy }} | \
{{ "%.2f"|format(row.p10_ms) }} to {{ "%.2f"|format(row.p90_ms) }} | {{ "%.2f"|format(row.speedup) }} | \
{{ row.kernels|join(", ") or "-" }} |
{%- endif %}
{%- endfor %}

{{ speed_words }}

## If it lost too much

{% for line in advice -%}
- {{ line }}
{% endfor %}
## The run

| | |
|:--|:--|
| Model | {{ model }} |
| Task | {{ task }}{{ ", classes " ~ classes if classes }} |
| Columns | {{ columns }} |
| Rows | {{ rows.train }} to train, {{ rows.held_out }} held out |
| Recipe | {{ recipe }} |
| Epochs | {{ epochs }} |
| Time | {{ time }} |
{% if notes %}
{% for note in notes -%}
- {{ note }}
{% endfor %}
{%- endif %}
`settings.json` has the settings, `report.json` every number of this page. `model` is a `from_pretrained` folder: \
`nxm check {{ folder }}/model` verifies it, {{ export_words }}.
"""

_MODEL_CARD = """\
---
library_name: transformers
{% if hub_name -%}
base_model: {{ hub_name }}
{% endif -%}
tags: [nxm, compressed]
---

# {{ title }}

{{ model }}, compressed to {{ to }} by [ADMM](https://arxiv.org/abs/2110.15766) with nxm.

| Model | {{ label }} | 95 % interval |
|:--|--:|--:|
| Dense | {{ points(scores.before.value) }} | {{ between(scores.before) }} |
| This one | {{ points(scores.after.value) }} | {{ between(scores.after) }} |

On {{ rows.held_out }} held-out rows; task: {{ task }}{{ ", classes " ~ classes if classes }}. {{ check.obeying }} of \
{{ check.matrices }} matrices obey {{ to }}; config.json names them as `nxm_sparsity`.

```python
from transformers import {{ loader }}, {{ processor[0] }}

model, {{ processor[1] }} = {{ loader }}.from_pretrained("."), {{ processor[0] }}.from_pretrained(".")
```

The data is the maker's own; its licence and that of the original model hold for this one.
"""

_HTML = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 58rem; margin: 2rem auto; padding: 0 1rem; color: #1c2330; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.verdict { padding: .7rem 1rem; background: #f4f6f8;
  border-left: .3rem solid {{ "#2e7d4f" if gate.passed else "#b3372c" }}; }
.tablewrap { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid #d5dae1; padding: .3rem .6rem; text-align: left; font-variant-numeric: tabular-nums; }
</style></head><body>
<h1>{{ title }}</h1>
<p class="verdict">{{ verdict }}</p>
{% for heading, blocks in sections %}
<h2>{{ heading }}</h2>
{% for kind, content in blocks %}
{% if kind == "table" %}
<div class="tablewrap"><table>
{%- if content["head"] %}<tr>
{%- for cell in content["head"] %}<th scope="col">{{ cell }}</th>{% endfor %}</tr>{% endif %}
{%- for cells in content["rows"] %}<tr>
{%- for cell in cells %}{% if loop.first %}<th scope="row">{{ cell }}</th>{% else %}<td>{{ cell }}</td>{% endif %}
{%- endfor %}</tr>{% endfor %}</table></div>
{% elif kind == "list" %}
<ul>{% for item in content %}<li>{{ item }}</li>{% endfor %}</ul>
{% else %}
<p>{{ content }}</p>
{% endif %}
{% endfor %}
{% endfor %}
</body></html>
"""


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report card as Markdown."""
    return _render(_REPORT, _words(report))


def model_card(report: Mapping[str, Any]) -> str:
    """Return the model card, README.md of the compressed model's folder."""
    return _render(_MODEL_CARD, _words(report))


def html(report: Mapping[str, Any]) -> str:
    """Return the report card as one HTML file, which loads nothing."""
    words = _words(report)
    sections = _sections(_render(_REPORT, words))
    environment = Environment(undefined=StrictUndefined, autoescape=True)
    return environment.from_string(_HTML).render(words | {"sections": sections})


def verdict(report: Mapping[str, Any]) -> str:
    """Return the outcome in a sentence or two."""
    scores, gate = report["scores"], report["gate"]
    label, drop = LABELS[report["metric"]], -scores["difference"]["value"]
    change = f"{abs(drop):.2f} points {'lower' if drop > 0 else 'higher'} than dense" if drop else "the same as dense"
    text = f"Compressed to {report['to']}: {label} {scores['after']['value']:.2f}, {change}"
    text += f" (95 %: {scores['difference']['low']:+.2f} to {scores['difference']['high']:+.2f})."
    if report["export"].get("refused"):
        text += f" The export was refused: {report['export']['refused']}."
    if gate["max_drop"] is None:
        return text
    limit = f"--max-drop {gate['max_drop']:g}"
    if gate["drop"] <= gate["max_drop"]:
        unscored = " for the model; the export could not be scored here" if "absent" in report["export"] else ""
        return f"{text} Within {limit}{unscored}."
    whose = "The export" if report["export"].get("drop") == gate["drop"] else "It"
    return f"{text} {whose} lost {gate['drop']:.2f} points, more than {limit} allows."


def _render(template: str, words: Mapping[str, Any]) -> str:
    environment = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)  # noqa: S701 (no HTML)
    return environment.from_string(template).render(words)


def _words(report: Mapping[str, Any]) -> dict[str, Any]:
    metric, scores = report["metric"], report["scores"]
    pairs = [
        f"{LABELS[name]} {scores['before']['metrics'][name]:.2f} and {scores['after']['metrics'][name]:.2f}"
        for name in scores["before"]["metrics"]
        if name != metric and (name != "entity_f1" or report["metrics"].count(name))
    ]
    seconds, plan = report["seconds"], report["plan"]
    dense = (
        "no dense training (the model has its head)" if not plan["dense_epochs"] else f"dense {plan['dense_epochs']}"
    )
    images = report["task"] == IMAGES
    inputs = f"texts of {report['length']} tokens"
    if images:
        inputs = f"images of {report['image_size'][1]} x {report['image_size'][2]} pixels"
    columns = [("images" if images else "text", report["columns"]["text"]), ("label", report["columns"]["label"])]
    return dict(report) | {
        "title": f"{report['model'].rstrip('/').rpartition('/')[2]}, compressed to {report['to']}",
        "verdict": verdict(report),
        "label": LABELS[metric],
        "others": "; ".join(pairs),
        "classes": _cell(", ".join(report["classes"][:12])) + (", ..." if len(report["classes"]) > 12 else ""),
        "columns": _cell("; ".join(f"{name}: {', '.join(own)}" for name, own in columns)),
        "inputs": inputs,
        "epochs": f"{dense}, compression {plan['epochs']}",
        "time": f"dense {say_duration(seconds['dense'])}, compression {say_duration(seconds['compress'])}",
        "check_words": "The scores are those of the saved model, loaded again"
        + (", and equal those of the model in training." if report["check"]["compared"] else "."),
        "size_words": _size_words(report),
        "speed_words": _speed_words(report),
        "advice": _advice(report),
        "export_words": "this command with `--export onnx` writes it as ONNX too and trains nothing again"
        if images
        else f"`nxm export {report['folder']}/model ...` writes it in other formats",
        "loader": f"AutoModelFor{HEADS.get(report['task'], 'SequenceClassification')}",
        "processor": ("AutoImageProcessor", "processor") if images else ("AutoTokenizer", "tokenizer"),
        "points": lambda value: f"{value:.2f}",
        "signed": lambda value: f"{value:+.2f}",
        "between": lambda score: f"{score['low']:.2f} to {score['high']:.2f}",
        "percent": lambda share: f"{100 * share:.1f} %",
        "mib": lambda size: f"{size / 2**20:.2f} MiB",
    }


def _size_words(report: Mapping[str, Any]) -> str:
    if report["task"] == IMAGES:
        return (
            "The file has zeros and integers as fp32 numbers; nxm stores models of images in no packed format. The "
            "bits per weight are those that a format with positions and scales would take."
        )
    if report["size"]["packed_bytes"]:
        return (
            "The model's own file stores the integers as fp32 numbers. `nxm export --to packed` stores them in the "
            "bits above, for `nxm.load`."
        )
    return (
        "The file has the zeros, as fp32 numbers: no maintained format stores N:M without them. The bits per weight "
        "are those that a format with positions would take. Integers, such as 2:4 int8, can be stored packed."
    )


def _speed_words(report: Mapping[str, Any]) -> str:
    rows = [row for row in report["latency"] if "absent" not in row]
    if any(row["sparse_launches"] for row in rows):
        return "Kernels for sparse matrices ran, as the profiler's names show."
    text = (
        "No kernel here skips zeros: the compressed model in PyTorch runs in the same dense fp32 kernels as the dense "
        "one. Its zeros and integers save no time there, and differences between these two forms are noise."
    )
    if report["export"].get("format") in ("onnx-int8", "openvino-int8", "torch-int8"):
        text += " The export's gain, if any, comes from integers and the runtime, not from zeros."
    if ("2:4" in report["to"] or "1:4" in report["to"]) and report["task"] != IMAGES:
        text += (
            " GPUs from NVIDIA's Ampere on have 2:4 kernels: `nxm export --to torch-2of4` writes the model for them, "
        )
        text += "and `nxm bench` says when they pay."
    return text


def _advice(report: Mapping[str, Any]) -> list[str]:
    lines = []
    constant = report["constant"]
    if constant is not None and report["scores"]["before"]["metrics"]["accuracy"] <= constant:
        lines.append(
            "The dense model is no better than the most frequent class: look at the labels, or fine-tune it longer "
            "(`--dense-epochs`; `--fine-tune` if the model brought its own head)."
        )
    difference = report["scores"]["difference"]
    if difference["low"] < 0 < difference["high"]:
        lines.append(
            "The interval of the difference has 0 in it: more held-out rows would say whether anything was lost."
        )
    if report["rows"]["held_out"] < FEW_ROWS:
        lines.append(
            "Few rows are held out, so scores and intervals mean little: give more, or a file of them (`--test`)."
        )
    lines.append("Train longer: `--epochs` (half of the steps recover on the fixed pattern).")
    if "int" in report["to"]:
        lines.append("Take more bits, such as int8 in place of int4, or integers without zeros.")
    if ":" in report["to"]:
        lines.append("Take a milder pattern, such as 2:4 in place of 1:4, or 3:4 in place of 2:4.")
    if report["recipe"] == "paper":
        lines.append("Take the default recipe, which learns from the dense model.")
    what = "images" if report["task"] == IMAGES else "texts"
    lines.append(f"Give more training rows; unlabelled {what} do not help here.")
    lines.append(
        "Try other learning rates: `--learning-rate` at half and twice the value in settings.json or report.json."
    )
    return lines


def _cell(text: str) -> str:
    """Return a text as it may stand in a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _cells(line: str) -> list[str]:
    """Return the texts of a line of a Markdown table."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line[1:-1])]


def _sections(text: str) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Return the report's sections as blocks: tables, lists and paragraphs, without Markdown's marks."""
    sections = []
    for part in text.split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        blocks: list[tuple[str, Any]] = []
        for block in body.strip().split("\n\n"):
            lines = [line.replace("`", "") for line in block.strip().splitlines() if line.strip()]
            if lines and all(line.startswith("|") for line in lines):
                head, _, *rows = (_cells(line) for line in lines)
                blocks.append(("table", {"head": head if any(head) else [], "rows": rows}))
            elif lines and all(line.startswith("- ") for line in lines):
                blocks.append(("list", [line[2:] for line in lines]))
            elif lines:
                blocks.append(("text", " ".join(lines)))
        sections.append((heading, blocks))
    return sections
