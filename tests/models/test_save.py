"""A saved model replaces a saved model and nothing else."""

from __future__ import annotations

import pytest
from transformers import BertTokenizerFast

from nxm.errors import UserError
from nxm.models.save import save_model
from tiny_models import MODELS
from tiny_models import save_model as save_tiny


@pytest.mark.situation("saving", "a study's model over the one of a former run", "works")
@pytest.mark.situation("saving", "a study's model over a folder with other files, or over no model", "refused")
def test_a_saved_model_replaces_a_saved_model_alone(tmp_path):
    model = MODELS["bert"]()
    folder = save_tiny(tmp_path / "model", model)
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    former = folder.stat().st_ino
    save_model(model, tokenizer, folder)
    assert folder.stat().st_ino != former
    save_model(model, tokenizer, folder)
    for name in ("notes.md", "checkpoint-5/optimizer.pt", ".hidden"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        with pytest.raises(UserError, match=f"model: exists and holds {name}, which is no file of a saved model"):
            save_model(model, tokenizer, folder)
        assert path.read_text() == "mine"
        path.unlink()
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="model: exists and is no saved model"):
        save_model(model, tokenizer, folder)
