"""A tiny folder as the hub has it, written without ``transformers``; its names are spelt out here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "vocab_size": 300,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "max_position_embeddings": 64,
    "eos_token_id": 0,
    "torch_dtype": "float32",
    "transformers_version": "4.57.0",
}


def mixtral_tensors() -> dict[str, Tensor]:
    """Random tensors under the names of the hub."""
    shapes = {"model.embed_tokens.weight": (300, 16), "model.norm.weight": (16,), "lm_head.weight": (300, 16)}
    for i in range(2):
        block = f"model.layers.{i}."
        shapes |= {f"{block}input_layernorm.weight": (16,), f"{block}post_attention_layernorm.weight": (16,)}
        rows = {"q": 16, "k": 8, "v": 8, "o": 16}
        shapes |= {f"{block}self_attn.{name}_proj.weight": (size, 16) for name, size in rows.items()}
        shapes[f"{block}block_sparse_moe.gate.weight"] = (3, 16)
        for e in range(3):
            expert = f"{block}block_sparse_moe.experts.{e}."
            shapes |= {expert + "w1.weight": (12, 16), expert + "w2.weight": (16, 12), expert + "w3.weight": (12, 16)}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_folder(path: Path, tensors: dict[str, Tensor] | None = None, *, shards: int = 1, **fields: Any) -> Path:
    """A folder of Mixtral's; ``fields`` replace those of its configuration."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({**CONFIG, **fields}))
    tensors = mixtral_tensors() if tensors is None else tensors
    if shards == 1:
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
        return path
    names = sorted(tensors)
    where = {}
    for n in range(shards):
        file = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        part = names[n::shards]
        save_file({name: tensors[name] for name in part}, path / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return path


def byte_level_tokenizer() -> str:
    """The text of a ``tokenizer.json``: byte-level BPE of 300 tokens, with two special ones first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the cat sat on the mat and the dog\n" * 50], trainer)
    text: str = made.to_str()
    return text


def sentencepiece_tokenizer() -> str:
    """The text of a ``tokenizer.json`` as Llama 2's: spaces are a letter, unknown letters fall back to bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    letters = ["\u2581", "t", "h", "e", "c", "a", "\u2581t", "he", "\u2581the", "ca", "\u2581ca", "cat", "\u2581cat"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *letters]
    merges = [("\u2581", "t"), ("h", "e"), ("\u2581t", "he"), ("c", "a"), ("\u2581", "ca"), ("\u2581ca", "t")]
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    text: str = made.to_str()
    return text


def framed(tokenizer: str, begin: str, end: str) -> str:
    """The same ``tokenizer.json`` with special tokens around a text; cut to 4 tokens and padded to 9 by another use."""
    described = json.loads(tokenizer)
    number = {token["content"]: token["id"] for token in described["added_tokens"]}
    first, last = ({"SpecialToken": {"id": name, "type_id": 0}} for name in (begin, end))
    text = {"Sequence": {"id": "A", "type_id": 0}}
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, text, last],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {name: {"id": name, "ids": [number[name]], "tokens": [name]} for name in (begin, end)},
    }
    described["truncation"] = {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    described["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 2, "pad_type_id": 0,
        "pad_token": end,
    }  # fmt: skip
    return json.dumps(described)
