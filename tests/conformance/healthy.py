"""The smallest correct component of each kind, which the kit must pass. Broken ones derive from these."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from torch import Tensor, nn

from moekit import (
    BalanceContext,
    Balancer,
    Batch,
    Cache,
    Component,
    Data,
    Dispatched,
    Dispatcher,
    Evaluation,
    Evaluator,
    ExpertBank,
    Exporter,
    Groups,
    LayerDims,
    LossSum,
    LossTerm,
    MetricInfo,
    Model,
    ModelOutput,
    MoekitError,
    MoELayer,
    Objective,
    Router,
    Routing,
    Soft,
    Source,
    Spec,
    TokenChoice,
    Tokenizer,
    Trained,
    option,
)
from moekit.checkpoints.reading import open_checkpoint
from moekit.contracts import Converter, Weight
from moekit.contracts.layer import LoopGroups
from moekit.spec import kinds
from moekit.spec.recipe import Recipe
from moekit.training.run.hooks import RunInfo
from moekit_lightning.sharded import Sharded
from moekit_lightning.sharded.module import ShardedStrategy


def component(spec: type[Spec], target: Callable[..., object], summary: str = "for the kit's own tests") -> Component:
    return Component(name=spec.__name__.lower(), spec=spec, target=target, summary=summary)


def components(spec: type[Spec], *targets: Callable[..., object]) -> list[Component]:
    return [component(spec, target) for target in targets]


class Pick(kinds.RouterSpec):
    takes_bias: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    top_k: int = option(2, "experts a token runs through", ge=1)

    def active(self, num_experts: int) -> float:
        return self.top_k


class PickRouter(Router):
    def __init__(self, spec: Pick, dims: LayerDims) -> None:
        super().__init__()
        self.spec = spec
        self.w_ED = nn.Parameter(torch.randn(dims.num_experts, dims.dim) * dims.dim**-0.5)

    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> Routing:
        logits_TE = self.logits(self.clean(x_TD, valid_T))
        scores_TE = self.score(logits_TE)
        biased_TE = scores_TE if selection_bias_E is None else scores_TE + selection_bias_E
        expert_TK = self.choose(biased_TE)
        gate_TK = self.gate(scores_TE, biased_TE, expert_TK)
        return self.routing(
            TokenChoice(logits_TE=logits_TE, scores_TE=scores_TE, valid_T=valid_T, expert_TK=expert_TK, gate_TK=gate_TK)
        )

    def routing(self, routing: TokenChoice) -> Routing:
        return routing

    def clean(self, x_TD: Tensor, valid_T: Tensor | None) -> Tensor:
        return x_TD if valid_T is None else x_TD.masked_fill(~valid_T[:, None], 0.0)

    def logits(self, x_TD: Tensor) -> Tensor:
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        with torch.autocast(x_TD.device.type if x_TD.device.type != "meta" else "cpu", enabled=False):
            return F.linear(x_TD.to(wide), self.w_ED.to(wide))

    def score(self, logits_TE: Tensor) -> Tensor:
        return logits_TE.softmax(1)

    def choose(self, biased_TE: Tensor) -> Tensor:
        return biased_TE.detach().topk(self.spec.top_k, dim=1).indices

    def gate(self, scores_TE: Tensor, biased_TE: Tensor, expert_TK: Tensor) -> Tensor:
        return scores_TE.gather(1, expert_TK)


class PickUnbiased(Pick):
    takes_bias: ClassVar[bool] = False


class PickUnbiasedRouter(PickRouter):
    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> Routing:
        return super().forward(x_TD, valid_T=valid_T)


class PickByToken(Pick):
    needs_tokens: ClassVar[bool] = True


class PickByTokenRouter(PickRouter):
    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> Routing:
        if token_T is None:
            raise MoekitError("it reads token ids, and was given none")
        wide_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
        x_TD = wide_TD + 3 * F.one_hot(token_T % x_TD.shape[1], x_TD.shape[1])
        return super().forward(x_TD, valid_T=valid_T, selection_bias_E=selection_bias_E)


class Tanh(kinds.ExpertSpec):
    pass


class TanhBank(ExpertBank):
    def __init__(self, spec: Tanh, dims: LayerDims) -> None:
        super().__init__()
        self.num_experts, self.out_dim = spec.count, dims.out_dim
        self.w_EOD = nn.Parameter(torch.randn(spec.count, self.out_dim, dims.dim))

    def forward(self, x_ND: Tensor, groups: Groups) -> Tensor:
        return torch.tanh(groups.linear(x_ND, self.w_EOD))


class Walk(kinds.DispatcherSpec):
    dropless: ClassVar[bool] = True
    forms: ClassVar[frozenset[kinds.Form]] = kinds.ALL_FORMS


class WalkDispatcher(Dispatcher):
    def __init__(self, spec: Walk, dims: LayerDims) -> None:
        super().__init__()

    def forward(self, x_TD: Tensor, routing: Routing, experts: ExpertBank, *, num_sequences: int = 1) -> Dispatched:
        return self.soft(x_TD, routing, experts) if isinstance(routing, Soft) else self.pairs(x_TD, routing, experts)

    def soft(self, x_TD: Tensor, routing: Soft, experts: ExpertBank) -> Dispatched:
        T, E, P = routing.combine_TEP.shape
        combine_TEP, dispatch_TEP = routing.combine_TEP, routing.dispatch_TEP
        if routing.valid_T is not None:
            pad_T = ~routing.valid_T
            x_TD = x_TD.masked_fill(pad_T[:, None], 0.0)
            combine_TEP = combine_TEP.masked_fill(pad_T[:, None, None], 0.0)
            if dispatch_TEP is not None:
                dispatch_TEP = dispatch_TEP.masked_fill(pad_T[:, None, None], 0.0)
        combine_TEP = combine_TEP.to(x_TD.dtype)
        if dispatch_TEP is None:
            y_ETO = experts(x_TD.repeat(E, 1), LoopGroups([T] * E)).view(E, T, experts.out_dim)
            y_TO = torch.einsum("te,eto->to", combine_TEP[:, :, 0], y_ETO)
            return Dispatched(y_TO=y_TO, dropped=_none(x_TD), expert_TEO=self.own(y_ETO.transpose(0, 1), combine_TEP))
        slots_ND = torch.einsum("tep,td->epd", dispatch_TEP.to(x_TD.dtype), x_TD).flatten(0, 1)
        y_EPO = experts(slots_ND, LoopGroups([P] * E)).view(E, P, experts.out_dim)
        return Dispatched(y_TO=torch.einsum("tep,epo->to", combine_TEP, y_EPO), dropped=_none(x_TD))

    def own(self, y_TEO: Tensor, combine_TEP: Tensor) -> Tensor:
        return y_TEO

    def pairs(self, x_TD: Tensor, routing: Routing, experts: ExpertBank) -> Dispatched:
        pairs = routing.pairs()  # type: ignore[attr-defined]
        order_N, sizes = self.keep(pairs.expert_N, experts.num_experts)
        token_N, gate_N = pairs.token_N[order_N], pairs.gate_N[order_N]
        y_NO = experts(x_TD[token_N], LoopGroups(sizes)) * self.weigh(gate_N)[:, None].to(x_TD.dtype)
        y_TO = x_TD.new_zeros(x_TD.shape[0], experts.out_dim).index_add(0, token_N, y_NO)
        had_T, kept_T = (torch.zeros(len(x_TD), dtype=torch.bool) for _ in range(2))
        had_T[pairs.token_N[pairs.expert_N < experts.num_experts]] = True
        kept_T[token_N] = True
        return Dispatched(
            y_TO=y_TO,
            dropped=_none(x_TD) + self.dropped(pairs.expert_N, experts.num_experts, sizes),
            dropped_tokens=(had_T & ~kept_T).sum(),
        )

    def keep(self, expert_N: Tensor, E: int) -> tuple[Tensor, list[int]]:
        sizes = torch.bincount(expert_N, minlength=E + 1)[:E].tolist()
        return expert_N.argsort(stable=True)[: sum(sizes)], sizes

    def weigh(self, gate_N: Tensor) -> Tensor:
        return gate_N

    def dropped(self, expert_N: Tensor, E: int, sizes: list[int]) -> int:
        return 0


class Limit(kinds.DispatcherSpec):
    forms: ClassVar[frozenset[kinds.Form]] = kinds.PAIR_FORMS
    dropless: ClassVar[bool] = False


class LimitDispatcher(WalkDispatcher):
    """Keeps at most two pairs per expert, and reports how many it dropped."""

    def keep(self, expert_N: Tensor, E: int) -> tuple[Tensor, list[int]]:
        kept = [(expert_N == e).nonzero().flatten()[:2] for e in range(E)]
        return torch.cat(kept), [len(rows) for rows in kept]

    def dropped(self, expert_N: Tensor, E: int, sizes: list[int]) -> int:
        return int((expert_N < E).sum()) - sum(sizes)


def _none(x_TD: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=x_TD.device)


class Look(kinds.AttentionSpec):
    pass


class LookAttention(nn.Module):
    def __init__(self, spec: Look, dim: int, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)

    def forward(self, x_BSD: Tensor, *, valid_BS: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x_BSD).chunk(3, dim=-1)
        score_BSS = q / 8 @ k.mT
        return self.attend(score_BSS.masked_fill(self.hidden(score_BSS, valid_BS), -torch.inf), v)

    def hidden(self, score_BSS: Tensor, valid_BS: Tensor | None) -> Tensor:
        if self.causal:
            return torch.ones_like(score_BSS, dtype=torch.bool).triu(1)
        return torch.zeros(()).bool() if valid_BS is None else ~valid_BS[:, None]

    def attend(self, score_BSS: Tensor, v: Tensor) -> Tensor:
        return score_BSS.softmax(-1) @ v


class NoisyPick(Pick):
    gives_smooth_load: ClassVar[bool] = True


class NoisyPickRouter(PickRouter):
    """Noise of standard deviation 1, and a level that its own loss trains to be the mean logit plus 1."""

    def __init__(self, spec: Pick, dims: LayerDims) -> None:
        super().__init__(spec, dims)
        self.level = nn.Parameter(torch.zeros(1))

    def forward(
        self,
        x_TD: Tensor,
        *,
        valid_T: Tensor | None = None,
        selection_bias_E: Tensor | None = None,
        token_T: Tensor | None = None,
    ) -> Routing:
        logits_TE = self.logits(self.clean(x_TD, valid_T))
        noisy_TE = self.noisy(logits_TE) if self.training else logits_TE
        expert_TK = self.choose(noisy_TE if selection_bias_E is None else noisy_TE + selection_bias_E)
        valid_T1 = torch.ones_like(logits_TE[:, :1], dtype=torch.bool) if valid_T is None else valid_T[:, None]
        return TokenChoice(
            logits_TE=logits_TE,
            scores_TE=self.score(logits_TE),
            valid_T=valid_T,
            smooth_load_E=self.smooth(self.chance(logits_TE, noisy_TE), valid_T1),
            own_loss=self.own_loss(logits_TE, valid_T1) if self.training else None,
            expert_TK=expert_TK,
            gate_TK=logits_TE.softmax(1).gather(1, expert_TK),
        )

    def noisy(self, logits_TE: Tensor) -> Tensor:
        return logits_TE + torch.randn_like(logits_TE)

    def chance(self, logits_TE: Tensor, noisy_TE: Tensor) -> Tensor:
        k = self.spec.top_k
        top_TK, index_TK = noisy_TE.topk(k + 1, dim=1)
        inside_TE = torch.zeros_like(noisy_TE, dtype=torch.bool).scatter(1, index_TK[:, :k], True)
        return 0.5 * (1 + torch.erf((logits_TE - torch.where(inside_TE, top_TK[:, k:], top_TK[:, k - 1 : k])) / 2**0.5))

    def smooth(self, chance_TE: Tensor, valid_T1: Tensor) -> Tensor | None:
        return (chance_TE * valid_T1).sum(0) if self.training else None

    def own_loss(self, logits_TE: Tensor, valid_T1: Tensor) -> LossTerm:
        mean = (logits_TE.detach() * valid_T1).sum() / valid_T1.sum().clamp(min=1) / logits_TE.shape[1]
        return LossTerm(value=(self.level[0].to(mean.dtype) - mean - 1).square(), weight=1.0)


class Even(kinds.BalancerSpec):
    at_balance: ClassVar[float | None] = 1.0
    forms: ClassVar[frozenset[kinds.Form]] = frozenset({"token_choice"})


class EvenLoss(Balancer):
    """``E sum f P`` over valid tokens."""

    def __init__(self, spec: Even, dims: LayerDims) -> None:
        super().__init__()

    def loss(self, routing: Routing, context: BalanceContext) -> LossTerm | None:
        return LossTerm(value=self.value(routing.load_E(), self.mean(routing)), weight=0.01)

    def mean(self, routing: Routing) -> Tensor:
        scores_TE = routing.scores_TE
        if routing.valid_T is not None:
            scores_TE = scores_TE.masked_fill(~routing.valid_T[:, None], 0.0)
        return scores_TE.sum(0) / routing.num_valid()

    def value(self, load_E: Tensor, P_E: Tensor) -> Tensor:
        return len(load_E) * (load_E / load_E.sum() * P_E).sum()


class Nudge(kinds.BalancerSpec):
    forms: ClassVar[frozenset[kinds.Form]] = frozenset({"token_choice"})
    gives_bias: ClassVar[bool] = True


class NudgeBias(Balancer):
    """A bias that moves by 0.01 against the load."""

    bias_E: Tensor
    persistent: ClassVar[bool] = True

    def __init__(self, spec: Nudge, dims: LayerDims) -> None:
        super().__init__()
        self.register_buffer("bias_E", torch.zeros(dims.num_experts), persistent=self.persistent)

    def selection_bias(self) -> Tensor | None:
        return self.bias_E

    def step(self, load_E: Tensor, *, progress: float = 0.0) -> None:
        self.bias_E += 0.01 * self.direction(load_E)

    def direction(self, load_E: Tensor) -> Tensor:
        return (load_E.sum() - len(load_E) * load_E).sign()


def layer() -> MoELayer:
    dims = LayerDims(dim=8, num_experts=3)
    return MoELayer(
        router=PickRouter(Pick(), dims),
        experts=TanhBank(Tanh(count=3), dims),
        dispatcher=WalkDispatcher(Walk(), dims),
    )


class Tiny(kinds.ModelSpec):
    vocab: int = option(11, "tokens in the vocabulary", ge=1)


class TinyModel(Model):
    """A token's embedding and the mean of those up to it, through one MoE layer."""

    def __init__(self, spec: Tiny) -> None:
        super().__init__()
        self.embed = nn.Embedding(spec.vocab, 8)
        self.moe = layer()
        self.head = nn.Linear(8, spec.vocab, bias=False)

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
        x_BSD, report = self.moe(self.mix(self.embed(inputs)), valid=valid)
        return ModelOutput(y=self.head(x_BSD), reports={"moe": report})

    def mix(self, x_BSD: Tensor) -> Tensor:
        count_S = torch.arange(1, x_BSD.shape[1] + 1, device=x_BSD.device)
        return x_BSD + x_BSD.cumsum(1) / count_S[:, None]

    def embeddings(self) -> tuple[nn.Parameter | None, nn.Parameter | None]:
        return self.embed.weight, self.head.weight


