"""Tiny language models with random weights and a small tokenizer, written to a folder as transformers does."""
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GPT2Config, LlamaConfig, OPTConfig, PreTrainedTokenizerFast,
                          Qwen2Config, Qwen3Config)

CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
NO_SYSTEM = ("{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{{ bos_token }}{% for m in messages %}"
             "{{ '<|im_start|>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
             "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}")          # as Gemma's
WORDS = ['What is the rhythm of this ECG? sinus rhythm, atrial fibrillation, bradycardia, tachycardia; yes no. Rate: 60 72 84 96 beats a minute', 'user assistant system model']
SIZE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512)
MORE = dict(intermediate_size=48, num_key_value_heads=2, head_dim=8)
FAMILIES = dict(
    llama=lambda **k: LlamaConfig(**SIZE, **MORE, **k), qwen2=lambda **k: Qwen2Config(**SIZE, intermediate_size=48, num_key_value_heads=2, **k),
    qwen3=lambda **k: Qwen3Config(**SIZE, **MORE, **k),
    gemma2=lambda **k: Gemma2Config(**SIZE, **MORE, query_pre_attn_scalar=8, **k), gemma3=lambda **k: Gemma3TextConfig(**SIZE, **MORE, query_pre_attn_scalar=8, **k),
    gpt2=lambda **k: GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=512, **k),
    opt=lambda **k: OPTConfig(hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=512, word_embed_proj_dim=32, **k))
TEMPLATES = dict(gemma2=NO_SYSTEM, gemma3=NO_SYSTEM, gpt2=None, opt=None)


def tokenizer(template=CHATML):
    "A byte-level BPE tokenizer of a few hundred tokens."
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ['<pad>', '<bos>', '<eos>', '<|im_start|>', '<|im_end|>']
    t.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    out = PreTrainedTokenizerFast(tokenizer_object=t, pad_token='<pad>', bos_token='<bos>', eos_token='<eos>' if template is None else '<|im_end|>',
                                  additional_special_tokens=special[3:])
    out.chat_template = template
    return out


def tiny(folder, family='llama', seed=0):
    "The folder of a random model of `family` with its tokenizer; made where it is not there."
    folder = Path(folder)/family
    if (folder/'config.json').exists(): return str(folder)
    t = tokenizer(TEMPLATES.get(family, CHATML))
    torch.manual_seed(seed)
    lm = AutoModelForCausalLM.from_config(FAMILIES[family](vocab_size=len(t), pad_token_id=t.pad_token_id, bos_token_id=t.bos_token_id, eos_token_id=t.eos_token_id))
    for p in lm.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, 0, .15)
    lm.save_pretrained(folder); t.save_pretrained(folder)
    return str(folder)
