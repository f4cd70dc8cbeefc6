"""Models of Hugging Face: import and export, exact and checked, family by family."""

from __future__ import annotations

from pathlib import Path

from moekit.component import Component, Kind, RecipeFile, Verb, recipes_in
from moekit.hookspecs import hookimpl
from moekit.lazy import from_stub

MOEKIT_API = 2
__getattr__, __dir__, __all__ = from_stub(__name__, __file__)

_FAMILIES = {
    "deepseek_v2": ("DeepseekV2", "DeepSeek-V2, V2-Lite", "DeepSeek-AI 2024"),
    "deepseek_v3": ("DeepseekV3", "DeepSeek-V3 and R1, Kimi-K2, Moonlight", "DeepSeek-AI 2024"),
    "dots1": ("Dots1", "dots.llm1", "Huo et al. 2025"),
    "glm4_moe": ("Glm4Moe", "GLM-4.5, GLM-4.5-Air, GLM-4.6", "GLM-4.5 Team 2025"),
    "gpt_oss": ("GptOss", "gpt-oss-20b and gpt-oss-120b", "OpenAI 2025"),
    "llama": ("Llama", "Llama 2 to 3.3 (dense)", "Touvron et al. 2023"),
    "llama4": ("Llama4", "Llama 4 Scout and Maverick, text", "Meta 2025"),
    "minimax_m2": ("MiniMaxM2", "MiniMax-M2", "MiniMax 2025"),
    "mistral": ("Mistral", "Mistral 7B, Nemo, Small (dense)", "Jiang et al. 2023"),
    "mixtral": ("Mixtral", "Mixtral 8x7B and 8x22B", "Jiang et al. 2024"),
    "olmo2": ("Olmo2", "OLMo 2 of 1B to 32B (dense)", "OLMo Team 2024"),
    "olmoe": ("Olmoe", "OLMoE-1B-7B", "Muennighoff et al. 2024"),
    "phimoe": ("Phimoe", "Phi-3.5-MoE", "Abdin et al. 2024"),
    "qwen2": ("Qwen2", "Qwen1.5 to Qwen2.5 (dense)", "Yang et al. 2024"),
    "qwen2_moe": ("Qwen2Moe", "Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B", "Yang et al. 2024"),
    "qwen3": ("Qwen3", "Qwen3-0.6B to 32B (dense)", "Yang et al. 2025"),
    "qwen3_moe": ("Qwen3Moe", "Qwen3-30B-A3B, Qwen3-235B-A22B", "Yang et al. 2025"),
    "switch_transformers": ("SwitchTransformers", "Switch-Base to XXL (encoder-decoder)", "Fedus et al. 2021"),
}
"""By module: the class in it, the models, and their paper."""


@hookimpl
def moekit_kinds() -> list[Kind]:
    """The kind ``format``."""
    return [
        Kind(
            name="format",
            spec="moekit_hf.format:FormatSpec",
            summary="a family of Hugging Face models: its configuration and tensors, in both directions",
            makes="moekit_hf.format:FormatSpec",
            checks="moekit_hf.checks",
        )
    ]


@hookimpl
def moekit_components() -> list[Component]:
    """A format for each family, the exporters, and the tokenizer."""
    return [
        *(
            Component(
                kind="format",
                name=name.replace("_", "-"),  # recipes have the other names
                spec=f"moekit_hf.families.{name}:{cls}",
                target="moekit_hf.format:as_it_is",
                summary=models,
                paper=paper,
            )
            for name, (cls, models, paper) in _FAMILIES.items()
        ),
        Component(
            kind="exporter",
            name="one_file",
            spec="moekit_hf.one_file:OneFile",
            target="moekit_hf.one_file.module:OneFileExporter",
            summary="one safetensors file of the weights, with the recipe in it",
            default=True,
        ),
        Component(
            kind="exporter",
            name="hf",
            spec="moekit_hf.exporter:HuggingFace",
            target="moekit_hf.exporter.module:HuggingFaceExporter",
            summary="a folder that transformers loads: config.json, safetensors, tokenizer",
        ),
        Component(
            kind="tokenizer",
            name="tokenizer_json",
            spec="moekit_hf.tokenizer:TokenizerFile",
            target="moekit_hf.tokenizer.module:FileTokenizer",
            summary="the tokens of a tokenizer.json of Hugging Face",
        ),
    ]


@hookimpl
def moekit_verbs() -> list[Verb]:
    """``moekit import``, ``moekit inspect`` and ``moekit export``, which takes any exporter."""
    return [
        Verb(name="import", target="moekit_hf.cli.import_run", summary="import a model of Hugging Face as a run"),
        Verb(name="inspect", target="moekit_hf.cli.inspect_folder", summary="say whether a folder can be imported"),
        Verb(
            name="export",
            target="moekit_hf.cli.export",
            summary="write a trained model to one safetensors file, or in another format",
        ),
    ]


@hookimpl
def moekit_recipes() -> list[RecipeFile]:
    """The published models at their sizes."""
    return list(recipes_in(Path(__file__).parent / "recipes"))