class Guess(kinds.ObjectiveSpec):
    pass


class GuessObjective(Objective):
    def __init__(self, spec: Guess) -> None:
        super().__init__()

    def forward(self, output: ModelOutput, batch: Batch, *, progress: float = 0.0) -> LossSum:
        loss_BS = F.cross_entropy(output.y.mT, batch.targets, reduction="none")
        valid_BS = torch.ones_like(loss_BS, dtype=torch.bool) if batch.valid is None else batch.valid
        return self.sum_up(loss_BS, valid_BS)

    def sum_up(self, loss_BS: Tensor, valid_BS: Tensor) -> LossSum:
        total, count = loss_BS.where(valid_BS, 0.0).sum(), valid_BS.sum()
        return LossSum(total=total, count=count, metrics={"loss": (total.detach(), count)})


class Dice(kinds.DataSpec):
    pass


class DiceData(Data):
    def __init__(self, spec: Dice) -> None:
        self.spec = spec

    def prepare(self) -> None:
        return None

    def train_batch(self, generator: torch.Generator) -> Batch:
        return self.batch(torch.randint(6, (2, 5), generator=generator))

    def validation_batches(self) -> Iterator[Batch]:
        yield self.train_batch(torch.Generator().manual_seed(1))

    def batch(self, tokens_BS: Tensor) -> Batch:
        return Batch(tokens_BS[:, :-1], tokens_BS[:, 1:])


