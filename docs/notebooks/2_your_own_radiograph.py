# %% [markdown]
# # Zero-shot classification and grounding of your own radiograph
#
# Apply a checkpoint of `medvlp fit` to any image: a JPEG, PNG or DICOM file, a PIL image or an array. Set `CHECKPOINT`
# and `IMAGE` to your own files. By default, a model trained for a few steps and a rendered radiograph demonstrate the
# interface; their predictions are meaningless. Research software, not a medical device.

# %%
import os
from pathlib import Path

import lightning as L
import numpy as np

import medvlp
from medvlp import viz
from medvlp.encoders.image import ImageEncoderConfig
from medvlp.encoders.text import TextEncoderConfig

CHECKPOINT = os.environ.get("MEDVLP_CHECKPOINT", "")
IMAGE = os.environ.get("MEDVLP_IMAGE", "")
RUN = Path("runs/notebook-2")

# %%
data = medvlp.RSNADataModule(
    "data/phantom/notebook-rsna",
    phantom=medvlp.PhantomSpec(studies=60, size=128, laterals=0.0),
    task="grounding",
    split="clean",
    transform="phantom",
    image_size=64,
)
data.prepare_data()
data.setup("test")
if not IMAGE:
    IMAGE = data.test_set.table.column("image")[0].as_py()  # a DICOM file
if not CHECKPOINT:
    pairs = medvlp.MIMICCXRDataModule(
        "data/phantom/notebook-pairs",
        phantom=medvlp.PhantomSpec(studies=120, size=64, laterals=0.0, split=(0.8, 0.1, 0.1)),
        report_policy="impression",
        transform="phantom",
        image_size=64,
        batch_size=16,
    )
    L.seed_everything(0)
    small = medvlp.G2D(
        image=ImageEncoderConfig(name="resnet18", depth=4),
        text=TextEncoderConfig(hidden_size=64, num_layers=1, num_heads=4, vocab_size=1024, max_length=96),
        image_size=64,
        decoder_loss="none",
        prompts="phantom",
    )
    options = {"logger": False, "enable_progress_bar": False, "use_distributed_sampler": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=RUN, num_sanity_val_steps=0, **options)
    trainer.fit(small, datamodule=pairs)
    CHECKPOINT = str(RUN / "model.ckpt")
    trainer.save_checkpoint(CHECKPOINT)

# %% [markdown]
# ## Load the checkpoint: only this file is needed

# %%
model = medvlp.load(CHECKPOINT)
print(model.name, model.preprocess)

# %% [markdown]
# ## Zero-shot classification
# Pass class names ("Pneumothorax." against "No pneumothorax."), your own prompts, or the name of a paper's prompt set.

# %%
print(model.zero_shot(IMAGE, ["Pneumothorax", "Pleural effusion", "Cardiomegaly"]))
print(model.zero_shot(IMAGE, {"Consolidation": (["Right lower lobe consolidation."], ["The lungs are clear."])}))
model.zero_shot([IMAGE, np.full((200, 300), 0.5)], "phantom").round(3)

# %% [markdown]
# ## Grounding
# Heatmaps of cosines have the size of the image, independent of the model's input size.

# %%
phrases = ["small left apical pneumothorax", "consolidation in the right lower lung"]
(heatmaps,) = model.ground(IMAGE, phrases)
print(heatmaps.shape, float(np.nanmin(heatmaps)), float(np.nanmax(heatmaps)))

# %%
from medvlp.datasets.inputs import grey_levels

grey = grey_levels(IMAGE)
figure = viz.grounding_figure(
    [grey] * len(phrases),
    {"cosine": list(heatmaps)},
    [np.zeros(grey.shape, bool)] * len(phrases),
    phrases,
)
viz.save(figure, RUN / "grounding.png")
figure
