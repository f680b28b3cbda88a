"""Base of every pre-training method: the contract, the tokenizer, training, validation and inference."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from medvlp import compat, distributed
from medvlp.encoders.image import ImageEncoder, ImageEncoderConfig
from medvlp.encoders.text import TextEncoder, TextEncoderConfig
from medvlp.errors import CheckpointError, ConfigError, NotSupportedError, check_range
from medvlp.losses.contrastive import image_text_contrast
from medvlp.losses.precision import total
from medvlp.methods import inference
from medvlp.methods.embeddings import tokenizer_of, unit_length
from medvlp.methods.payload import checked_hyperparameters, hyperparameters_of, payload_of, read_payload
from medvlp.methods.vocabulary import corpus_tokenizer
from medvlp.metrics.retrieval import recall_columns, retrieval_measures, text_groups
from medvlp.metrics.samples import Samples, SampleStore
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
    :meth:`forward`, :meth:`losses`, :meth:`encode_images` and :meth:`encode_tokens`. The base class handles tokenizer,
    optimisation, logging, gathering across ranks, validation (zero-shot AUROC and retrieval) and self-contained
    checkpoints. All ``__init__`` arguments must be plain values or dataclasses of them. A method accepts the arguments
    below as ``**options`` and passes them on.

    Args:
        image: the image encoder.
        text: the text encoder.
        optim: optimiser and schedule.
        image_size: side of the training images in pixels.
        prompts: zero-shot prompt set used in validation, by name or JSON file; None for none.
        contrastive_chunks: number of chunks for gradient caching (:mod:`medvlp.training.chunks`): larger batches per
            device for a second forward pass. :meth:`forward` must encode each pair independently; what mixes the pairs
            of a batch belongs in :meth:`losses`. Batch norms in train mode use the statistics of the chunk.
        compile: ``torch.compile`` the encoders when training starts: True, or the name of a backend.
        ema_decay: validate and save a moving average of the weights with this decay (see
            :class:`~medvlp.training.averaging.MovingAverage`); None disables it.
    """

    name: ClassVar[str] = ""
    """The method's name: its entry point in the group ``medvlp.methods``."""

    has_text: ClassVar[bool] = True
    """Whether the method encodes text; if not, it has no text encoder and needs no tokenizer."""

    feature_pool: Any = "mean"
    """Input of a classifier: "mean" of the encoder's deepest level, or the class "token"."""

    global_contrast: bool = True
    """Whether :meth:`contrast` sees the batches of all ranks (with gradient) or only this rank's."""

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
        self.evaluation: dict[str, Any] = {}  # of the last epoch: studies, zero_shot (finding → AUROC), logged scores
        self.pairs = SampleStore(["image", "text", "label", "same_text"])

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Encode a batch (:mod:`medvlp.datamodules.base`) once.

        Returns:
            At least ``image`` and ``text``, both (B, d) in the joint space, and whatever :meth:`losses` needs.
        """

    @abstractmethod
    def losses(self, batch: dict[str, Any], outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return named, weighted loss terms from the outputs of :meth:`forward`, which is called if they are None."""

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, S, S) into the joint space, (B, d), unnormalised."""

    @abstractmethod
    def encode_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode reports, (N, L) ids and mask, into the joint space, (N, d), unnormalised."""

    def embed_image(self, images: Tensor) -> Tensor:
        """Return L2-normalised embeddings (B, d) of images (B, 3, S, S), preprocessed as in :attr:`preprocess`."""
        return unit_length(self.encode_images(images), self)

    def embed_text(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """Return L2-normalised embeddings (N, d) of N texts, encoded ``chunk`` at a time."""
        return torch.cat([unit_length(part, self) for part in self._encode_texts(texts, chunk)])

    def encode_texts(self, texts: Sequence[str], chunk: int = 256) -> Tensor:
        """As :meth:`embed_text`, but unnormalised, for rules that compare lengths too (MaCo): (N, d) float32."""
        return torch.cat([part.float() for part in self._encode_texts(texts, chunk)])

    def _encode_texts(self, texts: Sequence[str], chunk: int) -> Iterator[Tensor]:
        if not self.has_text:
            raise NotSupportedError(f"{self.name} has no text encoder: it cannot embed texts")
        tokenizer, config = tokenizer_of(self), self.text_config
        options = {"padding": config.padding, "truncation": True, "max_length": config.max_length}
        for start in range(0, len(texts), chunk):
            tokens = tokenizer(list(texts[start : start + chunk]), return_tensors="pt", **options).to(self.device)
            yield self.encode_tokens(tokens["input_ids"], tokens["attention_mask"])

    def embed_patches(self, images: Tensor) -> Tensor:
        """Return L2-normalised embeddings of the cells of images: (B, 3, S, S) → (B, d, h, w)."""
        raise NotSupportedError(f"{self.name} has no patch embeddings in the joint space")

    def encode_patches(self, images: Tensor) -> Tensor:
        """As :meth:`embed_patches` (the default), but unnormalised where a protocol needs it (MaCo's grounding)."""
        return self.embed_patches(images)

    def patch_weights(self) -> Tensor:
        """Return the weight of each cell in grounding, (h, w), whatever the image (MaCo)."""
        raise NotSupportedError(f"{self.name} has no patch weights")

    def prepare_prompts(self, texts: Sequence[str]) -> Any:
        """Return the ``prompts`` of :meth:`zero_shot_scores`, computed once for all images; by default the list."""
        return list(texts)

    def zero_shot_scores(self, images: Tensor, prompts: Any) -> Tensor:
        """Score images (B, 3, S, S) with T prepared prompts by the method's own similarity (GLoRIA's words): (B, T)."""
        raise NotSupportedError(f"{self.name} has no zero_shot_scores of its own")

    def implements(self, ability: str) -> bool:
        """Return whether the method overrides an optional method of this class, such as ``embed_patches``."""
        return getattr(type(self), ability) is not getattr(PretrainModule, ability)

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

        See :func:`medvlp.losses.contrastive.image_text_contrast`. Without :attr:`global_contrast` (some official
        variants) each rank contrasts only its own batch.
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

    def attach_tokenizer(self, tokenizer: Any) -> None:
        """Set the (fast) tokenizer; raise a ConfigError if it has more entries than the text encoder's vocabulary."""
        if len(tokenizer) > self.text_encoder.vocab_size:
            raise ConfigError(
                f"the tokenizer has {len(tokenizer)} entries, the text encoder {self.text_encoder.vocab_size}; set "
                f"text.vocab_size to at least {len(tokenizer)}, or use the encoder's own tokenizer"
            )
        self.tokenizer = tokenizer

    def setup(self, stage: str) -> None:
        """Exchange tokenizer, preprocessing and label names with the data module."""
        if stage == "fit":
            checked_hyperparameters(type(self), self.hyperparameters())  # fail now rather than on load
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(datamodule, "attach_tokenizer"):
            return
        if self.has_text:
            train = getattr(datamodule, "train_set", None)
            if stage == "fit" and train is not None and not any(train.texts):
                raise ConfigError(
                    f"no text in the training part: {self.name} trains on pairs of image and text; set "
                    "data.init_args.task: pairs, or use a corpus with reports"
                )
            if self.tokenizer is None:
                self.attach_tokenizer(corpus_tokenizer(datamodule.training_texts, self.text_config, self.trainer))
            self._give_tokenizer(datamodule)
        self.preprocess = dict(datamodule.preprocess)
        self.label_names = list(datamodule.label_names)
        if self.preprocess.get("size") != self.image_size:
            sizes = f"images are {self.preprocess.get('size')} px, model.image_size is {self.image_size}"
            rank_zero_warn(f"{sizes}: position tables are interpolated")

    def _give_tokenizer(self, datamodule: Any) -> None:
        if self.has_text and hasattr(datamodule, "attach_tokenizer"):
            text = self.text_config
            datamodule.attach_tokenizer(self.tokenizer, max_length=text.max_length, padding=text.padding)

    def configure_callbacks(self) -> list[L.Callback]:
        """Add the moving average if ``ema_decay`` is set."""
        callbacks = super().configure_callbacks()
        if self.ema_decay is not None and self.trainer.state.fn == "fit":
            callbacks.append(MovingAverage(self.ema_decay))
        return callbacks

    def on_fit_start(self) -> None:
        """Compile the encoders if ``compile`` is set."""
        # In place, each by itself: weights keep their names; losses, logging and collectives stay outside the graphs.
        if self.compile_encoders:
            options = {"backend": self.compile_encoders} if isinstance(self.compile_encoders, str) else {}
            for encoder in (self.image_encoder, *([self.text_encoder] if self.has_text else [])):
                encoder.compile(**options)

    def encode(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Call :meth:`forward` in ``contrastive_chunks`` chunks and concatenate the outputs."""
        if self.contrastive_chunks == 1:
            outputs: dict[str, Tensor] = self(batch)
            return outputs
        return encode_in_chunks(self.forward, batch, self.contrastive_chunks, self)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the sum of :meth:`losses`; log each term as ``train/<term>``."""
        size = len(batch["image"])
        self._need_two(size)  # before a batch norm fails on a single pair, with a less helpful error
        return self.sum_and_log(self.losses(batch, self.encode(batch)), size)

    def zero_shot_auroc(self, image: Tensor, label: Tensor) -> dict[str, float]:
        """Compute zero-shot AUROCs and their mean from embeddings (N, d) and labels (N, K); empty without prompts."""
        if self.prompts is None or self.tokenizer is None:
            return {}
        return zero_shot_auroc(image, label, self.label_names, self.prompts.among(self.label_names), self.embed_text)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log the losses and collect the embeddings."""
        self._evaluate_batch(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log zero-shot AUROC per finding and retrieval R@1/5/10 on the held-out pairs."""
        self._evaluate_epoch("val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As :meth:`validation_step`."""
        self._evaluate_batch(batch, "test")

    def on_test_epoch_end(self) -> None:
        """As :meth:`on_validation_epoch_end`, on the test split."""
        self._evaluate_epoch("test")

    def _evaluate_batch(self, batch: dict[str, Any], stage: str) -> None:
        outputs, size = self(batch), len(batch["image"])
        if size > 1:  # a last batch of one pair has no contrast
            terms = self.losses(batch, outputs)
            for key, value in {"loss": total(terms), **terms}.items():
                self.log(f"{stage}/{key}", value, sync_dist=True, batch_size=size, prog_bar=key == "loss")
        if self.has_text:
            self.pairs.update(
                batch["index"],
                image=outputs["image"].float(),
                text=outputs["text"].float(),
                label=batch["label"].float(),
                same_text=text_groups(batch["text"]).to(self.device),
            )

    def _evaluate_epoch(self, stage: str) -> None:
        self.evaluation = {}
        if not self.has_text:
            return
        samples = self.pairs.compute()
        self.pairs.reset()
        image = samples["image"]
        columns = recall_columns(image, samples["text"], samples["same_text"])
        recalls = retrieval_measures(Samples(samples.index, columns))
        scores = {name: float(value) for name, value in recalls.items() if not name.startswith("chance/")}
        zero_shot = self.zero_shot_auroc(image, samples["label"])
        scores.update({f"auroc/{finding}": value for finding, value in zero_shot.items()})
        if not self.trainer.sanity_checking:
            # the store has gathered, so all ranks agree; sync_dist only silences Lightning's warning
            self.log_dict({f"{stage}/{name}": value for name, value in scores.items()}, sync_dist=True)
            if "auroc/mean" in scores:
                self.log(f"{stage}/auroc_mean", scores["auroc/mean"], prog_bar=True, sync_dist=True)
        self.evaluation = {"studies": len(image), "zero_shot": zero_shot, **scores}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return ids, dataset rows and L2-normalised embeddings; ``text`` only if the method encodes text."""
        outputs = self(batch)
        sides = ("image", "text") if self.has_text else ("image",)
        vectors = {side: unit_length(outputs[side], self) for side in sides}
        return {"id": batch["id"], "index": batch["index"], **vectors}

    zero_shot = inference.zero_shot
    ground = inference.ground
    explain = inference.explain

    hyperparameters = hyperparameters_of
    payload = payload_of

    def take_payload(self, checkpoint: dict[str, Any]) -> None:
        """Restore tokenizer, preprocessing and label names; without a trainer also the prompts."""
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
        """Write a checkpoint for :func:`medvlp.load`; it cannot resume training."""
        weights = {name: value.detach().clone() for name, value in self.state_dict().items()}
        checkpoint: dict[str, Any] = {"state_dict": weights, "epoch": 0, "global_step": 0}
        checkpoint["pytorch-lightning_version"] = L.__version__
        self.on_save_checkpoint(checkpoint)
        write_checkpoint(checkpoint, path)