class Runs(kinds.TokenizerSpec):
    vocab: int = option(300, "tokens: bytes, the end, and the commonest words of the documents", ge=257)


class RunTokenizer(Tokenizer):
    """Bytes and whole words, which are learnt; 0 is the end."""

    def __init__(self, spec: Runs) -> None:
        self.spec = spec
        self.words: list[bytes] = []

    @property
    def spelling(self) -> Sequence[bytes]:
        return [b"", *(bytes([i]) for i in range(1, 256)), *self.words]

    @property
    def end(self) -> int | None:
        return 0

    def train(self, documents: Iterable[bytes]) -> None:
        counts = Counter(word for text in documents for word in re.findall(rb"[a-z]{2,}", text))
        self.words = [word for word, _ in counts.most_common(self.spec.vocab - 256)]

    def encode(self, text: str) -> Tensor:
        pieces = re.findall(rb"[a-z]{2,}|.", text.encode(), re.DOTALL)
        ids = [[256 + self.words.index(p)] if p in self.words else list(p) for p in pieces]
        return torch.tensor([token for part in ids for token in part], dtype=torch.int64)

    def state(self) -> dict[str, Any]:
        return {"words": [word.decode() for word in self.words]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.words = [word.encode() for word in state["words"]]


class Copied(kinds.ExporterSpec):
    """No options."""


class CopyingExporter(Exporter):
    def __init__(self, spec: Copied) -> None:
        self.spec = spec

    def export(self, checkpoint: Path, out: Path) -> Sequence[str]:
        if out.exists():
            raise MoekitError(f"{out} exists already")
        out.write_text(str(checkpoint))
        return [str(out)]


class Kept(kinds.ConverterSpec):
    """No options."""


class KeepingConverter(Converter):
    def __init__(self, spec: Kept) -> None:
        self.spec = spec

    def convert(self, model: kinds.ModelSpec, checkpoint: Path) -> Mapping[str, Weight]:
        return cast("Mapping[str, Weight]", open_checkpoint(checkpoint).plain["state_dict"])


class Mean(kinds.EvaluatorSpec):
    def metrics(self) -> Mapping[str, MetricInfo]:
        return {"mean_output": MetricInfo("mean output")}


class MeanEvaluator(Evaluator):
    def __init__(self, spec: Mean) -> None:
        self.spec = spec

    def evaluate(self, trained: Trained) -> Evaluation:
        outputs = [trained.model.on(batch).y.mean() for batch in trained.data.validation_batches()]
        file = trained.folder / "mean.txt"
        file.write_text("made")
        return self.found(float(torch.stack(outputs).mean()), file)

    def found(self, value: float, file: Path) -> Evaluation:
        return Evaluation(values={"mean_output": value}, files=[file])


class Descent(kinds.OptimizerSpec):
    takes_shards: ClassVar[bool] = True


def descent(spec: Descent, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


class Level(kinds.ScheduleSpec):
    pass


def level(spec: Level, total_steps: int) -> Callable[[int], float]:
    return lambda step: 1.0


class Echo(kinds.ModelSpec):
    takes: ClassVar[str] = "pairs"
    vocab: int = option(11, "tokens in the vocabulary", ge=1)


class EchoModel(Model):
    """Target tokens plus the mean of the source, each through an MoE layer of its own."""

    def __init__(self, spec: Echo) -> None:
        super().__init__()
        self.embed = nn.Embedding(spec.vocab, 8)
        self.read = layer()
        self.write = layer()
        self.head = nn.Linear(8, spec.vocab, bias=False)

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None, source: Source | None = None) -> ModelOutput:
        assert source is not None
        h_BSD, read = self.read(self.embed(source.tokens), valid=self.mask(source))
        x_BSD, write = self.write(self.embed(inputs) + self.memory(h_BSD, source), valid=valid)
        return ModelOutput(y=self.head(x_BSD), reports={"read": read, "write": write}, of_source=frozenset({"read"}))

    def mask(self, source: Source) -> Tensor | None:
        return source.valid

    def memory(self, h_BSD: Tensor, source: Source) -> Tensor:
        counts_BS = torch.ones_like(source.tokens) if source.valid is None else source.valid.long()
        return (h_BSD * counts_BS[..., None]).sum(1, keepdim=True) / counts_BS.sum(1)[:, None, None]

    def on(self, batch: Batch) -> ModelOutput:
        output: ModelOutput = self(batch.inputs, valid=batch.valid, source=batch.source)
        return output


class Recall(Look):
    caches: ClassVar[bool] = True


class RecallAttention(LookAttention):
    """Causal attention with a cache of keys and values."""

    def forward(self, x_BSD: Tensor, *, valid_BS: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        q, k, v = self.qkv(x_BSD).chunk(3, dim=-1)
        k, v = (k, v) if cache is None else self.add(cache, k, v)
        score_BSS = q / 8 @ k.mT
        return self.attend(score_BSS.masked_fill(self.hidden(score_BSS, valid_BS), -torch.inf), v)

    def add(self, cache: Cache, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return cache.extend(k, v)

    def hidden(self, score_BSS: Tensor, valid_BS: Tensor | None) -> Tensor:
        if not self.causal:
            return super().hidden(score_BSS, valid_BS)
        queries, keys = score_BSS.shape[-2:]
        return torch.ones_like(score_BSS, dtype=torch.bool).triu(self.first(queries, keys) + 1)

    def first(self, queries: int, keys: int) -> int:
        return keys - queries


class Shelf(Look):
    takes_documents: ClassVar[bool] = True


class ShelfAttention(LookAttention):
    """Attention that keeps documents apart."""

    def forward(self, x_BSD: Tensor, *, valid_BS: Tensor | None = None, document_BS: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x_BSD).chunk(3, dim=-1)
        score_BSS = q / 8 @ k.mT
        hidden_BSS = self.hidden(score_BSS, valid_BS)
        if document_BS is not None:
            hidden_BSS = hidden_BSS | self.others(document_BS)
        return self.attend(score_BSS.masked_fill(hidden_BSS, -torch.inf), v)

    def others(self, document_BS: Tensor) -> Tensor:
        return document_BS[:, :, None] != document_BS[:, None]


class Sums(Tiny):
    pass


class SumsModel(TinyModel):
    """Caches the sum and the number of the tokens so far."""

    def forward(self, inputs: Tensor, *, valid: Tensor | None = None) -> ModelOutput:
        return self.decode(inputs, Cache(), valid=valid)

    def start_cache(self, source: Source | None = None) -> Cache | None:
        return Cache()

    def decode(self, inputs: Tensor, cache: Cache, *, valid: Tensor | None = None) -> ModelOutput:
        x_BSD = self.embed(inputs)
        sum_B1D, count = cache.kept or (x_BSD.new_zeros(len(x_BSD), 1, x_BSD.shape[2]), x_BSD.new_zeros(()))
        sum_BSD = sum_B1D + x_BSD.cumsum(1)
        count_S = count + torch.arange(1, x_BSD.shape[1] + 1, device=x_BSD.device)
        self.keep(cache, sum_BSD[:, -1:], count_S[-1])
        y_BSD, report = self.moe(x_BSD + sum_BSD / count_S[:, None], valid=valid)
        return ModelOutput(y=self.head(y_BSD), reports={"moe": report})

    def keep(self, cache: Cache, sum_B1D: Tensor, count: Tensor) -> None:
        cache.kept = (sum_B1D, count)


class Count(kinds.CallbackSpec):
    pass


class CountCallback(Callback):
    """Counts optimizer steps, and publishes the count."""

    def __init__(self, spec: Count) -> None:
        self.steps = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps += 1
        pl_module.publish({"train/count": self.published()})

    def published(self) -> float:
        return float(self.steps)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]


class Lines(kinds.LoggerSpec):
    pass


class LinesLogger(Logger):
    """Appends a line for each logged step to a file of the run's folder."""

    def __init__(self, spec: Lines, run: RunInfo) -> None:
        super().__init__()
        self.run = run
        self.file().touch()

    def file(self) -> Path:
        return self.run.folder / "lines.txt"

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def version(self) -> str:
        return self.run.label

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.file().open("a") as file:
            file.write(f"{step} {dict(metrics)}\n")


class Alone(kinds.StrategySpec):
    pass


def alone(spec: Alone, recipe: Recipe) -> Strategy:
    return SingleDeviceStrategy(torch.device("cpu"))


class Split(kinds.StrategySpec):
    shards: ClassVar[bool] = True


def split(spec: Split, recipe: Recipe) -> Strategy:
    return ShardedStrategy(Sharded())


HEALTHY = [
    component(Pick, PickRouter),
    component(PickUnbiased, PickUnbiasedRouter),
    component(PickByToken, PickByTokenRouter),
    component(NoisyPick, NoisyPickRouter),
    component(Tanh, TanhBank),
    component(Walk, WalkDispatcher),
    component(Limit, LimitDispatcher),
    component(Even, EvenLoss),
    component(Nudge, NudgeBias),
    component(Look, LookAttention),
    component(Recall, RecallAttention),
    component(Shelf, ShelfAttention),
    component(Tiny, TinyModel),
    component(Sums, SumsModel),
    component(Echo, EchoModel),
    component(Guess, GuessObjective),
    component(Dice, DiceData),
    component(Runs, RunTokenizer),
    component(Mean, MeanEvaluator),
    component(Copied, CopyingExporter),
    component(Kept, KeepingConverter),
    component(Descent, descent),
    component(Level, level),
    component(Count, CountCallback),
    component(Lines, LinesLogger),
    component(Alone, alone),
    component(Split, split),
]
