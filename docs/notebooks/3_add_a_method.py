# %% [markdown]
# # Add a method and evaluate it
#
# A method is a `PretrainModule` with two encoders, heads and named losses. The base class provides everything else
# (tokenizer, optimiser, global batch, checkpoints, evaluation). `docs/plugins.md` shows how to package a method.

# %%
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch.nn.functional as F
from torch import Tensor, nn

import medvlp
from medvlp.encoders.image import ImageEncoderConfig
from medvlp.encoders.text import TextEncoderConfig

RUN = Path("runs/notebook-3")


# %%
class SigLIP(medvlp.PretrainModule):
    """Pairwise sigmoid loss (Zhai et al., 2023) instead of the softmax contrast."""

    name: ClassVar[str] = "siglip"

    def __init__(self, embed_dim: int = 64, scale: float = 10.0, bias: float = -3.0, **options: Any) -> None:
        super().__init__(**options)
        self.scale, self.bias = scale, bias
        self.image_head = nn.Linear(self.image_encoder.out_channels, embed_dim)
        self.text_head = nn.Linear(self.text_encoder.width, embed_dim)

    def encode_images(self, images: Tensor) -> Tensor:
        return self.image_head(self.image_encoder(images)[-1].mean((2, 3)))

    def encode_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.text_head(self.text_encoder(input_ids, attention_mask)[1])

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        text = self.encode_tokens(batch["input_ids"], batch["attention_mask"])
        return {"image": self.encode_images(batch["image"]), "text": text}

    def losses(self, batch: dict[str, Any], outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        out = self(batch) if outputs is None else outputs
        cosines = F.normalize(out["image"].float(), dim=1) @ F.normalize(out["text"].float(), dim=1).T
        sign = 2.0 * cosines.new_ones(len(cosines)).diag() - 1
        return {"pairwise": -F.logsigmoid(sign * (self.scale * cosines + self.bias)).sum(1).mean()}


# %% [markdown]
# ## Pre-train

# %%
L.seed_everything(0)
options = {"logger": False, "enable_progress_bar": False, "use_distributed_sampler": False, "num_sanity_val_steps": 0}
data = medvlp.MIMICCXRDataModule(
    "data/phantom/notebook-pairs",
    phantom=medvlp.PhantomSpec(studies=120, size=64, laterals=0.0, split=(0.8, 0.1, 0.1)),
    report_policy="impression",
    transform="phantom",
    image_size=64,
    batch_size=16,
)
model = SigLIP(
    image=ImageEncoderConfig(name="resnet18", depth=4),
    text=TextEncoderConfig(hidden_size=64, num_layers=1, num_heads=4, vocab_size=1024, max_length=96),
    image_size=64,
    prompts="phantom",
)
trainer = L.Trainer(accelerator="cpu", max_epochs=2, default_root_dir=RUN, **options)
trainer.fit(model, datamodule=data)
print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items() if "loss" in name})

# %% [markdown]
# ## Evaluate
# A task takes a checkpoint or an encoder. A class defined in a notebook is not registered, so pass its encoder as a
# weights file, and compare it with a random network of the same architecture.

# %%
from medvlp.tasks.encoder import EncoderSource

weights = RUN / "encoder.pth"
import torch

torch.save(model.image_encoder.model.state_dict(), weights)
corpus = {
    "phantom": medvlp.PhantomSpec(studies=150, size=64, laterals=0.0),
    "split": "g2d",
    "transform": "phantom",
    "image_size": 64,
    "batch_size": 16,
}
rows = []
for name, path in (("siglip", str(weights)), ("random", None)):
    source = EncoderSource(image=ImageEncoderConfig(name="resnet18", depth=4, weights=path))
    rsna = medvlp.RSNADataModule("data/phantom/notebook-probe", **corpus)
    scores = medvlp.evaluate(source, "classification", rsna, folder=RUN / name, epochs=10, resamples=200)
    rows.append(scores[scores.metric == "auroc"].assign(method=name)[["method", "value", "low", "high", "samples"]])
rows[0], rows[1]
