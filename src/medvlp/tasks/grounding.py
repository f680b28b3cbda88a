"""Zero-shot grounding: localisation of phrases in images."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from medvlp import viz
from medvlp.errors import ConfigError, DataError, NotSupportedError, check_choice
from medvlp.methods.embeddings import unit_length
from medvlp.metrics.bootstrap import Measures
from medvlp.metrics.grounding import COLUMNS, THRESHOLDS, grounding_measures, grounding_statistics
from medvlp.metrics.samples import Samples, SampleStore
from medvlp.prompts import PromptSet, load_prompts
from medvlp.scoring.heatmaps import Interpolation, centre_prior, min_max, similarity_maps, smooth, upsample
from medvlp.scoring.prompts import PromptTable, class_vectors
from medvlp.tasks.base import protocol_settings
from medvlp.tasks.encoder import EncoderSource
from medvlp.tasks.evaluator import Evaluator, checked_texts
from medvlp.tasks.priors import categories_of, columns_of, mean_masks, measures_with_priors

Prior = Literal["centre", "mean_box"]
Scale = Literal["none", "unit", "signed", "share"]

PHRASE = "phrase"
"""Value of ``prompts``: the texts of the data module, phrases or class names."""
NEGATIVES = "negatives"
"""Value of ``against``: the negative prompts of the class."""

_RANGE = {"none": (-1.0, 1.0), "unit": (0.0, 1.0), "signed": (-1.0, 1.0)}
_CANDIDATES = 39
"""Number of thresholds tried on the validation part, evenly spaced inside the range of the heatmaps."""
_SHARE_TEMPERATURE = 0.07


@dataclass(frozen=True)
class _Protocol:
    sigma: float = 0.0
    interpolation: Interpolation = "bilinear"
    scale: Scale = "none"
    thresholds: Sequence[float] = ()  # empty: choose one on the validation part
    raw: bool = False
    patch_weights: bool = False
    pooling: str = "unit"
    prompts_of: Mapping[str, str] = field(default_factory=dict)  # by corpus


PROTOCOLS: dict[str, _Protocol] = {
    "default": _Protocol(scale="unit"),
    "g2d": _Protocol(),
    "biovil": _Protocol(sigma=1.5, thresholds=THRESHOLDS, pooling="direction", prompts_of={"rsna": "biovil_rsna"}),
    "maco": _Protocol(
        sigma=1.5,
        scale="signed",
        thresholds=THRESHOLDS,
        raw=True,
        patch_weights=True,
        pooling="mean",
        prompts_of={"rsna": "maco_grounding", "siim": "maco_grounding"},
    ),
    "medklip": _Protocol(interpolation="nearest", scale="share", thresholds=(0.008 * 196,)),
}
"""Protocols by name; see :class:`Grounding`."""


class Grounding(Evaluator):
    """Localise phrases by the similarity of the cells of an image with them, without training.

    The texts are the data module's: the phrases of MS-CXR, the class names for RSNA, SIIM and ChestX-ray14. Heatmaps
    are scored at the size of the encoder's images against their masks. Images without a mask do not count;
    result rows note their number.

    ========= ==========================================================================================================
    protocol  settings
    ========= ==========================================================================================================
    default   ours: cosines, bilinear upsampling, scaled to [0, 1] per image; one threshold, that with the largest mean
              IoU on the validation part
    g2d       G2D's paper, as far as it says: cosines, upsampled to the image; the threshold, which is not stated, is
              chosen on the validation part
    biovil    BioViL: cosines, Gaussian filter of σ 1.5 cells, bilinear; thresholds 0.1, 0.2, 0.3, 0.4, 0.5, whose mean
              is ``miou``. Scored at the encoder's size, not the file's. On RSNA the mean of its four prompts
    maco      MaCo: dot products of unnormalised vectors, patches weighted by the method's ``patch_weights()`` if it has
              them, the filter, bilinear, scaled to [−1, 1]; the five thresholds. On RSNA and SIIM "Findings
              suggesting …"
    medklip   MedKLIP's rule: cells repeated, positive above 0.008 of an attention that sums to 1 over 14 × 14 cells,
              which is 1.57 times the uniform one. For cosines, the softmax of cosine / 0.07 over the cells takes the
              place of the attention (ours)
    ========= ==========================================================================================================

    Metrics are those of :func:`medvlp.metrics.grounding.grounding_measures`, without ``@<t>`` in their names with one
    threshold. ``*_category`` are means over the categories, the others over the samples.

    Priors are heatmaps that do not depend on the image, scored by the same rules with their own threshold:
    ``prior_centre/<metric>`` of a map that falls from the centre to the corners, ``prior_mean_box/<metric>`` of the
    mean mask of a category over the training part (at most 1,000 images). ``gain_over_<prior>/<metric>`` is the
    difference, resampled together: if its interval excludes 0, the method differs from the prior.

    Args:
        encoder: a method's checkpoint.
        protocol: see the table.
        prompts: a set whose positive prompts stand for a class (the mean of their embeddings), or "phrase" for the data
            module's texts; None for the protocol's for the corpus, mostly the texts.
        against: texts to contrast with ("No acute cardiopulmonary process."), or "negatives" for the negative prompts
            of the class: the mean of their embeddings is subtracted from the phrase's, so that a heatmap is a
            difference of cosines (ours; in no paper) and what phrases share with every report cancels.
        sigma: of the Gaussian filter in cells, 0 for none; None for the protocol's.
        interpolation: "nearest" or "bilinear"; None for the protocol's.
        scale: "none", "unit" for [0, 1] per image, "signed" for [−1, 1], "share" for MedKLIP's; None for the
            protocol's.
        thresholds: predicted is what is strictly above; [] chooses one on the validation part; None for the protocol's.
        priors: heatmaps scored beside the method's: "centre", "mean_box".
        figures: samples in ``figures/grounding.png`` of the run's folder.
        image_size: side of the images in pixels.
        **options: of :class:`~medvlp.tasks.base.Task`: resamples, level.
    """

    task = "grounding"
    needs_patches: ClassVar[bool] = True

    def __init__(
        self,
        encoder: EncoderSource | None = None,
        protocol: str = "default",
        prompts: str | None = None,
        against: list[str] | str | None = None,
        sigma: float | None = None,
        interpolation: Interpolation | None = None,
        scale: Scale | None = None,
        thresholds: list[float] | None = None,
        priors: Sequence[Prior] = ("centre", "mean_box"),
        figures: int = 6,
        image_size: int = 224,
        **options: Any,
    ) -> None:
        settings = protocol_settings(
            "grounding",
            PROTOCOLS,
            protocol,
            sigma=sigma,
            interpolation=interpolation,
            scale=scale,
            thresholds=thresholds,
        )
        for prior in priors:
            check_choice("prior", prior, get_args(Prior))
        check_choice("scale", settings.scale, get_args(Scale))
        super().__init__(encoder, protocol=protocol, image_size=image_size, **options)
        self.protocol_settings = settings
        self.sigma, self.interpolation, self.scale = settings.sigma, settings.interpolation, settings.scale
        self.fixed = tuple(settings.thresholds)
        if not self.fixed and self.scale == "share":
            raise ConfigError("scale: share has no range to choose a threshold in; set thresholds")
        if isinstance(against, str):
            check_choice("against", against, (NEGATIVES,))
        self.given_prompts = prompts
        self.against = against if isinstance(against, str) else checked_texts(against or [], "against: text")
        self.prior_names: tuple[Prior, ...] = tuple(dict.fromkeys(priors))
        self.figures = figures
        self.prompt_set: PromptSet | None = None
        self.categories: list[str] = []
        low, high = _RANGE.get(self.scale, (0.0, 1.0))
        self._candidates = tuple(low + (high - low) * (i + 1) / (_CANDIDATES + 1) for i in range(_CANDIDATES))
        self._chosen: dict[str, tuple[float, ...]] = {}
        self._choosing = False
        self._priors: dict[str, Tensor] = {}
        self._shown: list[tuple[Any, ...]] = []  # image, heatmap, mask, text, id

    def _check_data(self) -> None:
        datamodule = self._datamodule()
        if "mask" not in getattr(datamodule, "targets", ()):
            raise ConfigError("grounding needs masks and phrases: set data.init_args.task to grounding")
        self.categories = list(datamodule.label_names)
        corpus = getattr(datamodule, "cache_name", "")
        name = self.given_prompts or self.protocol_settings.prompts_of.get(corpus, PHRASE)
        self.prompt_set = None if name == PHRASE else load_prompts(name)
        if self.prompt_set is not None:
            with_prompts = self.prompt_set.among(self.categories)
            if missing := [c for c in self.categories if c not in with_prompts]:
                known = ", ".join(self.prompt_set.prompts)
                raise ConfigError(f"the class {missing[0]!r} has no prompts in {name}; expected one of: {known}")
        if self.against == NEGATIVES and (self.prompt_set is None or not self.prompt_set.negation):
            raise ConfigError(f"against: {NEGATIVES} needs a prompt set with negative prompts: set prompts")

    def on_test_start(self) -> None:
        """Compute the priors and choose thresholds."""
        self._prepare()
        super().on_test_start()
        if not self.fixed and not self._chosen:
            if self.scale != "unit":
                raise DataError(
                    f"the split has no validation part to choose a threshold on, and protocol {self.protocol} has "
                    "none: set model.init_args.thresholds, or use another split"
                )
            self._chosen = dict.fromkeys(("", *self.prior_names), (0.5,))

    def on_validation_start(self) -> None:
        """Compute the priors; thresholds are chosen at the end."""
        self._prepare()
        self._choosing = not self.fixed

    def on_validation_end(self) -> None:
        """Score later batches at the chosen thresholds."""
        self._choosing = False

    def _prepare(self) -> None:
        self._shown = []
        if "mean_box" in self.prior_names and "mean_box" not in self._priors:
            mean = mean_masks(self._datamodule(), self.categories)
            if mean is None:
                rank_zero_info("mean_box prior skipped: only the test part has masks")
                self.prior_names = tuple(p for p in self.prior_names if p != "mean_box")
            else:
                self._priors["mean_box"] = mean

    def _category(self, batch: dict[str, Any]) -> Tensor:
        return categories_of(batch, self.categories)

    def phrase_vectors(self, batch: dict[str, Any]) -> Tensor:
        """Return (B, d) embeddings of the phrases."""
        raw = self.protocol_settings.raw
        category = self._category(batch)
        if self.prompt_set is None:
            vectors = self.texts(checked_texts(batch["text"], "phrase"), raw=raw)
        else:
            if bool((category == len(self.categories)).any()):
                raise DataError("an image has no class, and the prompts are of classes: set prompts to phrase")
            vectors = self._class_vectors(0)[category]
        if not self.against:
            return vectors
        if self.against == NEGATIVES:
            others = self._class_vectors(1)[category]
        else:
            texts = self.texts(self.against, raw=raw)
            others = class_vectors(texts, [range(len(texts))], self.protocol_settings.pooling).expand_as(vectors)
        if raw:
            return vectors - others
        return F.normalize(vectors, dim=-1) - F.normalize(others, dim=-1)

    def _class_vectors(self, side: int) -> Tensor:
        """(C, d) of the positive (0) or negative (1) prompts of each class."""
        assert self.prompt_set is not None
        table = PromptTable.of(self.prompt_set.among(self.categories))
        pooling = self.protocol_settings.pooling
        texts = self.texts(table.texts, raw=pooling != "unit")
        return class_vectors(texts, (table.positive, table.negative)[side], pooling)

    @torch.no_grad()
    def heatmaps(self, images: Tensor, phrases: Tensor) -> Tensor:
        """Compute (B, S, S) heatmaps of (B, 3, S, S) images and (B, d) phrases by the protocol's rules."""
        raw = self.protocol_settings.raw
        encode = self.method.encode_patches if raw else self.method.embed_patches
        weights = None
        if self.protocol_settings.patch_weights:
            with suppress(NotSupportedError):
                weights = self.method.patch_weights()
        patches = encode(images).float()
        if not raw:
            patches = unit_length(patches, self.method, dim=1)
            phrases = phrases if self.against else F.normalize(phrases, dim=-1)  # a difference keeps its length
        maps = similarity_maps(patches, phrases.float(), normalise=False, patch_weights=weights)
        maps = smooth(maps, self.sigma)
        if self.scale == "share":
            maps = (maps / _SHARE_TEMPERATURE).flatten(1).softmax(1).view_as(maps) * maps[0].numel()
        return self._scaled(upsample(maps, (images.shape[-2], images.shape[-1]), self.interpolation))

    def _scaled(self, maps: Tensor) -> Tensor:
        return min_max(maps, *_RANGE[self.scale]) if self.scale in ("unit", "signed") else maps

    def _prior(self, name: str, batch: dict[str, Any]) -> Tensor:
        """(B, S, S) heatmaps of a prior, on the scale of the method's."""
        mask = batch["mask"]
        size = (mask.shape[-2], mask.shape[-1])
        if name == "centre":
            maps = centre_prior(*size).to(mask.device)[None].expand(len(mask), -1, -1)
        else:
            maps = self._priors["mean_box"].to(mask.device)[self._category(batch)]
        if self.scale == "share":  # mean 1, as the method's
            return maps / maps.mean((1, 2), keepdim=True).clamp_min(1e-12)
        return self._scaled(maps)

    def _thresholds(self, source: str) -> tuple[float, ...]:
        return self.fixed or (self._candidates if self._choosing else self._chosen[source])

    def store(self) -> SampleStore:
        """Statistics of each sample's heatmap and of the priors, and the sample's category."""
        names = [f"{prefix}{name}" for prefix in ("", *(f"{p}_" for p in self.prior_names)) for name in COLUMNS]
        return SampleStore([*dict.fromkeys(name for name in names if not name.endswith("_truth")), "category"])

    @torch.no_grad()
    def columns(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`store`."""
        mask = batch["mask"][:, 0]
        columns: dict[str, Any] = {"category": self._category(batch)}
        heat = self.heatmaps(batch["image"], self.phrase_vectors(batch))
        columns.update(grounding_statistics(heat, mask, self._thresholds("")))
        for prior in self.prior_names:
            statistics = grounding_statistics(self._prior(prior, batch), mask, self._thresholds(prior))
            columns.update({f"{prior}_{name}": value for name, value in statistics.items() if name != "truth"})
        if self.trainer.testing and not self._choosing and self.trainer.is_global_zero:
            self._keep(batch, heat)
        return columns

    @torch.no_grad()
    def pictures(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return the heatmaps, each scaled to its own range, with their phrases."""
        heat = min_max(self.heatmaps(batch["image"], self.phrase_vectors(batch)))
        # the class instead of the phrase, which may be report text
        names = [*self.categories, ""]
        phrases = np.asarray([names[i] for i in self._category(batch).tolist()])
        return {"heatmaps": heat.float().cpu().numpy(), "phrases": phrases}

    @torch.no_grad()
    def on_validation_part(self) -> Samples | None:
        """Override: statistics at all candidate thresholds."""
        self._choosing = True
        try:
            return super().on_validation_part()
        finally:
            self._choosing = False

    def wants_validation(self) -> bool:
        """Override: if the thresholds are not given."""
        return not self.fixed

    def validated(self, samples: Samples) -> None:
        """Choose for the method and each prior the threshold with the largest mean IoU."""
        if self.fixed:
            return
        for source in ("", *self.prior_names):
            measures = grounding_measures(columns_of(samples, source), thresholds=self._candidates)
            values = torch.stack([measures[f"iou@{t:g}"] for t in self._candidates]).nan_to_num(nan=-1.0)
            if bool((values < 0).all()):
                raise DataError("no image of the validation part has a mask, so no threshold can be chosen on it")
            self._chosen[source] = (self._candidates[int(values.argmax())],)

    def _at_chosen(self, samples: Samples) -> Samples:
        """Reduce the statistics of a validation run from all candidates to the chosen thresholds."""
        columns = {}
        for source, (threshold, *_) in self._chosen.items() if not self.fixed else ():
            for name in (f"{source}_{n}" if source else n for n in ("intersection", "predicted")):
                if samples[name].shape[1:] == (len(self._candidates),):
                    at = self._candidates.index(threshold)
                    columns[name] = samples[name][:, at : at + 1]
        return samples.with_columns(**columns)

    def measures(self, samples: Samples, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Override: at the chosen thresholds."""
        return super().measures(self._at_chosen(samples), weights)

    @classmethod
    def measures_from(cls, facts: Mapping[str, Any]) -> Measures:
        """See the class: metrics of the method and of the priors, and the gains."""
        chosen = facts["thresholds"]
        if not isinstance(chosen, Mapping):
            chosen = dict.fromkeys(("method", *facts["priors"]), chosen)
        return partial(measures_with_priors, thresholds=chosen, priors=facts["priors"], categories=facts["categories"])

    def monitored(self, measures: dict[str, Tensor]) -> dict[str, Tensor]:
        """Override: without the priors."""
        return {name: v for name, v in measures.items() if not name.startswith(("prior_", "gain_"))}

    def notes(self, samples: Samples) -> dict[str, Any]:
        """Number of images without a mask."""
        without = int((samples["truth"] == 0).sum())
        if without:
            rank_zero_info(f"{without} of {len(samples)} images have no mask and do not count")
        return {"without_mask": without}

    def on_test_epoch_end(self) -> None:
        """Override: draw the figure too."""
        super().on_test_epoch_end()
        if self._shown:
            images, heats, masks, texts, ids = (list(column) for column in zip(*self._shown, strict=True))
            figure = viz.grounding_figure(images, {"similarity": heats}, masks, texts, ids)
            path = viz.save(figure, Path(self.trainer.default_root_dir) / "figures" / "grounding.png")
            rank_zero_info(f"heatmaps drawn in {path}")
            self._shown = []

    def facts(self) -> dict[str, Any]:
        """Thresholds, priors, prompts and categories."""
        chosen = {source or "method": list(t) for source, t in self._chosen.items()}
        prompts = self.prompt_set
        return {
            "thresholds": list(self.fixed) or chosen,
            "priors": list(self.prior_names),
            "thresholds_from": "protocol" if self.fixed else "validation, best IoU",
            "prompts": prompts and {"name": prompts.name, "version": prompts.version},
            "against": self.against,
            "categories": self.categories,
        }

    def _keep(self, batch: dict[str, Any], heat: Tensor) -> None:
        count = max(self.figures - len(self._shown), 0)
        tensors = (batch["image"], heat, batch["mask"][:, 0])
        images, heats, masks = (part[:count].float().cpu().numpy() for part in tensors)
        self._shown += zip(images, heats, masks, batch["text"], batch["id"], strict=False)
