# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # From nothing to a specialised expert in ten cells
#
# A mixture of experts has several small networks and a router that sends each token to a few of them. Here you build
# one from nothing, train it, and see what each expert has become. All of it takes ten seconds on one core.
#
# This page is a notebook: [`examples/notebook.py`](../examples/notebook.py) opens in Jupyter with jupytext, or runs as
# a script. `python docs/make_notebook.py` executes it and writes this page.
#
# ## 1. Four kinds of tokens
#
# A token is a point of the plane. Each quarter of the plane is a kind, with a rule of its own for what to predict. The
# model is never given the kind.

# %%
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)  # tiny matrices: more threads are slower


def tokens(number):
    x_TD = torch.randn(number, 2)
    kind_T = 2 * (x_TD[:, 0] > 0) + (x_TD[:, 1] > 0)
    a, b = x_TD.T
    rules = torch.stack([a + 2 * b + 1, 2 - 2 * a, 2 * a - 3 * b - 2, b - 2 * a])  # one for each kind
    return x_TD, rules.gather(0, kind_T[None])[0][:, None], kind_T


x_TD, target_TO, kind_T = tokens(2000)
print("tokens of each kind:", kind_T.bincount().tolist())

# %% [markdown]
# ## 2. One expert for everything
#
# An expert here is one linear layer. Alone it must find a compromise between four rules.


# %%
def error(model):
    with torch.no_grad():
        return float(F.mse_loss(model(x_TD), target_TO))


def train(model, steps=300):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
    for _ in range(steps):
        x, target, _ = tokens(256)
        optimizer.zero_grad()
        F.mse_loss(model(x), target).backward()
        optimizer.step()
    return model


print(f"mean squared error of one expert: {error(train(nn.Linear(2, 1))):.2f}")

# %% [markdown]
# ## 3. A mixture from nothing
#
# The router is one matrix. It gives each token a probability for every expert, and the token goes to the likeliest
# expert alone. That probability, the gate, multiplies the expert's output. Without it the router would get no gradient.


# %%
class Mixture(nn.Module):
    def __init__(self, num_experts):
        super().__init__()
        self.router = nn.Linear(2, num_experts, bias=False)
        self.experts = nn.ModuleList(nn.Linear(2, 1) for _ in range(num_experts))

    def forward(self, x_TD):
        gate_T, expert_T = self.router(x_TD).softmax(-1).max(-1)
        y_TO = torch.zeros(len(x_TD), 1)
        for e, expert in enumerate(self.experts):
            y_TO[expert_T == e] = expert(x_TD[expert_T == e])
        return gate_T[:, None] * y_TO


mixture = train(Mixture(4))
print(f"mean squared error of four experts: {error(mixture):.2f}")

# %% [markdown]
# ## 4. The same from parts
#
# `moekit.layer` builds it from a router and experts by name. With the weights of the mixture above, it computes the
# same.

# %%
import moekit


def layer(num_experts, balancers):
    return moekit.layer(
        dim=2,
        out_dim=1,
        router={"use": "topk", "top_k": 1, "score": "softmax"},
        experts={"use": "linear", "count": num_experts},
        balancers=balancers,
    )


same = layer(4, {})
with torch.no_grad():
    same.router.weight_ED.copy_(mixture.router.weight)
    same.experts.w_EOD.copy_(torch.stack([expert.weight for expert in mixture.experts]))
    same.experts.b_EO.copy_(torch.stack([expert.bias for expert in mixture.experts]))
    y_TO, report = same(x_TD)
    print("equal:", torch.allclose(y_TO, mixture(x_TD), atol=1e-6))
print(same.extra_repr())

# %% [markdown]
# ## 5. What the layer says of itself
#
# Besides its output, the layer returns a report: who went where, with which gate.

# %%
print("tokens sent to each expert:", report.load_E.tolist())
print("experts and gates of three tokens:")
for expert_K, gate_K in zip(report.routing.expert_TK[:3].tolist(), report.routing.gate_TK[:3].tolist(), strict=True):
    print(f"  expert {expert_K[0]}  gate {gate_K[0]:.2f}")

