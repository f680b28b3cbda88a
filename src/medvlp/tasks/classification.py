"""Linear probes and fine-tuning."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from medvlp.errors import ConfigError, DataError, check_choice
from medvlp.losses.precision import exact
from medvlp.metrics.bootstrap import Measures
from medvlp.metrics.classification import best_f1_thresholds, classification_measures
from medvlp.metrics.samples import Samples, SampleStore
from medvlp.tasks.base import Features, Task, TrainedProtocol, protocol_settings, seeded
from medvlp.tasks.encoder import EncoderSource, Pool, optim_from
from medvlp.training.optim import OptimConfig, adam_eps, build_schedule, parameter_groups

Labels = Literal["multilabel", "multiclass"]
Head = Literal["linear", "norm_linear"]


@dataclass(frozen=True, kw_only=True)
class _Protocol(TrainedProtocol):
    head: Head = "linear"
    pool: Pool = "auto"
    lrs: tuple[float, ...] = ()


_MGCA = _Protocol(optim=OptimConfig(lr=5e-4, weight_decay=1e-6, decay_all=True, schedule="constant"))
_GLORIA = OptimConfig(optimizer="adam", lr=1e-4, weight_decay=0.0, betas=(0.5, 0.999), schedule="plateau")
_MEDKLIP = OptimConfig(lr=1e-5, weight_decay=0.02, schedule="warmup_cosine", warmup=2000, min_lr=1e-5)
_MACO = OptimConfig(optimizer="sgd", lr=3e-3, weight_decay=0.0, schedule="warmup_cosine", warmup=50)
PROTOCOLS: dict[str, _Protocol] = {
    "linear": _Protocol(
        optim=OptimConfig(lr=1e-3, weight_decay=1e-6, decay_all=True, schedule="constant"),
        lrs=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    ),
    "linear_mgca": _MGCA,
    "linear_g2d": _MGCA,
    "linear_gloria": _Protocol(encoder_mode="train", optim=_GLORIA),
    "finetune_g2d": _Protocol(
        frozen=False, optim=OptimConfig(lr=1e-4, weight_decay=0.01, decay_all=True, schedule="constant")
    ),
    "finetune_medklip": _Protocol(frozen=False, optim=_MEDKLIP),
    "finetune_maco": _Protocol(frozen=False, head="norm_linear", pool="mean", optim=_MACO),
    "finetune_benchx": _Protocol(frozen=False, optim=dataclasses.replace(_MACO, optimizer="adam", lr=1e-5)),
}
"""Protocols by name; see :class:`Classification`."""


class Classification(Task):
    """A linear head on the pooled feature before the projection to the joint space.

    ================= ======================================================================================
    protocol          settings
    ================= ======================================================================================
    linear            ours: frozen in eval mode, AdamW without schedule, the best of six learning rates on the
                      validation part
    linear_mgca       MGCA's code: frozen in eval mode, AdamW 5e-4, weight decay 1e-6, no schedule
    linear_g2d        G2D's paper, which follows it (its batch is 8)
    linear_gloria     GLoRIA's code: gradients off but batch norms in train mode; Adam 1e-4 (RSNA: 5e-4), halved when
                      the validation loss stalls
    finetune_g2d      G2D's CXR14: all weights, AdamW 1e-4 (weight decay not printed: AdamW's own 0.01)
    finetune_medklip  MedKLIP's code: all weights, AdamW 1e-5 constant after 2,000 steps, weight decay 0.02
    finetune_maco     MaCo's and MRM's code: all weights, mean of the patch tokens, layer norm, linear from N(0, 2e-5);
                      SGD, warm-up and cosine; learning rates and steps by corpus and fraction are in the configs
    finetune_benchx   BenchX' code: all weights, Adam, 50 warm-up steps, cosine
    ================= ======================================================================================

    Unknown labels (NaN) are ignored in loss and metrics. Metrics are those of
    :func:`medvlp.metrics.classification.classification_measures`: F1 and accuracy at the thresholds with the best F1 on
    the validation part, and beside them the papers' own, which choose on the test part.

    Args:
        encoder: source of the encoder.
        protocol: see the table.
        labels: "multilabel" (a sigmoid per label; one label is binary) or "multiclass" (softmax; the label columns are
            one-hot, as COVIDx's three classes).
        pool: "mean", class "token", or "auto".
        head: "linear" or "norm_linear".
        frozen: see :class:`~medvlp.tasks.base.Task`.
        encoder_mode: as above.
        optim: as above; its ``lr`` is ignored if ``lrs`` is given.
        lrs: train one head per learning rate at once and keep the one with the best validation AUROC (accuracy, if
            multiclass). Only with a frozen encoder; [] uses the ``lr`` of ``optim``.
        dropout: before the head.
        **options: of :class:`~medvlp.tasks.base.Task`: features, views, features_dir, resamples, image_size, …
    """

    task = "classification"
    exact_parts = ("thresholds",)
    chosen: Tensor
    thresholds: Tensor

    def __init__(
        self,
        encoder: EncoderSource | None = None,
        protocol: str = "linear",
        labels: Labels = "multilabel",
        pool: Pool | None = None,
        head: Head | None = None,
        frozen: bool | None = None,
        encoder_mode: Literal["eval", "train"] | None = None,
        optim: OptimConfig | None = None,
        lrs: list[float] | None = None,
        dropout: float = 0.0,
        image_size: int = 224,
        features: Features = "cached",
        **options: Any,
    ) -> None:
        settings = protocol_settings(
            "classification",
            PROTOCOLS,
            protocol,
            pool=pool,
            head=head,
            frozen=frozen,
            encoder_mode=encoder_mode,
            optim=optim_from(optim),
            lrs=[] if lrs is None and optim is not None else lrs,
        )
        check_choice("labels", labels, get_args(Labels))
        super().__init__(
            encoder,
            protocol=protocol,
            image_size=image_size,
            frozen=settings.frozen,
            encoder_mode=settings.encoder_mode,
            optim=settings.optim,
            features=features,
            **options,
        )
        self.labels = labels
        self.pool: Pool = settings.pool
        self.extracts = f"pooled {self.pool} {self.encoder.pool_of_method}"
        self.head_kind: Head = settings.head
        self.lrs = tuple(settings.lrs) or (self.optim_config.lr,)
        self.optim_config = dataclasses.replace(self.optim_config, lr=self.lrs[0])
        if len(self.lrs) > 1 and not self.frozen:
            raise ConfigError("several learning rates (lrs) at once need a frozen encoder; set frozen: true")
        self.dropout = dropout
        self.heads = nn.ModuleList()
        self.names: list[str] = []

    def setup(self, stage: str) -> None:
        """Override: build the heads for the labels of the data module first."""
        if not len(self.heads):
            self.names = list(self._datamodule().label_names)
            if not self.names:
                raise DataError("classification needs labels, and this data module has none: choose its classes")
            if self.labels == "multiclass" and len(self.names) < 2:
                raise ConfigError(f"multiclass needs one label column per class, and there is only {self.names[0]}")
            self.setup_heads(self.names)
        super().setup(stage)

    def _check_training(self, train: Any) -> None:
        known = train.labels.isfinite()
        if self.labels == "multiclass":
            known = known.all(1, keepdim=True).expand_as(known)
        if not known.any():
            raise ConfigError(
                f"no label in the training part: of its {len(train)} images none has a known value of "
                f"{', '.join(self.names)}; check the table, the classes, and what becomes of uncertain labels"
            )
        if nothing := [name for name, some in zip(self.names, known.any(0).tolist(), strict=True) if not some]:
            rank_zero_warn(f"no label in the training part for {', '.join(nothing)}: nothing is learnt of them")

    def setup_heads(self, names: Sequence[str]) -> None:
        """Build the heads for named labels; their weights depend only on the run's seed."""
        self.names = list(names)
        with seeded(1):
            self.heads.extend(self._head(len(names)) for _ in self.lrs)
        self.register_buffer("chosen", torch.zeros((), dtype=torch.long))
        self.register_buffer("thresholds", torch.full((len(names),), 0.5, dtype=torch.float64))

    def _head(self, classes: int) -> nn.Module:
        width = self.encoder.width
        linear = nn.Linear(width, classes)
        norm: nn.Module = nn.Identity()
        if self.head_kind == "norm_linear":
            nn.init.trunc_normal_(linear.weight, std=2e-5)
            nn.init.zeros_(linear.bias)
            norm = nn.LayerNorm(width, eps=1e-6)
        return nn.Sequential(norm, nn.Dropout(self.dropout), linear)

    def configure_optimizers(self) -> Any:
        """Override: several heads have a learning rate each."""
        if len(self.lrs) == 1:
            return super().configure_optimizers()
        config = self.optim_config
        groups = [
            {**group, "lr": lr}
            for lr, head in zip(self.lrs, self.heads, strict=True)
            for group in parameter_groups(head, config.weight_decay, config.decay_all, config.decay_positions)
        ]
        optimizer: Optimizer
        if config.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=0.9)
        else:
            kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
            optimizer = kind(groups, betas=config.betas, eps=adam_eps(groups))
        schedule = build_schedule(optimizer, config, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": schedule} if schedule else optimizer

    def extract(self, images: Tensor) -> Sequence[Tensor]:
        """Return the pooled feature, (B, C)."""
        return [self.encoder.pooled(images, self.pool)]

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """Compute (B, H, K) logits of H heads."""
        (feature,) = self.features(batch)
        return torch.stack([head(feature) for head in self.heads], 1)

    def per_head_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Average the loss of each head over the known labels: (N, H, K) logits and (N, K) labels → (H,)."""
        known = labels.isfinite()
        if self.labels == "multiclass":
            complete = known.all(1)
            target = labels.nan_to_num().argmax(1)[:, None].expand(-1, logits.shape[1])
            losses = F.cross_entropy(exact(logits)[0].transpose(1, 2), target, reduction="none")
            return (losses * complete[:, None]).sum(0) / complete.sum().clamp_min(1)
        logits, target = exact(logits, labels.nan_to_num()[:, None].expand_as(logits))
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (losses * known[:, None]).sum((0, 2)) / known.sum().clamp_min(1)

    def loss(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the cross-entropy; several heads, which share no weight, are summed."""
        return {"cross_entropy": self.per_head_loss(self.logits(batch), batch["label"]).sum()}

    def _choosing(self) -> bool:
        return bool(self.trainer.validating or self.trainer.sanity_checking or self.trainer.state.fn == "fit")

    def store(self) -> SampleStore:
        """Logits of all heads while one is being chosen, then its probabilities; and the labels."""
        return SampleStore(["logits" if self._choosing() else "score", "label"])

    def columns(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`store`."""
        logits = self.logits(batch).float()
        if self._choosing():
            return {"logits": logits, "label": batch["label"]}
        chosen = logits.index_select(1, self.chosen[None])[:, 0]
        return {"score": self._probability(chosen), "label": batch["label"]}

    def _probability(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) if self.labels == "multiclass" else logits.sigmoid()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Override: the loss is that of the head chosen at the end of the epoch."""
        self._collect("validate", batch)

    def validated(self, samples: Samples) -> None:
        """Choose the head and the thresholds, and log its loss as ``val/loss``."""
        logits, labels = samples["logits"], samples["label"]
        best, best_value = 0, -1.0
        metric = "accuracy" if self.labels == "multiclass" else "auroc"
        for head in range(len(self.heads)):
            value = float(super().measures(samples.with_columns(score=self._probability(logits[:, head])))[metric])
            if value > best_value:  # False for NaN (no class with a positive and a negative)
                best, best_value = head, value
        self.chosen.fill_(best)
        self.thresholds.copy_(best_f1_thresholds(self._probability(logits[:, best]), labels).nan_to_num(0.5))
        self.log("val/loss", self.per_head_loss(logits, labels)[best].to(self.device), prog_bar=True, sync_dist=True)

    def measures(self, samples: Samples, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Override: use the chosen head."""
        if "logits" in samples.columns:
            samples = samples.with_columns(score=self._probability(samples["logits"][:, int(self.chosen)]))
        return super().measures(samples, weights)

    @classmethod
    def measures_from(cls, facts: Mapping[str, Any]) -> Measures:
        """See :func:`medvlp.metrics.classification.classification_measures`."""
        return partial(
            classification_measures,
            names=facts["classes"],
            thresholds=torch.tensor(facts["thresholds"], dtype=torch.float64),
            multiclass=facts["labels"] == "multiclass",
        )

    def facts(self) -> dict[str, Any]:
        """Classes, kind of labels, learning rate of the chosen head, thresholds."""
        return {
            "classes": self.names,
            "labels": self.labels,
            "lr": self.lrs[int(self.chosen)],
            # Unrounded: scores of the test part can be equal to them.
            "thresholds": self.thresholds.tolist(),
        }
