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
# # Bring your own denoiser
#
# Any torch module (b, c, h, w) → (b, c, h, w) may stand in front of the box: as it is, as a start for training, or loaded from a
# file of weights.

# %%
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import nn

import certibox as cb

images = cb.load_images("digits", "train").select(range(400))
test = cb.load_images("digits", "test").select(range(10))
model = LogisticRegression(max_iter=1000).fit(images.floats().flatten(1), images.labels)
client = cb.QueryClient(cb.as_blackbox(model, outputs="probabilities", name="digits-linear"))


# %%
class Residual(nn.Module):
    """A small denoiser that estimates the noise and takes it away."""

    def __init__(self, channels: int = 1, width: int = 24) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.body(x)


# %% [markdown]
# ## Weights that somebody else trained
# Here we train them ourselves, on squared error, and save them: a file as it could come from elsewhere. The noise has σ = 0.25 on
# pixels from 0 to 1; a denoiser of 8-bit pixels would want its input multiplied by 255 first.

# %%
torch.manual_seed(0)
elsewhere, x = Residual(), images.floats()
optimizer = torch.optim.Adam(elsewhere.parameters(), 3e-3)
for _ in range(150):
    clean = x[torch.randint(len(x), (64,))]
    loss = (elsewhere(clean + 0.25 * torch.randn_like(clean)) - clean).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
folder = Path(tempfile.mkdtemp())
save_file(elsewhere.state_dict(), folder / "denoiser.safetensors")
print(f"mean squared error {loss.item():.4f}; that of the noise alone is {0.25**2:.4f}")

# %% [markdown]
# ## As it is
# A smoothed classifier takes any function. Nothing is trained, and only certificates cost queries.

# %%
denoiser = Residual()
denoiser.load_state_dict(load_file(folder / "denoiser.safetensors"))
denoiser.eval()


def defended(noisy: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return client(denoiser(noisy))


asked = {"n0": 25, "n": 4_000, "alpha": 0.001, "seed": 0, "rule": cb.EProcess(radii=(0.25,))}
found = {"bare": cb.SmoothedClassifier(client, 10, 0.25), "own denoiser": cb.SmoothedClassifier(defended, 10, 0.25)}
shares = {
    name: cb.certified_accuracy(cb.certify_dataset(each, test, **asked), [0.25])[0] for name, each in found.items()
}
print(shares)

# %% [markdown]
# ## As a start for training
# `train` copies the module, trains the copy, and keeps yours as it was.

# %%
before = client.queries
defense = cb.train(
    client,
    images,
    method="ZO-DS",
    sigma=0.25,
    gamma=1.0,
    estimator=cb.Guided(q=0, mu=0.2),
    schedule=cb.one_cycle(2, lr=1e-3, denoise_epochs=2),
    seed=0,
    denoiser=denoiser,
)
print(f"{client.queries - before:,} queries to train")
rows = cb.certify_dataset(defense.smoothed(), test, **asked)
print("trained by queries:", cb.certified_accuracy(rows, [0.25])[0])
unchanged = load_file(folder / "denoiser.safetensors")
assert all(torch.equal(value, unchanged[name]) for name, value in denoiser.state_dict().items())

# %% [markdown]
# ## Save and load
# certibox saves the weights of your module, not its code: give the module again when you load.

# %%
defense.save(folder / "defense")
again = cb.load_defense(folder / "defense", client, denoiser=Residual())
assert torch.equal(again.denoise(x[:4]), defense.denoise(x[:4]))
print(again)
