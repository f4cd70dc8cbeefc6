"""A healthy component of each kind: what the kit must pass."""

from __future__ import annotations

from healthy_caches import Recall, RecallAttention, Sums, SumsModel
from healthy_layers import (
    Limit,
    LimitDispatcher,
    Look,
    LookAttention,
    Pick,
    PickRouter,
    PickUnbiased,
    PickUnbiasedRouter,
    Tanh,
    TanhBank,
    Walk,
    WalkDispatcher,
    component,
)
from healthy_noise import NoisyPick, NoisyPickRouter
from healthy_pairs import Echo, EchoModel
from healthy_training import (
    Descent,
    Dice,
    DiceData,
    Even,
    EvenLoss,
    Guess,
    GuessObjective,
    Level,
    Nudge,
    NudgeBias,
    Tiny,
    TinyModel,
    descent,
    level,
)

HEALTHY = [
    component(Pick, PickRouter),
    component(PickUnbiased, PickUnbiasedRouter),
    component(NoisyPick, NoisyPickRouter),
    component(Tanh, TanhBank),
    component(Walk, WalkDispatcher),
    component(Limit, LimitDispatcher),
    component(Even, EvenLoss),
    component(Nudge, NudgeBias),
    component(Look, LookAttention),
    component(Recall, RecallAttention),
    component(Tiny, TinyModel),
    component(Sums, SumsModel),
    component(Echo, EchoModel),
    component(Guess, GuessObjective),
    component(Dice, DiceData),
    component(Descent, descent),
    component(Level, level),
]
