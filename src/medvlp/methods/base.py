"""What every pre-training method is: the contract, the tokenizer, the training."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from medvlp import distributed
from medvlp._version import __version__
from medvlp.encoders.image import ImageEncoder, ImageEncoderConfig
from medvlp.encoders.text import TextEncoder, TextEncoderConfig
from medvlp.errors import ConfigError, NotSupportedError, check_range
from medvlp.losses.contrastive import image_text_contrast
from medvlp.losses.precision import total
from medvlp.methods.averaging import MovingAverage
from medvlp.methods.checkpoints import Checkpoints
from medvlp.methods.chunks import encode_in_chunks
from medvlp.methods.dtypes import ExactTensors, KeepTargets
from medvlp.methods.evaluation import Evaluation
from medvlp.methods.guards import NonFiniteGuard, SkippedItems, UntrainedGuard, unit_length
from medvlp.methods.inference import Inference
from medvlp.methods.optim import OptimConfig, build_optimizer, build_schedule
from medvlp.methods.payload import checked_hyperparameters
from medvlp.methods.plain import check_named, config_from
from medvlp.methods.stopping import stop_guard
from medvlp.metrics.samples import SampleStore
from medvlp.prompts import load_prompts
from medvlp.seeding import derive_seed
from medvlp.text import load_tokenizer, tokenizer_from_state, tokenizer_state, train_wordpiece


class PretrainModule(ExactTensors, Evaluation, Checkpoints, Inference, ABC):
    """Base of every pre-training method.

    A method sets :attr:`name`, builds its heads in ``__init__`` after ``super().__init__(...)``, and implements
    :meth:`forward`, :meth:`losses`, :meth:`encode_images` and :meth:`encode_tokens`. The base class tokenises, sums,
    logs, optimises, gathers across ranks, validates by zero-shot AUROC and retrieval, and makes checkpoints that load
    without anything else. All ``__init__`` arguments must be plain values or dataclasses of them. A method takes the
    options below as ``**options`` and hands them on.

    ``contrastive_chunks`` is for methods whose :meth:`forward` treats each pair by itself, as all here do but for batch
    norms in train mode: those use the statistics of the chunk, as on so many devices without synchronisation. What
    mixes the pairs of a batch belongs into :meth:`losses`, which sees the whole batch, and whose own memory is not cut:
    GLoRIA's attention of every image to every report, G2D's decoded images. See :mod:`medvlp.methods.chunks`.

    Args:
        image: the image encoder.
        text: the text encoder.
        optim: optimiser and schedule.
        image_size: side of the training images in pixels.
        prompts: zero-shot prompt set used in validation, by name or JSON file; None for none.
        contrastive_chunks: encode the batch of a device in so many chunks, of which one at a time keeps its
            activations: batches beyond the device's memory, for a second forward pass, with the gradient of the whole.
        compile: ``torch.compile`` the encoders when training starts: True, or the name of a backend.
        ema_decay: keep a moving average of the weights with this decay, and validate and save that (see
            :class:`~medvlp.methods.averaging.MovingAverage`); None keeps none.

    Raises:
        ConfigError: no chunks, or a decay outside [0, 1); and from the encoders.
    """

    name: ClassVar[str] = ""
    """The method's name: its entry point in the group ``medvlp.methods``."""

    has_text: ClassVar[bool] = True
    """Whether there is a text side; without one no text encoder is built and no tokenizer needed."""

    feature_pool: Any = "mean"
    """What a classifier reads of the encoder: "mean" of the deepest level, or the class "token"; a property may say."""

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
        # Collects the arguments of the subclass as well, for the loggers and for the checkpoint.
        self.save_hyperparameters()
        check_named(self.hparams)
        self.image_config: ImageEncoderConfig = config_from(ImageEncoderConfig, image)
        self.text_config: TextEncoderConfig = config_from(TextEncoderConfig, text)
        self.optim_config: OptimConfig = config_from(OptimConfig, optim)
        self.image_size = image_size
        self.image_encoder = ImageEncoder(self.image_config, image_size)
        for note in self.image_encoder.notes:
            rank_zero_info(note)
        self.contrastive_chunks = contrastive_chunks
        self.compile_encoders = compile
        self.ema_decay = ema_decay
        self.prompts = load_prompts(prompts) if prompts else None
        self.tokenizer: Any = None
        if self.has_text:
            self.text_encoder = TextEncoder(self.text_config)
            if self.text_config.pretrained and self.text_config.architecture is None:
                self.attach_tokenizer(load_tokenizer(self.text_config.pretrained))
        self.preprocess: dict[str, Any] = {}
        self.label_names: list[str] = []
        self.evaluation: dict[str, Any] = {}
        self._store = SampleStore(["image", "text", "label", "same_text"])

    # ---------------------------------------------------------------- the contract

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Encodes a batch once.

        Args:
            batch: as documented in :mod:`medvlp.datamodules.base`.

        Returns:
            At least ``image`` and ``text``, both (B, d) in the joint space, and whatever :meth:`losses` needs.
        """

    @abstractmethod
    def losses(self, batch: dict[str, Any], outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Named loss terms, already weighted; their sum is optimised.

        Args:
            batch: as in :meth:`forward`.
            outputs: what :meth:`forward` gave for it; computed here if None.
        """

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
        """L2-normalised embeddings of texts: N strings → (N, d).

        Args:
            texts: reports, sentences or prompts.
            chunk: texts encoded at once.

        Raises:
            NotSupportedError: the method has no text side.
            ConfigError: no tokenizer yet.
        """
        if not self.has_text:
            raise NotSupportedError(f"{self.name} has no text side: it cannot embed texts")
        if self.tokenizer is None:
            raise ConfigError("the model has no tokenizer yet: fit it, load a checkpoint, or call attach_tokenizer()")
        parts = []
        for start in range(0, len(texts), chunk):
            tokens = self.tokenizer(
                list(texts[start : start + chunk]),
                padding=self.text_config.padding,
                truncation=True,
                max_length=self.text_config.max_length,
                return_tensors="pt",
            )
            ids, mask = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)
            parts.append(unit_length(self.encode_tokens(ids, mask), self))
        return torch.cat(parts)

    def embed_patches(self, images: Tensor) -> Tensor:
        """L2-normalised embeddings of the cells of an image: (B, 3, S, S) → (B, d, h, w).

        Raises:
            NotSupportedError: the method has none.
        """
        raise NotSupportedError(f"{self.name} has no patch embeddings in the joint space")

    # ---------------------------------------------------------------- what tasks may use beyond that

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
        """Score images with prompts by the method's own similarity (GLoRIA's words), larger where they fit better.

        Args:
            images: (B, 3, S, S).
            prompts: of :meth:`prepare_prompts`.

        Returns:
            (B, T) for T prompts.

        Raises:
            NotSupportedError: the method scores by the cosine of embeddings alone.
        """
        raise NotSupportedError(f"{self.name} has no zero_shot_scores of its own")

    def implements(self, ability: str) -> bool:
        """Whether the method overrides an optional method of this class, such as ``embed_patches``."""
        return getattr(type(self), ability) is not getattr(PretrainModule, ability)

    def explain(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Maps worth looking at, by title: (B, 1, S, S) each in [0, 1]; empty where the method has none.

        By default the cosine of each cell with the study's own report, stretched over each image's range.
        """
        if not self.has_text:
            return {}
        try:
            patches = self.embed_patches(batch["image"])
        except NotSupportedError:
            return {}
        report = F.normalize(self.encode_tokens(batch["input_ids"], batch["attention_mask"]).float(), dim=-1)
        similarity = torch.einsum("bdhw,bd->bhw", patches, report)[:, None]
        low, high = similarity.amin((2, 3), keepdim=True), similarity.amax((2, 3), keepdim=True)
        stretched = (similarity - low) / (high - low).clamp_min(1e-12)
        size = batch["image"].shape[-1]
        return {"similarity to the report": F.interpolate(stretched, size=(size, size), mode="bilinear")}

    def contrast(
        self,
        image: Tensor,
        text: Tensor,
        *,
        temperature: float | Tensor,
        image_to_text: float = 1.0,
        text_to_image: float = 1.0,
    ) -> Tensor:
        """Image-text contrast over the global batch, with gradient through the other ranks' embeddings.

        See :func:`medvlp.losses.contrastive.image_text_contrast`. Where :attr:`global_contrast` is False (some
        official variants) each rank contrasts its own batch alone.

        Raises:
            ConfigError: a global batch of one pair, which has nothing to be contrasted with.
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

    # ---------------------------------------------------------------- tokenizer

    def attach_tokenizer(self, tokenizer: Any) -> None:
        """Sets the tokenizer.

        Args:
            tokenizer: a fast Hugging Face tokenizer.

        Raises:
            ConfigError: it has more entries than the text encoder has embeddings.
        """
        if len(tokenizer) > self.text_encoder.vocab_size:
            raise ConfigError(
                f"the tokenizer has {len(tokenizer)} entries, the text encoder {self.text_encoder.vocab_size}; set "
                f"text.vocab_size to at least {len(tokenizer)}, or use the encoder's own tokenizer"
            )
        self.tokenizer = tokenizer

    def _corpus_tokenizer(self, datamodule: Any) -> None:
        """Trains the WordPiece vocabulary on the training reports, on one rank, and hands it to all."""
        state: dict[str, Any] = {}
        if self.trainer.is_global_zero:
            texts = datamodule.training_texts()
            size, fold, least = (getattr(self.text_config, key) for key in ("vocab_size", "lowercase", "min_reports"))
            digest = hashlib.blake2b(f"{size} {fold} {least} {__version__}".encode(), digest_size=8)
            for text in texts:
                digest.update(text.encode())
            folder = Path(self.trainer.default_root_dir) / f"tokenizer-{digest.hexdigest()}"
            if (folder / "tokenizer.json").is_file():
                tokenizer = load_tokenizer(str(folder))
            else:
                tokenizer = train_wordpiece(texts, vocab_size=size, lowercase=fold, min_texts=least)
                tokenizer.save_pretrained(folder)
            state = tokenizer_state(tokenizer)
            rank_zero_info(f"vocabulary of {len(tokenizer)} word pieces from {len(texts)} reports: {folder}")
        self.attach_tokenizer(tokenizer_from_state(self.trainer.strategy.broadcast(state)))

    # ---------------------------------------------------------------- Lightning: set-up and training

    def configure_callbacks(self) -> list[L.Callback]:
        """The guards of every run, and the moving average where one is wanted."""
        callbacks: list[L.Callback] = [
            KeepTargets(),
            NonFiniteGuard(),
            SkippedItems(),
            UntrainedGuard(),
            *stop_guard(self.trainer),
        ]
        if self.ema_decay is not None and self.trainer.state.fn == "fit":
            callbacks.append(MovingAverage(self.ema_decay))
        return callbacks

    def setup(self, stage: str) -> None:
        """Meets the datamodule: tokenizer there and back, preprocessing and label names for the checkpoint."""
        if stage == "fit":
            checked_hyperparameters(type(self), self.hyperparameters())  # now, not when the checkpoint is loaded
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "attach_tokenizer"):
            return
        if self.has_text:
            train = getattr(datamodule, "train_set", None)
            if stage == "fit" and train is not None and not any(train.texts):
                raise ConfigError(
                    f"no text in the training part: {self.name} learns from pairs of image and text; set "
                    "data.init_args.task: pairs, or name a corpus with reports"
                )
            if self.tokenizer is None:
                self._corpus_tokenizer(datamodule)
            self._hand_over(datamodule)
        self.preprocess = dict(datamodule.preprocess)
        self.label_names = list(datamodule.label_names)
        if self.preprocess.get("size") != self.image_size:
            rank_zero_warn(
                f"images are {self.preprocess.get('size')} px, model.image_size is {self.image_size}: position tables "
                "are interpolated"
            )

    def on_fit_start(self) -> None:
        """Compiles the encoders where that is wanted.

        Each in place and not the module as a whole: names of weights stay as they are, and losses, logging and
        collectives stay outside of the graphs.
        """
        if self.compile_encoders:
            options = {"backend": self.compile_encoders} if isinstance(self.compile_encoders, str) else {}
            for encoder in (self.image_encoder, *([self.text_encoder] if self.has_text else [])):
                encoder.compile(**options)

    def _hand_over(self, datamodule: Any) -> None:
        if not self.has_text:
            return
        datamodule.attach_tokenizer(
            self.tokenizer, max_length=self.text_config.max_length, padding=self.text_config.padding
        )

    def configure_optimizers(self) -> Any:
        """Optimiser and schedule of :attr:`optim_config`."""
        optimizer = build_optimizer(self, self.optim_config)
        schedule = build_schedule(optimizer, self.optim_config, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": schedule} if schedule else optimizer

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seeds the step from (run seed, epoch, batch, rank), so that a resumed run draws what it would have drawn."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        torch.manual_seed(derive_seed(seed, self.current_epoch, batch_idx, self.global_rank))

    def encode(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """:meth:`forward` for training: in :attr:`contrastive_chunks` chunks, the outputs joined."""
        if self.contrastive_chunks == 1:
            return self(batch)
        return encode_in_chunks(self.forward, batch, self.contrastive_chunks, self)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Sum of :meth:`losses`; every term is logged as ``train/<term>``."""
        self._need_two(len(batch["image"]))  # before a batch norm meets a single pair, in words of its own
        terms = self.losses(batch, self.encode(batch))
        loss = total(terms)
        size = len(batch["image"])
        self.log("train/loss", loss.detach(), prog_bar=True, on_step=True, batch_size=size)
        self.log_dict({f"train/{k}": v.detach() for k, v in terms.items()}, on_step=True, batch_size=size)
        return loss

    def trunk(self) -> nn.Module:
        """The image encoder, for tasks to take away."""
        return self.image_encoder
