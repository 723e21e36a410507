"""Adapters that PEFT made on the toy's base model, and what they answer under plain PEFT."""

import torch
from peft import LoraConfig, get_peft_model

from see_lightning import load_ensemble
from tests.runs import toy


def foreign(base, tmp_path, rank=4, targets=("q_proj", "o_proj"), **settings):
    """A folder with an adapter that PEFT made on the toy's base model, and its PEFT model."""
    model = load_ensemble(toy.whole(base, "method=base").directory).method.pool.model
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=32, target_modules=list(targets), task_type="CAUSAL_LM", **settings)
    adapted = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    adapted.save_pretrained(tmp_path / "foreign")
    return tmp_path / "foreign", adapted.eval()


def generated(adapted, method, query, forced=(), tokens=4):
    """The greedy answer of a PEFT model, behind forced tokens."""
    ids = torch.tensor([[*method.template.prompt_ids(query), *forced]])
    with torch.inference_mode():
        out = adapted.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=sorted(method.eos_ids()),
            pad_token_id=0,
        )
    new = [one for one in out[0, ids.shape[1] :].tolist() if one not in method.eos_ids()]
    return method.template.text(new) if not forced else method.text_behind(forced, new)
