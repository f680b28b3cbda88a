"""What every pre-training method is: the contract, the optimisation, the validation, the checkpoint."""

import dataclasses
import hashlib
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
from medvlp.errors import CheckpointError, ConfigError, NotSupportedError
from medvlp.losses.contrastive import image_text_contrast
from medvlp.methods.guards import NonFiniteGuard, SkippedItems
from medvlp.methods.optim import OptimConfig, build_optimizer, build_schedule
from medvlp.methods.plain import RUN_FOLDER, config_from, plain, swap_folder
from medvlp.metrics.embeddings import EmbeddingStore
from medvlp.metrics.retrieval import recall_at_k
from medvlp.metrics.zero_shot import zero_shot_auroc
from medvlp.prompts import PromptSet, available, load_prompts
from medvlp.seeding import derive_seed
from medvlp.text import load_tokenizer, tokenizer_from_state, tokenizer_state, train_wordpiece

CHECKPOINT_KEY = "medvlp"
"""Where a checkpoint keeps what :func:`medvlp.load` needs beside the weights."""


class PretrainModule(L.LightningModule, ABC):
    """Base of every pre-training method.

    A method sets :attr:`name`, builds its heads in ``__init__`` after ``super().__init__(...)``, and implements
    :meth:`forward`, :meth:`losses`, :meth:`encode_images` and :meth:`encode_tokens`. The base class tokenises, sums,
    logs, optimises, gathers across ranks, validates by zero-shot AUROC and retrieval, and makes checkpoints that load
    without anything else. All ``__init__`` arguments must be plain values or dataclasses of them.

    Args:
        image: the image encoder.
        text: the text encoder.
        optim: optimiser and schedule.
        image_size: side of the training images in pixels.
        prompts: zero-shot prompt set used in validation, by name or JSON file; None for none.
    """

    name: ClassVar[str] = ""
    """The method's name: its entry point in the group ``medvlp.methods``."""

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
    ) -> None:
        super().__init__()
        # Collects the arguments of the subclass as well, for the loggers and for the checkpoint.
        self.save_hyperparameters()
        self.image_config: ImageEncoderConfig = config_from(ImageEncoderConfig, image)
        self.text_config: TextEncoderConfig = config_from(TextEncoderConfig, text)
        self.optim_config: OptimConfig = config_from(OptimConfig, optim)
        self.image_size = image_size
        self.image_encoder = ImageEncoder(self.image_config, image_size)
        self.text_encoder = TextEncoder(self.text_config)
        self.prompts = load_prompts(prompts) if prompts else None
        self.tokenizer: Any = None
        if self.text_config.pretrained and self.text_config.architecture is None:
            self.attach_tokenizer(load_tokenizer(self.text_config.pretrained))
        self.preprocess: dict[str, Any] = {}
        self.label_names: list[str] = []
        self.evaluation: dict[str, Any] = {}
        self._store = EmbeddingStore()

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
        return F.normalize(self.encode_images(images).float(), dim=-1)

    def embed_text(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """L2-normalised embeddings of texts: N strings → (N, d).

        Args:
            texts: reports, sentences or prompts.
            chunk: texts encoded at once.

        Raises:
            ConfigError: no tokenizer yet.
        """
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
            parts.append(F.normalize(self.encode_tokens(ids, mask).float(), dim=-1))
        return torch.cat(parts)

    def embed_patches(self, images: Tensor) -> Tensor:
        """L2-normalised embeddings of the cells of an image: (B, 3, S, S) → (B, d, h, w).

        Raises:
            NotSupportedError: the method has none.
        """
        raise NotSupportedError(f"{self.name} has no patch embeddings in the joint space")

    def explain(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Maps worth looking at, by title: (B, 1, S, S) each in [0, 1]; empty where the method has none.

        By default the cosine of each cell with the study's own report, stretched over each image's range.
        """
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
            texts = datamodule.corpus()
            size, fold = self.text_config.vocab_size, self.text_config.lowercase
            digest = hashlib.blake2b(f"{size} {fold} {__version__}".encode(), digest_size=8)
            for text in texts:
                digest.update(text.encode())
            folder = Path(self.trainer.default_root_dir) / f"tokenizer-{digest.hexdigest()}"
            if (folder / "tokenizer.json").is_file():
                tokenizer = load_tokenizer(str(folder))
            else:
                tokenizer = train_wordpiece(texts, vocab_size=size, lowercase=fold)
                tokenizer.save_pretrained(folder)
            state = tokenizer_state(tokenizer)
            rank_zero_info(f"vocabulary of {len(tokenizer)} word pieces from {len(texts)} reports: {folder}")
        self.attach_tokenizer(tokenizer_from_state(self.trainer.strategy.broadcast(state)))

    # ---------------------------------------------------------------- Lightning: set-up and training

    def configure_callbacks(self) -> list[L.Callback]:
        """The guards of every run."""
        return [NonFiniteGuard(), SkippedItems()]

    def setup(self, stage: str) -> None:
        """Meets the datamodule: tokenizer there and back, preprocessing and label names for the checkpoint."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None or not hasattr(datamodule, "attach_tokenizer"):
            return
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

    def _hand_over(self, datamodule: Any) -> None:
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

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Sum of :meth:`losses`; every term is logged as ``train/<term>``."""
        self._need_two(len(batch["image"]))  # before a batch norm meets a single pair, in words of its own
        terms = self.losses(batch, self(batch))
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        size = len(batch["image"])
        self.log("train/loss", loss.detach(), prog_bar=True, on_step=True, batch_size=size)
        self.log_dict({f"train/{k}": v.detach() for k, v in terms.items()}, on_step=True, batch_size=size)
        return loss

    # ---------------------------------------------------------------- Lightning: validation, test, prediction

    def _evaluation_step(self, batch: dict[str, Any], stage: str) -> None:
        outputs = self(batch)
        size = len(batch["image"])
        if size > 1:  # a last batch of one has no contrast
            terms = self.losses(batch, outputs)
            total = torch.stack([term.float() for term in terms.values()]).sum()
            for key, value in {"loss": total, **terms}.items():
                self.log(f"{stage}/{key}", value, sync_dist=True, batch_size=size, prog_bar=key == "loss")
        groups = [int.from_bytes(hashlib.blake2b(t.encode(), digest_size=7).digest(), "big") for t in batch["text"]]
        self._store.update(
            outputs["image"],
            outputs["text"],
            batch["label"],
            torch.tensor(groups, device=self.device),
            batch["index"],
        )

    def _evaluation_end(self, stage: str) -> None:
        everything = self._store.compute()
        self._store.reset()
        image, text = everything["image"], everything["text"]
        results: dict[str, float] = {}
        for direction, queries, keys in (("i2t", image, text), ("t2i", text, image)):
            for k, value in recall_at_k(queries, keys, groups=everything["group"]).items():
                results[f"recall@{k}/{direction}"] = value
        zero_shot = self.zero_shot_auroc(image, everything["label"])
        results.update({f"auroc/{finding}": value for finding, value in zero_shot.items()})
        self.evaluation = {"studies": len(image), "zero_shot": zero_shot, **results}
        if not self.trainer.sanity_checking:
            # Equal on all ranks already, since the store gathers; the flag only tells Lightning so.
            self.log_dict({f"{stage}/{k}": v for k, v in results.items()}, sync_dist=True)
            if "auroc/mean" in results:
                self.log(f"{stage}/auroc_mean", results["auroc/mean"], prog_bar=True, sync_dist=True)

    def zero_shot_auroc(self, image: Tensor, label: Tensor) -> dict[str, float]:
        """AUROC of the positive against the negative prompts of each finding.

        Args:
            image: (N, d) image embeddings.
            label: (N, K), columns :attr:`label_names`.

        Returns:
            Finding to AUROC for each finding that has prompts and both a positive and a negative sample, and "mean"
            over them; empty without prompts or labels.
        """
        if self.prompts is None or self.tokenizer is None:
            return {}
        return zero_shot_auroc(image, label, self.label_names, self.prompts.prompts, self.embed_text)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Losses, and embeddings for the epoch's end."""
        self._evaluation_step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Zero-shot AUROC per finding and retrieval R@1/5/10 on the held-out pairs."""
        self._evaluation_end("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As :meth:`validation_step`, on the test split."""
        self._evaluation_step(batch, "test")

    def on_test_epoch_end(self) -> None:
        """As :meth:`on_validation_epoch_end`."""
        self._evaluation_end("test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Ids, dataset rows and L2-normalised embeddings of a batch."""
        outputs = self(batch)
        return {
            "id": batch["id"],
            "index": batch["index"],
            "image": F.normalize(outputs["image"].float(), dim=-1),
            "text": F.normalize(outputs["text"].float(), dim=-1),
        }

    # ---------------------------------------------------------------- checkpoints

    def hyperparameters(self) -> dict[str, Any]:
        """The ``__init__`` arguments as plain values, with encoders that build without hub or files."""
        wanted = inspect.signature(type(self).__init__).parameters
        values = {key: plain(value) for key, value in self.hparams.items() if key in wanted}
        values["image"] = plain(dataclasses.replace(self.image_config, pretrained=False, weights=None))
        values["text"] = plain(
            dataclasses.replace(self.text_config, pretrained=None, architecture=self.text_encoder.architecture)
        )
        if values.get("prompts") not in available():  # a file of this machine; the checkpoint holds its content
            values["prompts"] = None
        return {key: value for key, value in values.items() if key in wanted}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves only plain hyper-parameters, weights and the tokenizer in the checkpoint."""
        if self.tokenizer is None:
            raise CheckpointError("a checkpoint needs the tokenizer: fit with a medvlp datamodule, or attach one")
        for key in [key for key in checkpoint if key.startswith("datamodule_hyper") or key == "hparams_name"]:
            del checkpoint[key]
        checkpoint["hyper_parameters"] = self.hyperparameters()
        checkpoint[CHECKPOINT_KEY] = {
            "method": self.name,
            "version": __version__,
            "hyperparameters": checkpoint["hyper_parameters"],
            "tokenizer": tokenizer_state(self.tokenizer),
            "preprocess": plain(self.preprocess),
            "label_names": list(self.label_names),
            "prompts": plain(self.prompts),
        }
        if getattr(self, "_trainer", None) is not None:
            folder = os.path.realpath(self.trainer.default_root_dir)
            checkpoint["callbacks"] = swap_folder(checkpoint.get("callbacks", {}), folder, RUN_FOLDER)
        # torch.compile wraps modules and would put its marker into every name.
        checkpoint["state_dict"] = {
            key.replace("_orig_mod.", ""): value for key, value in checkpoint["state_dict"].items()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the tokenizer, preprocessing and label names back."""
        payload = checkpoint.get(CHECKPOINT_KEY)
        if payload is None:
            raise CheckpointError(
                f"{self._checkpoint_path()}this is not a medvlp checkpoint: it has no tokenizer and no method name"
            )
        if payload["method"] != self.name:
            raise CheckpointError(
                f"{self._checkpoint_path()}the checkpoint is of method {payload['method']!r}, not {self.name!r}; use "
                "the config.yaml of the run that wrote it"
            )
        self.attach_tokenizer(tokenizer_from_state(payload["tokenizer"]))
        self.preprocess, self.label_names = dict(payload["preprocess"]), list(payload["label_names"])
        trainer = getattr(self, "_trainer", None)
        if trainer is None and self.prompts is None and payload.get("prompts"):
            stored = payload["prompts"]
            sides = {finding: (tuple(first), tuple(second)) for finding, (first, second) in stored["prompts"].items()}
            self.prompts = PromptSet(stored["name"], stored["version"], sides)
        if trainer is not None:
            folder = os.path.realpath(trainer.default_root_dir)
            checkpoint["callbacks"] = swap_folder(checkpoint.get("callbacks", {}), RUN_FOLDER, folder)
        if trainer is not None and hasattr(getattr(trainer, "datamodule", None), "attach_tokenizer"):
            self._hand_over(trainer.datamodule)

    def _checkpoint_path(self) -> str:
        """For messages: the file that the trainer is loading, with a colon, or nothing."""
        path = getattr(getattr(self, "_trainer", None), "ckpt_path", None)
        return f"{path}: " if path else ""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As always, but weights that do not fit are a deliberate error.

        Raises:
            CheckpointError: names or shapes differ.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            raise CheckpointError(
                f"{self._checkpoint_path()}weights do not fit {self.name} as it is configured: "
                f"{' '.join(str(error).split())[:300]}; use the config.yaml of the run that wrote them"
            ) from error

    def trunk(self) -> nn.Module:
        """The image encoder, for tasks to take away."""
        return self.image_encoder
