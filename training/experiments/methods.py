"""The ways of tuning that the paper compares: what each of them trains, and its loss.

Knows tensors. Knows nothing of data sets or of how the results are told. Each is a module for `TaskTraining`: called
without arguments it gives the one tensor that outlives the training. `start` puts that tensor in front of a batch of
prompts for generation.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from transformers import DynamicCache, GPT2LMHeadModel

from training.backbone import FrozenBackbone
from training.encoding import IGNORED, Batch
from training.experiments.decoding import Start
from training.prefix_tuning import TunedPrefix, losses, per_row_cache
from training.settings import Settings

# B rows, T tokens per row, P virtual tokens, H heads, D head_dim

LORA_RANK = 8  # on the attention's projection, with alpha 16 and no dropout: as many numbers as a prefix of 16


class Method(torch.nn.Module, ABC):
    """A module that is trained, with what an experiment asks of it besides."""

    @abstractmethod
    def forward(self) -> Tensor: ...

    @abstractmethod
    def losses(self, batch: Batch) -> Tensor:
        """The sum of the cross-entropies of the batch's answer tokens."""

    @abstractmethod
    def load(self, tuned: Tensor) -> None:
        """Become what `tuned`, an earlier result of calling it, says."""

    @abstractmethod
    def start(self, prompts: Sequence[Sequence[int]]) -> Start:
        """The model to generate with, and what it has read of the prompts already."""


class Prefix(TunedPrefix, Method):
    """Keys and values of every layer, in front of the prompt (section 4); with the MLP unless its width is 0."""

    def __init__(self, backbone: FrozenBackbone, settings: Settings) -> None:
        super().__init__(backbone, settings)
        self._backbone = backbone
        self._tuned: Tensor | None = None

    def losses(self, batch: Batch) -> Tensor:
        return losses(self._backbone, [self()], [0] * len(batch.ids), batch).sum()

    def load(self, tuned: Tensor) -> None:
        self._tuned = tuned.to(self._backbone.device)

    def start(self, prompts: Sequence[Sequence[int]]) -> Start:
        prefix = self() if self._tuned is None else self._tuned
        return Start(self._backbone.model, prompts, cache_of(prefix, len(prompts)), prefix.shape[2])


class Infix(Prefix):
    """The same between the prompt and its answer (section 7.3): what the prompt's tokens compute does not see it."""

    def losses(self, batch: Batch) -> Tensor:
        prefix, device = self(), self._backbone.device
        P, (B, T) = prefix.shape[2], batch.ids.shape
        last = (batch.labels != IGNORED).long().argmax(dim=1)  # [B], the prompt's last token: it says the first answer
        index = torch.arange(T, device=device)
        sees_infix = index >= last[:, None]  # [B, T]
        positions = index + P * sees_infix
        causal = (index[:, None] >= index) & batch.mask.bool()[:, None]  # [B, T, T]
        mask = torch.cat([sees_infix[:, :, None].expand(B, T, P), causal], dim=2)[:, None]  # [B, 1, T, P + T]
        cache = cache_of(prefix.to(self._backbone.dtype), B)
        return answer_losses(self._backbone, self._backbone.model, batch, mask, positions, cache).sum()

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]]) -> Start:
        infix = self() if self._tuned is None else self._tuned
        return Start.behind(self._backbone.model, prompts, infix)


class Embeddings(Method):
    """Embeddings of virtual tokens alone: the paper's ablation (section 7.2), prompt tuning (Lester et al. 2021)."""

    def __init__(self, backbone: FrozenBackbone, settings: Settings) -> None:
        super().__init__()
        self._backbone = backbone
        words, P = backbone.model.transformer.wte.weight, settings.num_virtual_tokens
        if settings.init_text is None:  # any words, as Lester's start
            chosen = torch.randint(len(words), (P,), generator=torch.Generator().manual_seed(settings.seed))
        else:  # those whose keys and values a prefix starts as
            chosen = torch.tensor((backbone.token_ids(settings.init_text) * P)[:P])
        self.embeddings = torch.nn.Parameter(words[chosen].detach().clone())  # [P, n_embd]

    def forward(self) -> Tensor:
        return self.embeddings

    def losses(self, batch: Batch) -> Tensor:
        return losses(self._backbone, [self.keys_and_values()], [0] * len(batch.ids), batch).sum()

    def keys_and_values(self) -> Tensor:
        """What the frozen backbone makes of them, `[n_layer, 2, P, H, D]`: from then on a prefix like any other."""
        cache = self._backbone.model(inputs_embeds=self.embeddings[None], use_cache=True).past_key_values
        layers = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]  # each [2, H, P, D]
        return torch.stack(layers).transpose(2, 3).float()

    def load(self, tuned: Tensor) -> None:
        self.embeddings.data.copy_(tuned)

    @torch.no_grad()
    def start(self, prompts: Sequence[Sequence[int]]) -> Start:
        prefix = self.keys_and_values()
        return Start(self._backbone.model, prompts, cache_of(prefix, len(prompts)), prefix.shape[2])


