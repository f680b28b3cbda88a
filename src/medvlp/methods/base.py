"""Base of every pre-training method: the contract, the tokenizer, training, validation and inference."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from medvlp import compat, distributed
from medvlp.datasets.inputs import AnyImage
from medvlp.encoders.image import ImageEncoder, ImageEncoderConfig
from medvlp.encoders.text import TextEncoder, TextEncoderConfig
from medvlp.errors import CheckpointError, ConfigError, NotSupportedError, check_range
from medvlp.losses.contrastive import image_text_contrast
from medvlp.methods import inference
from medvlp.methods.embeddings import encoded_texts, unit_length
from medvlp.methods.evaluation import evaluate_batch, evaluate_epoch
from medvlp.methods.inference import Prompts
from medvlp.methods.payload import checked_hyperparameters, hyperparameters_of, payload_of, read_payload
from medvlp.methods.vocabulary import corpus_tokenizer
from medvlp.metrics.samples import SampleStore
from medvlp.prompts import load_prompts
from medvlp.scoring.prompts import zero_shot_auroc
from medvlp.text import load_tokenizer, tokenizer_from_state
from medvlp.training.averaging import MovingAverage
from medvlp.training.checkpoint_io import write_checkpoint
from medvlp.training.chunks import encode_in_chunks
from medvlp.training.module import TrainingModule
from medvlp.training.optim import OptimConfig
from medvlp.training.schema import CHECKPOINT_KEY
from medvlp.training.settings import check_named, config_from


class PretrainModule(TrainingModule):
    """Base of every pre-training method.

    A method sets :attr:`name`, builds its heads in ``__init__`` after ``super().__init__(...)``, and implements
    :meth:`forward`, :meth:`losses`, :meth:`encode_images` and :meth:`encode_tokens`. The base class tokenises, sums,
    logs, optimises, gathers across ranks, validates by zero-shot AUROC and retrieval, and writes checkpoints that load
    without anything else. All ``__init__`` arguments must be plain values or dataclasses of them. A method takes the
    options below as ``**options`` and passes them on.

    ``contrastive_chunks`` (:mod:`medvlp.training.chunks`) needs a :meth:`forward` that treats each pair by itself, but
    for batch norms in train mode, which use the statistics of the chunk. What mixes the pairs of a batch belongs into
    :meth:`losses`, which sees the whole batch, and whose own memory is not reduced.

    Args:
        image: the image encoder.
        text: the text encoder.
        optim: optimiser and schedule.
        image_size: side of the training images in pixels.
        prompts: zero-shot prompt set used in validation, by name or JSON file; None for none.
        contrastive_chunks: number of chunks for gradient caching: the batch of a device may exceed its memory, at the
            price of a second forward pass.
        compile: ``torch.compile`` the encoders when training starts: True, or the name of a backend.
        ema_decay: keep a moving average of the weights with this decay, and validate and save that (see
            :class:`~medvlp.training.averaging.MovingAverage`); None keeps none.

    Raises:
        ConfigError: an option outside its range; and from the encoders.
    """

    name: ClassVar[str] = ""
    """The method's name: its entry point in the group ``medvlp.methods``."""

    has_text: ClassVar[bool] = True
    """Whether there is a text side; without one no text encoder is built and no tokenizer is needed."""

    feature_pool: Any = "mean"
    """Input of a classifier: "mean" of the encoder's deepest level, or the class "token"; may be a property."""

    global_contrast: bool = True
    """Whether :meth:`contrast` sees the batches of all ranks (with gradient) or this rank's alone."""

    image_encoder: ImageEncoder
    text_encoder: TextEncoder

    def __init__(
        self,
        image: ImageEncoderConfig | None = None,
        text: TextEncoderConfig | None = None,
        optim: OptimConfig | None = None,
        image_size: int = 224,
        prompts: str | None = "chexpert",
        contrastive_chunks: int = 1,
        compile: bool | str = False,
        ema_decay: float | None = None,
    ) -> None:
        super().__init__()
        check_range("[1, inf)", contrastive_chunks=contrastive_chunks)
        check_range("[0, 1)", ema_decay=ema_decay)
        check_range("[1, 16384]", image_size=image_size)
        self.save_hyperparameters()  # those of the subclass as well
        check_named(self.hparams)
        self.image_config: ImageEncoderConfig = config_from(ImageEncoderConfig, image)
        self.text_config: TextEncoderConfig = config_from(TextEncoderConfig, text)
        self.optim_config = config_from(OptimConfig, optim)
        self.image_size = image_size
        self.image_encoder = ImageEncoder(self.image_config, image_size)
        for note in self.image_encoder.notes:
            rank_zero_info(note)
        self.contrastive_chunks, self.compile_encoders, self.ema_decay = contrastive_chunks, compile, ema_decay
        self.prompts = load_prompts(prompts) if prompts else None
        self.tokenizer: Any = None
        if self.has_text:
            self.text_encoder = TextEncoder(self.text_config)
            if self.text_config.pretrained and self.text_config.architecture is None:
                self.attach_tokenizer(load_tokenizer(self.text_config.pretrained))
        self.preprocess: dict[str, Any] = {}
        self.label_names: list[str] = []
        self.evaluation: dict[str, Any] = {}
        self.pairs = SampleStore(["image", "text", "label", "same_text"])

    # ---------------------------------------------------------------- the contract

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Encode a batch (:mod:`medvlp.datamodules.base`) once.

        Returns:
            At least ``image`` and ``text``, both (B, d) in the joint space, and whatever :meth:`losses` needs.
        """

    @abstractmethod
    def losses(self, batch: dict[str, Any], outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return named loss terms, already weighted, from the outputs of :meth:`forward`, computed here if None."""

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Joint-space image vectors: (B, 3, S, S) → (B, d), any length."""

    @abstractmethod
    def encode_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Joint-space report vectors: (N, L) ids and mask → (N, d), any length."""

    def embed_image(self, images: Tensor) -> Tensor:
        """L2-normalised image embeddings: (B, 3, S, S), preprocessed as :attr:`preprocess` says → (B, d)."""
        return unit_length(self.encode_images(images), self)

    def embed_text(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """L2-normalised embeddings of texts, ``chunk`` at a time: N strings → (N, d).

        Raises:
            NotSupportedError: the method has no text side.
            ConfigError: no tokenizer yet.
        """
        return torch.cat([unit_length(part, self) for part in encoded_texts(self, texts, chunk)])

    def encode_texts(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """As :meth:`embed_text`, but of any length, for rules that compare lengths too (MaCo): (N, d) float32."""
        return torch.cat([part.float() for part in encoded_texts(self, texts, chunk)])

    def embed_patches(self, images: Tensor) -> Tensor:
        """L2-normalised embeddings of the cells of an image: (B, 3, S, S) → (B, d, h, w).

        Raises:
            NotSupportedError: the method has none.
        """
        raise NotSupportedError(f"{self.name} has no patch embeddings in the joint space")

    # ---------------------------------------------------------------- the contract: optional, for tasks

    def encode_patches(self, images: Tensor) -> Tensor:
        """Cells of an image before they are given unit length: (B, 3, S, S) → (B, d, h, w).

        For protocols that compare unnormalised vectors (MaCo's grounding); by default :meth:`embed_patches`.
        """
        return self.embed_patches(images)

    def patch_weights(self) -> Tensor:
        """Weight of each cell in grounding, (h, w), whatever the image (MaCo).

        Raises:
            NotSupportedError: the method weights all cells alike.
        """
        raise NotSupportedError(f"{self.name} has no patch weights")

    def prepare_prompts(self, texts: Sequence[str]) -> Any:
        """Return what :meth:`zero_shot_scores` takes of prompts, computed once for all images; by default the list."""
        return list(texts)

    def zero_shot_scores(self, images: Tensor, prompts: Any) -> Tensor:
        """Score images (B, 3, S, S) with T prepared prompts by the method's own similarity (GLoRIA's words): (B, T).

        Raises:
            NotSupportedError: the method scores by the cosine of embeddings alone.
        """
        raise NotSupportedError(f"{self.name} has no zero_shot_scores of its own")

    def implements(self, ability: str) -> bool:
        """Whether the method overrides an optional method of this class, such as ``embed_patches``."""
        return getattr(type(self), ability) is not getattr(PretrainModule, ability)

    def explain(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Maps for figures, by title: (B, 1, S, S) each in [0, 1]; empty where the method has none.

        By default the cosine of each cell with the study's own report, stretched to each image's range.
        """
        return inference.similarity_to_report(self, batch)

    def contrast(
        self,
        image: Tensor,
        text: Tensor,
        *,
        temperature: float | Tensor,
        image_to_text: float = 1.0,
        text_to_image: float = 1.0,
    ) -> Tensor:
        """Contrast images and texts of the global batch, with gradient through the other ranks' embeddings.

        See :func:`medvlp.losses.contrastive.image_text_contrast`. Where :attr:`global_contrast` is False (some
        official variants) each rank contrasts its own batch alone.

        Raises:
            ConfigError: a global batch of one pair.
        """
        gather = self.global_contrast
        self._need_two(len(image))
        return image_text_contrast(
            image,
            text,
            temperature=temperature,
            image_to_text=image_to_text,
            text_to_image=text_to_image,
            all_image=distributed.all_gather(image) if gather and text_to_image else None,
            all_text=distributed.all_gather(text) if gather and image_to_text else None,
            offset=distributed.rank() * len(image) if gather else 0,
        )

    def _need_two(self, pairs: int) -> None:
        if self.training and pairs * (distributed.world_size() if self.global_contrast else 1) < 2:
            raise ConfigError("a contrast needs at least two pairs: raise data.batch_size")

    # ---------------------------------------------------------------- tokenizer and data module

    def attach_tokenizer(self, tokenizer: Any) -> None:
        """Set the (fast) tokenizer.

        Raises:
            ConfigError: it has more entries than the text encoder has embeddings.
        """
        if len(tokenizer) > self.text_encoder.vocab_size:
            raise ConfigError(
                f"the tokenizer has {len(tokenizer)} entries, the text encoder {self.text_encoder.vocab_size}; set "
                f"text.vocab_size to at least {len(tokenizer)}, or use the encoder's own tokenizer"
            )
        self.tokenizer = tokenizer

    def setup(self, stage: str) -> None:
        """Take preprocessing and label names from the data module, and give it the tokenizer."""
        if stage == "fit":
            checked_hyperparameters(type(self), self.hyperparameters())  # now, not when the checkpoint is loaded
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(datamodule, "attach_tokenizer"):
            return
        if self.has_text:
            train = getattr(datamodule, "train_set", None)
            if stage == "fit" and train is not None and not any(train.texts):
                raise ConfigError(
                    f"no text in the training part: {self.name} learns from pairs of image and text; set "
                    "data.init_args.task: pairs, or name a corpus with reports"
                )
            if self.tokenizer is None:
                self.attach_tokenizer(corpus_tokenizer(datamodule.training_texts, self.text_config, self.trainer))
            self._give_tokenizer(datamodule)
        self.preprocess = dict(datamodule.preprocess)
        self.label_names = list(datamodule.label_names)
        if self.preprocess.get("size") != self.image_size:
            rank_zero_warn(
                f"images are {self.preprocess.get('size')} px, model.image_size is {self.image_size}: position tables "
                "are interpolated"
            )

    def _give_tokenizer(self, datamodule: Any) -> None:
        if self.has_text and hasattr(datamodule, "attach_tokenizer"):
            text = self.text_config
            datamodule.attach_tokenizer(self.tokenizer, max_length=text.max_length, padding=text.padding)

    # ---------------------------------------------------------------- training

    def configure_callbacks(self) -> list[L.Callback]:
        """Return the guards of every run, and the moving average if ``ema_decay`` is set."""
        callbacks = super().configure_callbacks()
        if self.ema_decay is not None and self.trainer.state.fn == "fit":
            callbacks.append(MovingAverage(self.ema_decay))
        return callbacks

    def on_fit_start(self) -> None:
        """Compile the encoders if ``compile`` is set.

        Each in place: names of weights stay the same, and losses, logging and collectives outside of the graphs.
        """
        if self.compile_encoders:
            options = {"backend": self.compile_encoders} if isinstance(self.compile_encoders, str) else {}
            for encoder in (self.image_encoder, *([self.text_encoder] if self.has_text else [])):
                encoder.compile(**options)

    def encode(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """:meth:`forward` for training: in :attr:`contrastive_chunks` chunks, the outputs joined."""
        if self.contrastive_chunks == 1:
            outputs: dict[str, Tensor] = self(batch)
            return outputs
        return encode_in_chunks(self.forward, batch, self.contrastive_chunks, self)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Sum of :meth:`losses`; every term is logged as ``train/<term>``."""
        size = len(batch["image"])
        self._need_two(size)  # before a batch norm sees a single pair, whose error says less
        return self.sum_and_log(self.losses(batch, self.encode(batch)), size)

    # ---------------------------------------------------------------- evaluation

    def zero_shot_auroc(self, image: Tensor, label: Tensor) -> dict[str, float]:
        """AUROC of each finding and their mean, from image embeddings (N, d) and labels (N, K) of :attr:`label_names`.

        See :func:`medvlp.scoring.prompts.zero_shot_auroc`; empty without prompts or a text side.
        """
        if self.prompts is None or self.tokenizer is None:
            return {}
        return zero_shot_auroc(image, label, self.label_names, self.prompts.among(self.label_names), self.embed_text)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log the losses and keep the embeddings."""
        evaluate_batch(self, batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log zero-shot AUROC per finding and retrieval R@1/5/10 on the held-out pairs."""
        self.evaluation = evaluate_epoch(self, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As :meth:`validation_step`."""
        evaluate_batch(self, batch, "test")

    def on_test_epoch_end(self) -> None:
        """As :meth:`on_validation_epoch_end`, on the test split."""
        self.evaluation = evaluate_epoch(self, "test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Ids, dataset rows and L2-normalised embeddings of a batch; ``text`` only with a text side."""
        outputs = self(batch)
        sides = ("image", "text") if self.has_text else ("image",)
        vectors = {side: unit_length(outputs[side], self) for side in sides}
        return {"id": batch["id"], "index": batch["index"], **vectors}

    # ---------------------------------------------------------------- inference

    def zero_shot(
        self,
        images: AnyImage | Sequence[AnyImage],
        prompts: Prompts | None = None,
        *,
        rule: str | None = None,
        temperature: float = 1.0,
        batch_size: int = 32,
    ) -> pd.DataFrame:
        """Score images for classes that only prompts describe; the images are prepared as in training.

        Args:
            images: one or several files (JPEG, PNG, DICOM), PIL images, arrays or tensors
                (:mod:`medvlp.datasets.inputs`).
            prompts: name or file of a prompt set; a set; class to (positive, negative) prompts; or class names alone.
                None: the set that the model was validated with.
            rule: how prompts become a score, a key of :data:`medvlp.scoring.prompts.RULES`. None: the softmax of
                positive against negative prompts (CheXzero), or the cosine in a set without negation.
            temperature: of the softmax.
            batch_size: images encoded at once.

        Returns:
            One row per image, one column per class, larger where the class is more likely.

        Raises:
            NotSupportedError: the method has no text side.
            ConfigError: no prompts, an empty one, or an unknown rule.
            DataError: an input is no image.
        """
        return inference.zero_shot(self, images, prompts, rule, temperature, batch_size)

    def ground(
        self,
        images: AnyImage | Sequence[AnyImage],
        phrases: str | Sequence[str],
        *,
        sigma: float = 0.0,
        batch_size: int = 32,
    ) -> list[np.ndarray]:
        """Locate phrases in images, by the cosine of each cell with the phrase.

        Args:
            images: one or several, as for :meth:`zero_shot`.
            phrases: one or several, such as "small left apical pneumothorax".
            sigma: Gaussian smoothing of the cells beforehand, in cells (BioViL: 1.5).
            batch_size: images encoded at once.

        Returns:
            For each image float32 (P, H, W) in [−1, 1], enlarged bilinearly to the image as it was read, after undoing
            resize and crop; NaN where the model saw nothing.

        Raises:
            NotSupportedError: the method has no text side, or no embeddings of cells.
            DataError: an empty phrase, or no image.
        """
        return inference.ground(self, images, phrases, sigma, batch_size)

    # ---------------------------------------------------------------- checkpoints

    def hyperparameters(self) -> dict[str, Any]:
        """``__init__`` arguments as plain values, with encoders that build without hub or files."""
        return hyperparameters_of(self)

    def payload(self) -> dict[str, Any]:
        """See :class:`~medvlp.methods.payload.Payload`."""
        return payload_of(self)

    def take_payload(self, checkpoint: dict[str, Any]) -> None:
        """Take back tokenizer, preprocessing and label names; without a trainer also the prompts."""
        if CHECKPOINT_KEY not in checkpoint:
            raise CheckpointError("this is not a medvlp checkpoint: it has no tokenizer and no method name")
        payload = read_payload(checkpoint)
        if payload.method != self.name:
            remedy = "use the config.yaml of the run that wrote it"
            raise CheckpointError(f"the checkpoint is of method {payload.method!r}, not {self.name!r}; {remedy}")
        if self.has_text:
            self.attach_tokenizer(tokenizer_from_state(payload.tokenizer or {}))
        self.preprocess, self.label_names = payload.preprocess, payload.label_names
        trainer = compat.trainer_of(self)
        if trainer is None and self.prompts is None:
            self.prompts = payload.prompts
        self._give_tokenizer(getattr(trainer, "datamodule", None))

    def save(self, path: str | Path) -> None:
        """Write a checkpoint without a trainer: for :func:`medvlp.load`, not for resuming a run.

        Raises:
            CheckpointError: no tokenizer yet, or a hyper-parameter that is no plain value.
        """
        checkpoint: dict[str, Any] = {
            "state_dict": {name: value.detach().clone() for name, value in self.state_dict().items()},
            "epoch": 0,
            "global_step": 0,
            "pytorch-lightning_version": L.__version__,
        }
        self.on_save_checkpoint(checkpoint)
        write_checkpoint(checkpoint, path)