# %% [markdown]
# ## 6. Train it with Lightning
#
# `MoECallback` is all that a LightningModule needs for its mixtures. This one has a selection bias, which is added to
# the router's scores to choose experts: after each step it rises for experts with a low load, and falls for the others.

# %%
import logging
import warnings

import lightning as L

from moekit_lightning import MoECallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


class Module(L.LightningModule):
    def __init__(self, moe):
        super().__init__()
        self.moe = moe

    def forward(self, x_TD):
        y_TO, _report = self.moe(x_TD)
        return y_TO

    def training_step(self, batch, batch_idx):
        x, target, _ = tokens(256)
        return F.mse_loss(self(x), target) + MoECallback.loss(self)

    def train_dataloader(self):
        return range(300)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-2)


def fit(moe):
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    module = Module(moe)
    L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[MoECallback()], **silent).fit(module)
    return module


trained = fit(layer(4, {"bias": {"use": "sign_bias", "rate": 3e-3}}))
print(f"mean squared error of four balanced experts: {error(trained):.2f}")

# %% [markdown]
# ## 7. Who has become what?
#
# The table counts the tokens of each kind by their expert. Nearly every kind has an expert of its own.

# %%
_, report = trained.moe(x_TD)
expert_T = report.routing.expert_TK[:, 0]
table_XE = torch.zeros(4, 4).index_put_((kind_T, expert_T), torch.ones(()), accumulate=True)
print("kind  expert 0  1  2  3")
for kind, row in enumerate(table_XE.long().tolist()):
    print(f"{kind:4}  {row}")
joint_XE = table_XE / table_XE.sum()
independent_XE = joint_XE.sum(1, keepdim=True) * joint_XE.sum(0)
bits = (joint_XE * (joint_XE / independent_XE).clamp(min=1e-12).log2()).sum()
print(f"information of the expert about the kind: {bits:.2f} of 2 bits")

# %% [markdown]
# ## 8. The same as a picture
#
# Left: the kinds. Right: the expert of every point. The router has found the borders by itself.

# %% alt="The plane twice: left, four kinds of tokens, a quarter each; right, their experts, nearly a quarter each"
import matplotlib.pyplot as plt

figure, panels = plt.subplots(1, 2, figsize=(8, 4), sharey=True, layout="constrained")
for panel, number_T, title in zip(panels, (kind_T, expert_T), ("kind", "expert"), strict=True):
    for number, marker in enumerate("os^D"):
        of = number_T == number
        panel.scatter(*x_TD[of].T, s=6, marker=marker, label=f"{title} {number}")
    panel.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5), aspect="equal", title=f"{title} of each token")
    panel.legend(loc="upper right", markerscale=3)
plt.show()

# %% [markdown]
# ## 9. What balancing is for
#
# With more experts than kinds, some are left over: an expert that gets few tokens learns little, and so gets fewer. The
# selection bias gives every expert work. MaxVio says how far the busiest is above the mean; 0 is an even load.

# %%
from moekit.training import max_violation

for name, balancers in (("alone", {}), ("with a bias", {"bias": {"use": "sign_bias", "rate": 1e-2}})):
    moe = fit(layer(12, balancers)).moe
    with torch.no_grad():
        load_E = moe(x_TD)[1].load_E
    print(f"{name:12} MaxVio {max_violation(load_E):.2f}  load {load_E.tolist()}")

# %% [markdown]
# ## 10. The same layer, in earnest
#
# A recipe is such a layer at another size, with the model and the training around it. This is the mixture of
# DeepSeek-V3, scaled down, for tokens of width 64. `moekit train deepseek_v3` trains it on text, and `moekit report`
# draws the table of cell 7 for every layer: [Seeing experts](seeing_experts.md).

# %%
print(moekit.layer("deepseek_v3", dim=64).extra_repr())
