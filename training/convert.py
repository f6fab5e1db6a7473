"""Reads prefixes of ours, of PEFT and of the original code, and writes any of the three.

Knows the files. Where a prompt is embeddings (PEFT's prompt tuning), only the backbone can make keys and values of it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig, PrefixTuningConfig, PromptLearningConfig, PromptTuningConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from prefix_store.formats import dump, parse
from prefix_store.prefix import BackboneShape, Prefix, PromptEmbeddings
from training.backbone import load_backbone, read_config, shape_of
from training.errors import NotConvertible
from training.originals import WEIGHTS, load_weights, read_original, write_original

PEFT_WEIGHTS = "adapter_model.safetensors"
OLD_PEFT_WEIGHTS = "adapter_model.bin"
MULTITASK = {"prefix_task_cols", "prefix_task_rows", "prompt_embeddings"}
FORMS = ("native", "peft", "original")


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What was read: keys and values `[n_layer, 2, P, H, D]`, or embeddings `[P, n_embd]`, of a backbone's shape."""

    prompt: Prefix | PromptEmbeddings
    shape: BackboneShape


def convert(path: Path, out: Path, form: str, model: str | None = None, task_index: int | None = None) -> Source:
    """Read `path`, write `out` in `form`: a file for `native`, a folder for `peft` and `original`.

    Returns what was written. Raises `NotConvertible` or `InvalidPrefix`.
    """
    if form not in FORMS:
        raise NotConvertible(f"no form {form!r}; there are {', '.join(FORMS)}")
    source = read_any(path, model, task_index)
    if isinstance(source.prompt, Prefix):  # not all that was read has been checked
        parse(dump(source.prompt.past_key_values, source.prompt.metadata), source.shape, None)
    if form == "peft":
        write_peft(out, source, model)
        return source
    compiled = compile_embeddings(source, model)
    assert isinstance(compiled.prompt, Prefix)
    if form == "native":
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(dump(compiled.prompt.past_key_values, compiled.prompt.metadata))  # into a pipe, too
    else:
        write_original(out, compiled.prompt.past_key_values, compiled.shape)
    return compiled


def read_any(path: Path, model: str | None, task_index: int | None) -> Source:
    """Tell the kind by the files: PEFT's folder, the original's folder, or one file of either or of ours."""
    if (path / PEFT_WEIGHTS).exists():
        return read_safetensors(path / PEFT_WEIGHTS, model, task_index)
    if (path / OLD_PEFT_WEIGHTS).exists():
        return read_old_peft(path / OLD_PEFT_WEIGHTS, model, task_index)
    if (path / WEIGHTS).exists():
        return read_torch(path / WEIGHTS, model)
    if path.is_dir() or not path.exists():
        raise NotConvertible(
            f"{path}: expected a file, or a folder with {PEFT_WEIGHTS}, {OLD_PEFT_WEIGHTS} or {WEIGHTS}"
        )
    if path.suffix == ".safetensors" or is_safetensors(path):
        return read_safetensors(path, model, task_index)
    if path.name == OLD_PEFT_WEIGHTS:
        return read_old_peft(path, model, task_index)
    return read_torch(path, model)


