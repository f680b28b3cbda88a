# %% [markdown]
# # Pre-train G2D and inspect what it learned
#
# Rendered radiographs with reports replace MIMIC-CXR; the classes are those of the command line. With these settings
# the notebook takes a minute on a CPU and learns little. For a better model, raise `STUDIES` and `EPOCHS` (and run it
# as a notebook, or put the script under `if __name__ == "__main__":`, since several processes write larger phantoms).

# %%
from pathlib import Path

import lightning as L

import medvlp
from medvlp import viz
from medvlp.encoders.image import ImageEncoderConfig
from medvlp.encoders.text import TextEncoderConfig
from medvlp.training.optim import OptimConfig

STUDIES, EPOCHS, SIZE = 160, 1, 64
RUN = Path("runs/notebook-1")

# %% [markdown]
# ## Data
# The phantom is written on first use, in the layout of MIMIC-CXR. For the real corpus, set `root` (and `reports_root`)
# to its folder and omit `phantom`.

# %%
data = medvlp.MIMICCXRDataModule(
    "data/phantom/notebook",
    phantom=medvlp.PhantomSpec(studies=STUDIES, size=SIZE, laterals=0.0, split=(0.8, 0.15, 0.05)),
    labels="truth",
    views=["PA", "AP", ""],
    report_policy="impression",
    transform="phantom",
    image_size=SIZE,
    batch_size=16,
)
data.prepare_data()
data.setup("fit")
print(len(data.train_set), "training pairs; dropped:", data.train_set.dropped.attrs.get("counts"))

# %%
sample = data.train_set[0]
print(sample["text"])
viz.study_figure([sample["image"].numpy()], {}, [sample["text"]], [sample["id"][:24]])

# %% [markdown]
# ## Model and training

# %%
L.seed_everything(0)
model = medvlp.G2D(
    image=ImageEncoderConfig(name="resnet18", depth=4),
    text=TextEncoderConfig(hidden_size=64, num_layers=2, num_heads=4, vocab_size=1024, max_length=96, pooling="mean"),
    optim=OptimConfig(lr=1e-3, weight_decay=0.01, warmup=0.1),
    image_size=SIZE,
    decoder_widths=[32, 16, 8, 8],
    text_to_image=1.0,
    prompts="phantom",
)
trainer = L.Trainer(
    accelerator="auto",
    devices=1,
    max_epochs=EPOCHS,
    default_root_dir=RUN,
    logger=False,
    enable_progress_bar=False,
    use_distributed_sampler=False,
    num_sanity_val_steps=0,
)
trainer.fit(model, datamodule=data)
trainer.save_checkpoint(RUN / "model.ckpt")
{name: round(value, 3) for name, value in model.evaluation["zero_shot"].items()}

# %% [markdown]
# ## Visualise
# Plot attention, the pseudo mask derived from it, and the decoder's prediction.

# %%
batch = data.val_dataloader().collate_fn([data.val_set[i] for i in range(3)])
maps = model.eval().explain(batch)
figure = viz.study_figure(
    [image.numpy() for image in batch["image"]],
    {title: [value.numpy() for value in values] for title, values in maps.items()},
    batch["text"],
)
viz.save(figure, RUN / "look.png")
figure