class Weights(Method):
    """Weights of a copy of the backbone: `choose` makes trainable what is tuned of it."""

    def __init__(
        self, backbone: FrozenBackbone, settings: Settings, choose: Callable[[GPT2LMHeadModel], GPT2LMHeadModel]
    ) -> None:
        super().__init__()
        self._backbone = backbone
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.model = choose(copy.deepcopy(backbone.model))

    def forward(self) -> Tensor:
        return parameters_to_vector(self._tuned())

    def losses(self, batch: Batch) -> Tensor:
        return answer_losses(self._backbone, self.model, batch, batch.mask, None, None).sum()

    def load(self, tuned: Tensor) -> None:
        vector_to_parameters(tuned.to(self.model.device), self._tuned())

    def start(self, prompts: Sequence[Sequence[int]]) -> Start:
        return Start(self.model, prompts, DynamicCache(), 0)

    def _tuned(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


class Bare:
    """Nothing is tuned: the backbone reads `worked` `[N]`, the token ids of examples with their answers, before every
    prompt (in-context learning, the paper's point of comparison in its introduction). Before a prompt that would leave
    no room for `max_new_tokens` it reads only so many of them as do."""

    def __init__(self, backbone: FrozenBackbone, worked: Tensor, max_new_tokens: int) -> None:
        self._backbone = backbone
        self._worked = worked.tolist()
        self._num_positions = backbone.shape.n_positions - max_new_tokens

    def start(self, prompts: Sequence[Sequence[int]]) -> Start:
        return Start(self._backbone.model, [self._read_before(prompt) for prompt in prompts], DynamicCache(), 0)

    def _read_before(self, prompt: Sequence[int]) -> list[int]:
        worked, end = self._worked, self._backbone.tokenizer.eos_token_id
        while worked and len(worked) + len(prompt) > self._num_positions:
            worked = worked[worked.index(end) + 1 :]  # without the first one, which ends there
        return [*worked, *prompt]


def full(backbone: FrozenBackbone, settings: Settings) -> Weights:
    """Full fine-tuning."""
    return Weights(backbone, settings, lambda model: model.requires_grad_(True))


def top_two(backbone: FrozenBackbone, settings: Settings) -> Weights:
    """Fine-tuning of the top two layers (the paper's FT-TOP2)."""

    def choose(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
        for part in (*model.transformer.h[-2:], model.transformer.ln_f):
            part.requires_grad_(True)
        return model

    return Weights(backbone, settings, choose)


def lora(backbone: FrozenBackbone, settings: Settings) -> Weights:
    """Low-rank changes of the attention's projection (Hu et al. 2021), by PEFT."""
    config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=["c_attn"], fan_in_fan_out=True)
    return Weights(backbone, settings, lambda model: inject_adapter_in_model(config, model))


METHODS: dict[str, Callable[[FrozenBackbone, Settings], Method]] = {
    "prefix": Prefix,
    "infix": Infix,
    "embeddings": Embeddings,
    "full": full,
    "top-two": top_two,
    "lora": lora,
}


def cache_of(prefix: Tensor, num_rows: int) -> DynamicCache:
    """`[n_layer, 2, P, H, D]` in front of every row."""
    owners = torch.zeros(num_rows, dtype=torch.long, device=prefix.device)
    length = torch.tensor([prefix.shape[2]], device=prefix.device)
    return per_row_cache([prefix], owners, length, prefix.dtype)[0]


def answer_losses(
    backbone: FrozenBackbone,
    model: GPT2LMHeadModel,
    batch: Batch,
    mask: Tensor,
    positions: Tensor | None,
    cache: DynamicCache | None,
) -> Tensor:
    """The cross-entropy of each answer token of a batch, `[N]` in float32."""
    with backbone.autocast():
        hidden = model.transformer(
            input_ids=batch.ids, attention_mask=mask, position_ids=positions, past_key_values=cache
        ).last_hidden_state  # [B, T, n_embd]
        rows, columns = (batch.labels != IGNORED).nonzero(as_tuple=True)
        logits = model.lm_head(hidden[rows, columns])  # [N, V]
    return F.cross_entropy(logits.float(), batch.labels[rows, columns], reduction="none")
