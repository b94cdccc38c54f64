# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Digits, from a model to certified answers
#
# A scikit-learn model of handwritten digits stands for a model that can only be queried. We put a defense in front of it, trained
# through its answers alone, and certify a few digits. The settings are small, so that this runs in a minute: the numbers show the
# way, and `certibox demo` has better ones.

# %%
import matplotlib.pyplot as plt
from sklearn.ensemble import GradientBoostingClassifier

import certibox as cb

images = cb.load_images("digits", "train").select(range(400))
test = cb.load_images("digits", "test").select(range(12))
model = GradientBoostingClassifier(n_estimators=30, random_state=0).fit(images.floats().flatten(1), images.labels)

# %% [markdown]
# ## The box and its meter
# All that certibox will know of the model is what comes back. The meter counts every query and stops at the budget. Nothing has been
# asked yet.

# %%
box = cb.as_blackbox(model, outputs="probabilities", name="digits-boosting")
client = cb.QueryClient(box, budget=300_000)
print(client, client.queries)

# %% [markdown]
# ## What will it cost?

# %%
schedule = cb.one_cycle(epochs=4, lr=3e-3, batch_size=64, denoise_epochs=8)
settings = cb.TrainingSettings(
    method="ZO-AE-DS", sigma=0.25, gamma=5.0, estimator=cb.Guided(q=0, mu=0.2), schedule=schedule, seed=0
)
cost = cb.plan(settings, train_images=len(images), certify_images=len(test), n0=25, n=10_000, alpha=0.001, d_z=32)
print(f"training: {cost.all_training:,} queries; certificates: at most {cost.certification:,}")

# %% [markdown]
# ## Training
# The autoencoder and the first epochs of the denoiser cost nothing. Then each image and step asks about one query.

# %%
autoencoder = cb.pretrain_autoencoder(
    images, cb.fitting_autoencoder(images.shape, d_z=32, seed=0), schedule=cb.one_cycle(20, lr=3e-3), seed=0
)
denoiser = cb.networks.dncnn(1, depth=5, width=32)
defense = cb.train(client, images, settings, denoiser=denoiser, autoencoder=autoencoder)
spent_on_training = client.queries
print(f"{spent_on_training:,} queries")
assert spent_on_training == cost.all_training

# %% [markdown]
# What the defense does to a noisy digit:

# %%
import torch

x = test.floats(slice(0, 4))
noisy = x + 0.25 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
stages = {"clean": x, "noisy": noisy, "denoised": defense.denoise(noisy), "decoded": defense.robustify(noisy)}
figure, axes = plt.subplots(4, len(stages), figsize=(6, 6))
for column, (name, pictures) in enumerate(stages.items()):
    for row in range(4):
        axes[row, column].imshow(pictures[row, 0].clamp(0, 1), cmap="gray")
        axes[row, column].axis("off")
    axes[0, column].set_title(name)

# %% [markdown]
# ## Certificates
# The votes on a digit end when they have decided whether it holds up to r = 0.125 and r = 0.25, or when nothing can be proven.

# %%
rule = cb.EProcess(radii=(0.125, 0.25))
certified = {}
for name, base in {"bare": cb.SmoothedClassifier(client, 10, 0.25), "defended": defense.smoothed()}.items():
    certified[name] = cb.certify_dataset(base, test, n0=25, n=10_000, alpha=0.001, seed=0, rule=rule)
    shares = cb.certified_accuracy(certified[name], [0.125, 0.25])
    queries = sum(row.queries for row in certified[name])
    print(f"{name}: {shares[0]:.0%} at r = 0.125, {shares[1]:.0%} at r = 0.25, for {queries:,} queries")

# %% [markdown]
# Every query is in the books:

# %%
print(client.spent)
assert sum(client.spent.values()) == client.queries
certified["defended"].to_pandas()[["label", "predict", "radius", "queries"]]
