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
# # Reading a certificate and a report
#
# A certificate is a class, a radius, and the votes that prove them. Here is one, taken apart; then two runs, compared.

# %%
import tempfile
from pathlib import Path

import torch
from scipy.stats import beta, norm
from sklearn.ensemble import RandomForestClassifier

import certibox as cb
from certibox import report

images = cb.load_images("digits", "train")
test = cb.load_images("digits", "test").select(range(20))
model = RandomForestClassifier(30, random_state=0).fit(images.floats().flatten(1), images.labels)
client = cb.QueryClient(cb.as_blackbox(model, outputs="probabilities", name="digits-forest"))

# %% [markdown]
# ## One certificate
# With a fixed n, 100 votes pick the class and 1,000 others bound its probability under the noise.

# %%
smoothed = cb.SmoothedClassifier(client, 10, 0.25)
certificate = smoothed.certify(test.floats([1])[0], n0=100, n=1_000, alpha=0.001, seed=0)
print(certificate)

# %% [markdown]
# The bound is that of Clopper and Pearson, and the radius is σ Φ⁻¹(p):

# %%
top = certificate.counts[certificate.selected]
lower = beta.ppf(0.001, top, 1_000 - top + 1)
print(f"{top} of 1,000 votes, so p is at least {lower:.4f}, and the radius is {0.25 * norm.ppf(lower):.4f}")
assert abs(certificate.radius - 0.25 * norm.ppf(lower)) < 1e-9

# %% [markdown]
# **What it says**: the class that most noisy copies get stays the same under every change of the image whose norm is below the
# radius, unless the bound failed, which has probability 0.001. **What it does not say**: that the class is right, or anything about
# the forest asked once.
#
# Where too few votes agree, nothing is proven, and the certificate abstains:

# %%
mixed = smoothed.certify(
    torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(3)), n0=100, n=1_000, alpha=0.001, seed=0
)
print(mixed.label, mixed.radius, sorted(mixed.counts, reverse=True)[:3])

# %% [markdown]
# ## Two runs on the same images
# The same forest at two levels of noise. Intervals of each run say how well its share is known; the interval of the *difference*, paired
# by image, says whether the runs differ.

# %%
runs = []
for sigma in (0.25, 0.4):
    rows = cb.certify_dataset(
        cb.SmoothedClassifier(client, 10, sigma),
        test,
        n0=25,
        n=2_000,
        alpha=0.001,
        seed=0,
        rule=cb.EProcess(radii=(0.125, 0.25)),
    )
    runs.append(report.Run(f"sigma {sigma}", rows, {"certify": sum(row.queries for row in rows)}))
print(report.markdown_table(runs, [0.125, 0.25]))
difference, low, high = report.paired_difference(runs[1].rows, runs[0].rows, 0.25)
print(f"sigma 0.4 minus sigma 0.25 at r = 0.25: {difference:+.0%}, 95 % interval [{low:+.0%}, {high:+.0%}]")

# %% [markdown]
# ## The page
# `write_report` makes one HTML file that loads nothing: the result first, what each column means, the comparison in words, classes
# apart, the images that hold least, and the settings last.

# %%
folder = Path(tempfile.mkdtemp())
page = report.write_report(folder, runs, [0.125, 0.25], title="Two levels of noise", facts={"box": "a random forest"})
print(page.name, f"{page.stat().st_size:,} bytes")

# %% [markdown]
# The curve has points where the rule decided, and nothing between: votes ended as soon as these radii were decided, so they say
# less about others than the model could.

# %%
import matplotlib.pyplot as plt

plt.figure(figsize=(7, 4))
plt.imshow(plt.imread(folder / "ca_curve.png"))
plt.axis("off")