def is_safetensors(path: Path) -> bool:
    """Eight bytes of length, then JSON: our prefixes may have any name."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def read_torch(path: Path, model: str | None) -> Source:
    shape = named_shape(model, path.parent)
    return Source(Prefix(read_original(path, shape), revision="", kind="original"), shape)


def read_old_peft(path: Path, model: str | None, task_index: int | None) -> Source:
    """As PEFT saved it before it had safetensors."""
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in load_weights(path).items()}
    return read_tensors(path, tensors, save(tensors), model, task_index)


def read_safetensors(path: Path, model: str | None, task_index: int | None) -> Source:
    try:
        return read_tensors(path, load_file(path), path.read_bytes(), model, task_index)
    except (OSError, SafetensorError) as error:
        raise NotConvertible(f"{path} is no safetensors file: {error}") from error


def read_tensors(
    path: Path, tensors: dict[str, Tensor], body: bytes, model: str | None, task_index: int | None
) -> Source:
    """`body` is the file, or what it would be in safetensors."""
    shape = native_shape(tensors) or peft_shape(path.parent) or named_shape(model, path.parent)
    if set(tensors) == MULTITASK:
        return Source(PromptEmbeddings(one_of_many(tensors, task_index), "prompt_tuning"), shape)
    if task_index is not None:
        raise NotConvertible(f"{path} holds one task; --task-index is for PEFT's multitask prompt tuning")
    return Source(parse(body, shape, None), shape)


def one_of_many(tensors: dict[str, Tensor], task_index: int | None) -> Tensor:
    """One task's prompt out of PEFT's multitask prompt tuning, `[P, n_embd]`."""
    columns, rows, prompt = (tensors[name] for name in ("prefix_task_cols", "prefix_task_rows", "prompt_embeddings"))
    num_tasks = len(columns) if columns.ndim else 0
    if task_index is None or not 0 <= task_index < num_tasks:
        raise NotConvertible(f"the file holds {num_tasks} tasks; choose one with --task-index 0 to {num_tasks - 1}")
    try:
        return prompt * (columns[task_index] @ rows[task_index])
    except (RuntimeError, IndexError) as error:
        raise NotConvertible(f"the file's tensors do not fit each other: {error}") from error


def native_shape(tensors: dict[str, Tensor]) -> BackboneShape | None:
    if "past_key_values" not in tensors or tensors["past_key_values"].ndim != 5:
        return None
    n_layer, _, num_virtual_tokens, n_head, head_dim = tensors["past_key_values"].shape
    return BackboneShape(n_layer, n_head, head_dim, n_positions=num_virtual_tokens + 1)  # at least so many


def peft_shape(folder: Path) -> BackboneShape | None:
    """From the `adapter_config.json` beside the weights."""
    if not (folder / "adapter_config.json").exists():
        return None
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError) as error:
        raise NotConvertible(f"{folder / 'adapter_config.json'} cannot be read: {error!r}") from error
    if not isinstance(config, PromptLearningConfig):
        kind = getattr(config.peft_type, "value", "nothing that is named")
        raise NotConvertible(f"{folder} holds {kind}; expected prefix tuning or another prompt of PEFT's")
    n_layer, n_head, n_embd = config.num_layers, config.num_attention_heads, config.token_dim
    num_virtual_tokens = config.num_virtual_tokens
    if not all(isinstance(number, int) and number > 0 for number in (n_layer, n_head, n_embd, num_virtual_tokens)):
        raise NotConvertible(f"{folder / 'adapter_config.json'} does not tell the backbone's layers, heads and width")
    return BackboneShape(n_layer, n_head, n_embd // n_head, num_virtual_tokens + 1)


def named_shape(model: str | None, folder: Path) -> BackboneShape:
    """That of the model that the user named, else that of the `config.json` beside the file."""
    if model is not None:
        return shape_of(read_config(model))
    if (folder / "config.json").exists():
        return shape_of(read_config(folder))
    raise NotConvertible(
        "the file does not tell how many heads the backbone has; is it a prefix? then name the backbone with --model"
    )


def compile_embeddings(source: Source, model: str | None) -> Source:
    """Embeddings as the keys and values that the backbone computes of them; a prefix as it is."""
    if isinstance(source.prompt, Prefix):
        return source
    if model is None:
        raise NotConvertible("only the backbone can make keys and values of embeddings; name it with --model")
    backbone = load_backbone(model, precision="float32")
    embeddings = source.prompt.embeddings
    if embeddings.shape[1] != backbone.shape.n_embd:
        raise NotConvertible(f"embeddings are {embeddings.shape[1]} wide; the backbone's {backbone.shape.n_embd}")
    if not 1 <= len(embeddings) < backbone.shape.n_positions:
        most = backbone.shape.n_positions - 1
        raise NotConvertible(f"{len(embeddings)} embeddings; the backbone takes 1 to {most}")
    if not embeddings.isfinite().all():
        raise NotConvertible("some of the embeddings are no finite numbers")
    with torch.no_grad():
        inputs = embeddings.float().to(backbone.device)[None]
        cache = backbone.model.transformer(inputs_embeds=inputs, use_cache=True).past_key_values
    layers = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]  # [2, H, P, D] each
    past_key_values = torch.stack(layers).transpose(2, 3).contiguous().cpu()
    metadata = {**source.prompt.metadata, "backbone": backbone.fingerprint}
    return Source(Prefix(past_key_values, revision="", kind="prompt_tuning", metadata=metadata), backbone.shape)


def check_named_model(model: str | None, shape: BackboneShape) -> None:
    """Raises `NotConvertible` where `model` is there to be read and is of another shape: what is written would say that
    it belongs to it."""
    if model is None or not (Path(model) / "config.json").exists():
        return
    named = shape_of(read_config(model))
    if (named.n_layer, named.n_head, named.head_dim) != (shape.n_layer, shape.n_head, shape.head_dim):
        raise NotConvertible(f"the prefix is of {told(shape)}, and {model} has {told(named)}")


def told(shape: BackboneShape) -> str:
    return f"{shape.n_layer} layers and {shape.n_head} heads of {shape.head_dim}"


def write_peft(folder: Path, source: Source, model: str | None) -> None:
    """A folder that `PeftModel.from_pretrained` loads: prefix tuning, or prompt tuning where the source is."""
    prompt, shape = source.prompt, source.shape
    check_named_model(model, shape)
    common = {
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": model or prompt.metadata.get("backbone_name"),
        "num_virtual_tokens": prompt.num_virtual_tokens,
        "token_dim": shape.n_embd,
        "num_layers": shape.n_layer,
        "num_attention_heads": shape.n_head,
        "num_transformer_submodules": 1,
    }
    if isinstance(prompt, Prefix):
        config: PeftConfig = PrefixTuningConfig(encoder_hidden_size=shape.n_embd, **common)
        rows = prompt.past_key_values.permute(2, 0, 1, 3, 4)  # [P, n_layer, 2, H, D]
        tensor = rows.reshape(prompt.num_virtual_tokens, -1)
    else:
        config = PromptTuningConfig(**common)
        tensor = prompt.embeddings
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file({"prompt_embeddings": tensor.contiguous()}, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
