"""GLoRIA: global contrast of image and report, local contrast of words and image regions (Huang et al., 2021)."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from medvlp_baselines.gloria.losses import (
    local_loss,
    local_similarity,
    word_attention,
    word_features,
    zero_shot_mask,
    zero_shot_similarity,
)
from torch import Tensor, nn

from medvlp import distributed
from medvlp.encoders.image import ImageEncoderConfig
from medvlp.encoders.text import TextEncoderConfig
from medvlp.errors import ConfigError, check_choice, check_range
from medvlp.losses.precision import exact
from medvlp.losses.tokens import entries
from medvlp.methods.base import PretrainModule
from medvlp.methods.embeddings import tokenizer_of, unit_length
from medvlp.scoring.heatmaps import stretch
from medvlp.text import Collate
from medvlp.training.optim import OptimConfig

_CLINICAL_BERT = "emilyalsentzer/Bio_ClinicalBERT"


class _Variant(NamedTuple):
    word_softmax: bool
    rescale: bool
    global_contrast: bool
    schedule: Literal["plateau", "constant"]


class PreparedPrompts(NamedTuple):
    """Prompts after the text encoder: words (P, L, d), sentences (P, d), and which words take part, (P, L) bool."""

    words: Tensor
    sentence: Tensor
    mask: Tensor


_VARIANTS: dict[str, _Variant] = {
    "paper": _Variant(word_softmax=False, rescale=True, global_contrast=True, schedule="plateau"),
    "official": _Variant(word_softmax=True, rescale=False, global_contrast=False, schedule="constant"),
}


class GLoRIA(PretrainModule):
    """Contrast of image and report, and of every word with the image regions that it attends to.

    ``L = w_g (CE(G) + CE(Gᵀ)) + w_l (CE(temp3·S) + CE(temp3·Sᵀ))`` with G temp3 times the cosines of image and report
    and S the scores of :func:`~medvlp_baselines.gloria.losses.local_similarity`. Where paper and released code differ,
    ``variant`` decides. The paper's text was not at hand: its column holds the equations as they are remembered.

    ====================  ==============================  ====================================================
    what                  paper                           official
    ====================  ==============================  ====================================================
    attention             softmax over regions            softmax over words first, then over regions
    score of a report     ln Σ exp(temp2·cos) / temp2     ln Σ exp(temp2·cos)
    negatives             all ranks                       this rank's (it trains on one GPU)
    learning rate         5e-5, halved on a plateau       5e-5, constant: its plateau schedule is never stepped
    ====================  ==============================  ====================================================

    Both: images stretched to 299 px, the deepest level pooled for the image and the level before it for the regions;
    the last four layers of Bio_ClinicalBERT summed, word pieces summed into words; dropout in BERT. One random sentence
    per report and the transform are the datamodule's: ``text_sampling: gloria``, ``transform: mgca``.

    With ``contrastive_chunks`` the encoders run in chunks; the local loss, which sees the whole batch, cuts its own
    memory.

    Args:
        variant: "paper" or "official".
        image: image encoder; ResNet-50 on images stretched to 299 px by default.
        text: text encoder; Bio_ClinicalBERT with at most 97 pieces by default. The pooling is not used.
        optim: optimiser and schedule; by default Adam (0.5, 0.999) at 5e-5 with L2 decay 1e-6.
        image_size: side of the images in pixels.
        prompts: zero-shot prompt set for validation, which compares image and report vectors alone; the released
            inference path, words included, is :meth:`similarity`.
        embed_dim: joint dimension; the text encoder's width if None, which needs no projection of the text, as in the
            released code. Another width puts a linear map after the text encoder (ours).
        temp1: sharpness of the attention over regions.
        temp2: sharpness of the aggregation over words.
        temp3: inverse temperature of both contrasts.
        text_layers: last layers of the text encoder that are summed.
        local_level: level of the image encoder's pyramid that gives the regions; −2 is the third stage of a ResNet.
        global_weight: w_g. With 0 the image vector is the mean of its regions (ours), since nothing trains another.
        local_weight: w_l.
        options: further arguments of :class:`~medvlp.methods.base.PretrainModule`.
    """

    name: ClassVar[str] = "gloria"

    def __init__(
        self,
        variant: Literal["paper", "official"] = "paper",
        image: ImageEncoderConfig | None = None,
        text: TextEncoderConfig | None = None,
        optim: OptimConfig | None = None,
        image_size: int = 224,
        prompts: str | None = "chexpert",
        embed_dim: int | None = None,
        temp1: float = 4.0,
        temp2: float = 5.0,
        temp3: float = 10.0,
        text_layers: int = 4,
        local_level: int = -2,
        global_weight: float = 1.0,
        local_weight: float = 1.0,
        **options: Any,
    ) -> None:
        check_choice("variant", variant, _VARIANTS)
        check_range("[0, inf)", global_weight=global_weight, local_weight=local_weight)
        check_range("(0, inf)", temp1=temp1, temp2=temp2, temp3=temp3)
        if global_weight + local_weight == 0:
            raise ConfigError("global_weight and local_weight must not both be 0")
        settings = _VARIANTS[variant]
        adam = OptimConfig(
            optimizer="adam",
            lr=5e-5,
            weight_decay=1e-6,
            betas=(0.5, 0.999),
            decay_all=True,
            schedule=settings.schedule,
        )
        super().__init__(
            image=image or ImageEncoderConfig(upsample_to=299),
            text=text or TextEncoderConfig(pretrained=_CLINICAL_BERT, max_length=97, dropout=True),
            optim=optim or adam,
            image_size=image_size,
            prompts=prompts,
            **options,
        )
        self.variant = variant
        self.global_contrast = settings.global_contrast
        self.attention_options = {"temp1": temp1, "word_softmax": settings.word_softmax}
        self.score_options = {**self.attention_options, "temp2": temp2, "rescale": settings.rescale}
        self.temp3 = temp3
        self.weights = (global_weight, local_weight)
        layers, levels = self.text_encoder.model.config.num_hidden_layers, len(self.image_encoder.channels)
        if not 1 <= text_layers <= layers:
            raise ConfigError(f"text_layers is {text_layers}, and the text encoder has {layers} layers")
        if not -levels <= local_level < levels:
            raise ConfigError(
                f"local_level is {local_level}, and the image encoder has {levels} levels; raise image.depth, or set "
                f"local_level from {-levels} to {levels - 1}"
            )
        self.text_layers = text_layers
        self.local_level = local_level
        width = self.text_encoder.width
        self.embed_dim = embed_dim or width
        self.text_head = nn.Identity() if self.embed_dim == width else nn.Linear(width, self.embed_dim, bias=False)
        self.global_head = nn.Linear(self.image_encoder.out_channels, self.embed_dim) if global_weight else None
        self.local_head = nn.Conv2d(self.image_encoder.channels[local_level], self.embed_dim, 1, bias=False)

    def _images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return image vectors (B, d) and regions (B, d, h, w)."""
        pyramid = self.image_encoder(images)
        regions = self.local_head(pyramid[self.local_level])
        if self.global_head is not None:
            return self.global_head(pyramid[-1].mean((2, 3))), regions
        # Levels that nothing reads stay in the graph, as DistributedDataParallel wants it.
        return regions.mean((2, 3)) + 0.0 * pyramid[-1].mean((1, 2, 3))[:, None], regions

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the hidden states of the last layers, (K, B, L, D)."""
        states = self.text_encoder(input_ids, attention_mask, hidden_states=self.text_layers).hidden_states
        assert states is not None
        return states.transpose(0, 1)

    def _texts(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Return report vectors (B, d), words (B, L, d), how many take part, [CLS] included (B,), and the entries."""
        if "word_groups" not in batch:
            raise ConfigError("GLoRIA needs the batch's word_groups, which every datamodule and Collate.tokenize give")
        hidden = self._hidden(batch["input_ids"], batch["attention_mask"])
        features = word_features(hidden, batch["word_groups"], batch["attention_mask"])
        # Linear without a bias: the mean of projected words is the projected mean.
        texts, words = self._project(features.sentence), self._project(features.words)
        return texts, words, features.entries.words + 1, features.entries

    def _project(self, texts: Tensor) -> Tensor:
        # sums of states are float32, even where the weights are of half precision
        return self.text_head(texts.to(getattr(self.text_head, "weight", texts).dtype))

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) → (B, d): linear map of the global average of the deepest level."""
        return self._images(images)[0]

    def encode_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(N, L) ids and mask → (N, d): mean over all rows of the words."""
        # Every piece is in exactly one word, so this is a sum over the pieces, whatever the words are.
        hidden = self._hidden(input_ids, attention_mask)
        summed = hidden.sum(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
        return self._project((summed * attention_mask[..., None]).mean(1))

    def embed_patches(self, images: Tensor) -> Tensor:
        """L2-normalised image regions, (B, d, h, w): the local loss compares them with words."""
        return unit_length(self._images(images)[1], self, dim=1)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Count the words while the batch is on the CPU: the local loss then skips padding without waiting."""
        if isinstance(batch, dict) and "word_groups" in batch and batch["word_groups"].device.type == "cpu":
            counts = entries(batch["word_groups"], batch["attention_mask"]).words + 1
            return {**batch, "word_counts": counts.tolist()}
        return batch

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Encode a batch.

        Returns:
            ``image`` and ``text`` (B, d), ``regions`` (B, d, h, w), ``words`` (B, L, d): [CLS], the words, [SEP],
            zeros; ``word_count`` (B,), entries that take part in the local loss: [CLS] and the words.
        """
        image, regions = self._images(batch["image"])
        text, words, count, _ = self._texts(batch)
        return {"image": image, "text": text, "regions": regions, "words": words, "word_count": count}

    def losses(self, batch: dict[str, Any], outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """``global`` and ``local``, each the sum of both directions times its weight.

        A report without a word takes part by its [CLS] alone.
        """
        outputs = self(batch) if outputs is None else outputs
        self._need_two(len(outputs["image"]))
        global_weight, local_weight = self.weights
        # Multiplied, not skipped: DistributedDataParallel wants every weight in every step's graph.
        terms = {key: 0.0 * outputs[side].float().mean() for key, side in (("global", "image"), ("local", "regions"))}
        if global_weight:
            terms["global"] = global_weight * self.contrast(
                outputs["image"], outputs["text"], temperature=1 / self.temp3
            )
        if local_weight:
            terms["local"] = local_weight * self._local(outputs, batch.get("word_counts"))
        return terms

    def _local(self, outputs: dict[str, Tensor], counts: list[int] | None) -> Tensor:
        regions, words, count = outputs["regions"], outputs["words"], outputs["word_count"]
        index = torch.arange(words.shape[1])
        # Lengths known to the CPU save the work on padding.
        mask = index < torch.tensor(counts)[:, None] if counts else index.to(count.device) < count[:, None]
        if not self.global_contrast or distributed.world_size() == 1:
            return local_loss(regions, words, mask, temp3=self.temp3, **self.score_options)
        # This rank's images with all reports, and all images with its reports. Ranks pad to different lengths.
        length = self.text_config.max_length
        if words.shape[1] > length:
            raise ConfigError(
                f"a batch of {words.shape[1]} word pieces and text.max_length {length}: ranks exchange words up to "
                "that length; raise it, or tokenise to it"
            )
        all_words = distributed.all_gather(F.pad(words, (0, 0, 0, length - words.shape[1])))
        all_mask = torch.arange(length, device=count.device) < distributed.all_gather(count)[:, None]
        rows = local_similarity(regions, all_words, all_mask, **self.score_options)
        columns = local_similarity(distributed.all_gather(regions), words, mask, **self.score_options)
        first = distributed.rank() * len(regions)
        target = torch.arange(first, first + len(regions), device=regions.device)
        return F.cross_entropy(self.temp3 * rows, target) + F.cross_entropy(self.temp3 * columns.T, target)

    def attend(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Return where each word of a report looks in its image.

        Attention (B, L, h, w), each map a distribution; the cosine (B, L) of each word with what it attends to; and the
        entries that are words, (B, L) bool. Entry 0 is [CLS]. Zeros outside [CLS] and the words.
        """
        outputs = self(batch)
        regions, words = exact(outputs["regions"], outputs["words"])
        index = torch.arange(words.shape[1], device=words.device)
        mask = index < outputs["word_count"][:, None]
        attention = word_attention(regions, words, mask, **self.attention_options)
        context = attention @ regions.flatten(2).mT
        maps = attention.unflatten(2, regions.shape[2:])
        return maps, F.cosine_similarity(context, words, dim=-1) * mask, mask & (index > 0)

    @torch.no_grad()
    def explain(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """``attention of the words``, averaged over a report's words, and ``similarity to the report``.

        (B, 1, S, S) each, stretched over each image's range to [0, 1].
        """
        maps, _, inside = self.attend(batch)
        # A report without words: nothing attends, and the map is 0.
        mean = (maps * inside[..., None, None]).sum(1, keepdim=True) / inside.sum(1).clamp_min(1)[:, None, None, None]
        shown = stretch(mean, tuple(batch["image"].shape[-2:]))
        return {"attention of the words": shown, **super().explain(batch)}

    @torch.no_grad()
    def similarity(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Score images (N, 3, S, S) with P prompts as the released inference path does: global and best word.

        Unlike that path it takes the words of a prompt for its length, not its characters; see
        :func:`~medvlp_baselines.gloria.losses.zero_shot_mask`. :func:`~medvlp_baselines.gloria.losses.class_scores`
        makes class scores of them.

        It returns their mean, the global and the local scores, each (N, P).
        """
        return self._scores(images, self.prepare_prompts(texts))

    @torch.no_grad()
    def prepare_prompts(self, texts: Sequence[str]) -> PreparedPrompts:
        """Encode prompts once for all images."""
        collate = Collate(tokenizer_of(self), self.text_config.max_length, self.text_config.padding)
        tokens = {key: value.to(self.device) for key, value in collate.tokenize(list(texts)).items()}
        sentence, words, _, merged = self._texts(tokens)
        return PreparedPrompts(words, sentence, zero_shot_mask(merged))

    @torch.no_grad()
    def zero_shot_scores(self, images: Tensor, prompts: PreparedPrompts) -> Tensor:
        """Override: the mean of the global and the local scores of :meth:`similarity`, (N, P)."""
        return self._scores(images, prompts)[0]

    def _scores(self, images: Tensor, prompts: PreparedPrompts) -> tuple[Tensor, Tensor, Tensor]:
        image, regions = self._images(images)
        return zero_shot_similarity(regions, image, prompts.words, prompts.sentence, prompts.mask, **self.score_options)
