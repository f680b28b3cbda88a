"""Text encoders: Hugging Face's encoders like BERT, by hub name, local folder, or built from a config."""

import inspect
import os
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from medvlp.encoders.loading import check_finite, is_plain
from medvlp.encoders.pooling import pool_tokens
from medvlp.errors import CheckpointError, ConfigError, check_range


@dataclass(frozen=True)
class TextEncoderConfig:
    """Settings of a text encoder.

    With ``pretrained`` the architecture, weights and tokenizer come from there, and the sizes below are ignored.
    Without it a BERT of these sizes starts from scratch, with a WordPiece vocabulary trained on the training reports.

    Args:
        pretrained: hub name ("emilyalsentzer/Bio_ClinicalBERT") or local folder, or None.
        hidden_size: width of a BERT built here.
        num_layers: its layers.
        num_heads: its attention heads.
        vocab_size: largest size of the WordPiece vocabulary trained for it.
        lowercase: whether that vocabulary folds case.
        min_reports: fewest reports that hold a word of that vocabulary, which goes with every checkpoint: names in a
            few reports are spelled out, not stored.
        max_length: number of word pieces, [CLS] and [SEP] included, after which reports are cut.
        padding: "longest" pads to the longest of the batch, "max_length" always to ``max_length``.
        pooling: how the report vector is made of the token vectors: that of [CLS], their mean or maximum, or the
            encoder's own "pooler" (a linear map and tanh on [CLS]: MaCo).
        freeze_layers: the first n layers get no gradient (released G2D: 9 of 12).
        freeze_embeddings: nor do the embeddings. Then nothing below the first trained layer is in the graph: no
            activations are kept and no backward pass runs there. With trained embeddings both go through all layers.
        dropout: keep the encoder's dropout in training, in frozen layers as well. Released G2D and M-FLAG train
            without, since they never leave the eval mode in which Hugging Face loads models; MGCA, GLoRIA, MaCo train
            with it.
        keep_layers: use the first n layers alone (released MGCA: 6 of Bio_ClinicalBERT's 12); None uses all.
        positions: "normal", or "zero": every token gets position 0, so the encoder knows no word order (released MGCA
            and its ConVIRT, which pass token types instead of positions).
        token_types: add the token-type embedding; False sets that table to zero and leaves it there (released MGCA,
            whose encoder has none).
        architecture: a Hugging Face configuration with its "model_type" (one of :data:`MODEL_TYPES`), built with random
            weights in place of the BERT above; checkpoints store the one in use here, so that loading needs no hub.
    """

    pretrained: str | None = None
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    vocab_size: int = 4096
    lowercase: bool = True
    min_reports: int = 10
    max_length: int = 256
    padding: Literal["longest", "max_length"] = "longest"
    pooling: Literal["cls", "mean", "max", "pooler"] = "cls"
    freeze_layers: int = 0
    freeze_embeddings: bool = False
    dropout: bool = False
    keep_layers: int | None = None
    positions: Literal["normal", "zero"] = "normal"
    token_types: bool = True
    architecture: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for sizes that no encoder has."""
        check_range("[1, 65536]", hidden_size=self.hidden_size, num_heads=self.num_heads, max_length=self.max_length)
        check_range("[1, 1000]", num_layers=self.num_layers)
        check_range("[1, 10000000]", vocab_size=self.vocab_size)


MODEL_TYPES = (
    *("albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert"),
    *("electra", "ernie", "megatron-bert", "mobilebert", "modernbert", "mpnet", "nystromformer", "rembert", "roberta"),
    *("roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl"),
)
"""Supported text encoders of Hugging Face. Others may be wrappers that open files or load code of their own."""


def _config_class(model_type: Any) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in MODEL_TYPES or model_type not in CONFIG_MAPPING:
        raise ConfigError(f"unknown text encoder {model_type!r}; expected one of: {', '.join(MODEL_TYPES)}")
    return CONFIG_MAPPING[model_type]


def without_text_sources(config: TextEncoderConfig) -> TextEncoderConfig:
    """Return the architecture alone, for and from checkpoints: of it only what its own model type declares.

    What every Hugging Face configuration may also hold (kernels of the hub, code, file names, labels) is dropped.

    Raises:
        ConfigError: another model type, or a setting that is neither a number nor a word.
    """
    if config.architecture is None:
        return replace(config, pretrained=None)
    from transformers import PretrainedConfig

    kind = _config_class(config.architecture.get("model_type"))
    declared = set(inspect.signature(kind).parameters) - set(inspect.signature(PretrainedConfig).parameters)
    architecture = {key: value for key, value in config.architecture.items() if key in declared}
    for key, value in architecture.items():
        if not is_plain(value, r"[\w|-]*", 1e7, (dict, list, tuple)):
            raise ConfigError(f"text.architecture.{key} cannot come from a checkpoint: {repr(value)[:60]}")
    return replace(config, pretrained=None, architecture={"model_type": kind.model_type, **architecture})


class TextFeatures(NamedTuple):
    """Output of :class:`TextEncoder` with one of its options.

    Attributes:
        tokens: (B, L, D) of the last layer.
        report: (B, D), pooled.
        hidden_states: (B, k, L, D) of the last k layers, in order; None if not requested.
        attention: (B, heads, L, L) probabilities of the last layer before dropout, rows summing to 1, columns of
            padding zero, without gradient, or the first of its rows; None if not requested.
    """

    tokens: Tensor
    report: Tensor
    hidden_states: Tensor | None
    attention: Tensor | None


def _from_pretrained(name: str, pooler: bool) -> nn.Module:
    from transformers import AutoModel

    if "://" in name:
        raise CheckpointError(f"text.pretrained: {name} is a URL; download it first, then give the local folder")
    try:
        # Files of tensors alone; code from the hub is never run.
        model, report = AutoModel.from_pretrained(
            name, trust_remote_code=False, weights_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # transformers, safetensors and the hub raise errors of many kinds here
        where = "folder" if os.path.isdir(name) else "model"
        raise CheckpointError(
            f"text.pretrained: {where} {name!r} cannot be loaded ({type(error).__name__}); give a local folder with "
            "config.json, the tokenizer's files and model.safetensors"
        ) from error
    missing = sorted(key for key in report["missing_keys"] if pooler or not key.startswith("pooler."))
    if missing:  # transformers would go on with random values
        raise CheckpointError(
            f"text.pretrained: {name!r} lacks {len(missing)} weights of its own config.json (first: {missing[0]})"
        )
    check_finite(f"text.pretrained: {name!r}: ", model)
    return model


def _model_of(config: TextEncoderConfig) -> Any:
    """Build the transformer of stored settings, of pretrained weights, or a BERT with random weights."""
    from transformers import AutoModel, BertConfig

    if config.architecture is not None:
        settings = dict(config.architecture)
        kind = _config_class(settings.pop("model_type", None))
        return AutoModel.from_config(kind(**settings), trust_remote_code=False)
    if config.pretrained:
        model: Any = _from_pretrained(config.pretrained, config.pooling == "pooler")
        _config_class(model.config.model_type)  # fail now, not when the checkpoint is loaded
        return model
    bert = BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=4 * config.hidden_size,
        max_position_embeddings=max(512, config.max_length),
        pad_token_id=0,
    )
    return AutoModel.from_config(bert, trust_remote_code=False)


class TextEncoder(nn.Module):
    """A Hugging Face encoder, without its pooler where that is not used. Its attention is torch's fused one.

    Attributes:
        architecture: Hugging Face configuration as a plain dictionary: enough to build the encoder without the hub.
        width: channels D of the token vectors.
        vocab_size: rows of the embedding table; a tokenizer may have fewer entries.
        max_positions: longest sequence that the position table holds.

    Raises:
        CheckpointError: ``config.pretrained`` cannot be loaded.
        ConfigError: more frozen or kept layers than there are, ``max_length`` beyond the position table, or a pooler,
            position table or token types that the encoder does not have.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.model = _model_of(config)
        if getattr(self.model, "pooler", None) is None:
            if config.pooling == "pooler":
                raise ConfigError(f'text.pooling "pooler": {type(self.model).__name__} has none; use "cls"')
        elif config.pooling != "pooler":
            # Unused, and parameters without gradient would stall DistributedDataParallel.
            self.model.pooler = None
        self.pooling = config.pooling
        if config.keep_layers is not None:
            _keep_layers(self.model, config.keep_layers)
        self.zero_positions = config.positions == "zero"
        if self.zero_positions and _table(self.model, "position_embeddings") is None:
            raise ConfigError(f'text.positions "zero": {type(self.model).__name__} has no position table')
        self.architecture: dict[str, Any] = _plain_config(self.model.config)
        self.width: int = self.model.config.hidden_size
        self.vocab_size: int = self.model.config.vocab_size
        self.max_positions: int = getattr(self.model.config, "max_position_embeddings", 512)
        if "roberta" in self.model.config.model_type:  # its positions start after the padding id
            self.max_positions -= self.model.config.pad_token_id + 1
        if config.max_length > self.max_positions:
            raise ConfigError(
                f"text.max_length {config.max_length} exceeds the encoder's position table of {self.max_positions}; "
                f"set text.max_length to at most {self.max_positions}"
            )
        self.dropout = config.dropout
        _freeze(self.model, config)
        if not config.token_types:
            types = _table(self.model, "token_type_embeddings")
            if types is None:
                raise ConfigError(f"text.token_types: false: {type(self.model).__name__} has no token types")
            nn.init.zeros_(types.weight)
            types.weight.requires_grad_(False)
        self.train()  # from_pretrained returns models in eval mode, and Lightning leaves modes as they are

    def train(self, mode: bool = True) -> "TextEncoder":
        """Override: without :attr:`dropout` the encoder stays in eval mode, in which it has none."""
        super().train(mode)
        if not self.dropout:
            self.model.eval()
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        hidden_states: int = 0,
        attention: bool = False,
        attention_rows: int | None = None,
    ) -> tuple[Tensor, Tensor] | TextFeatures:
        """Encode texts.

        Args:
            input_ids: (B, L) word-piece ids.
            attention_mask: (B, L), 1 for tokens and 0 for padding.
            hidden_states: number of last layers whose outputs are returned too (GLoRIA: 4).
            attention: also return the last layer's attention probabilities (MGCA). They are computed beside the fused
                attention, for this layer alone.
            attention_rows: number of first rows of the attention, 1 being [CLS]'s; None returns all L.

        Returns:
            Token vectors (B, L, D) of the last layer and the report vector (B, D); with one of the two options
            :class:`TextFeatures`, whose first two these are.

        Raises:
            ConfigError: texts beyond the position table, more hidden states than layers, or attention of an encoder
                that is not like BERT.
        """
        if input_ids.shape[1] > self.max_positions:
            raise ConfigError(
                f"texts of {input_ids.shape[1]} tokens exceed the text encoder's position table of "
                f"{self.max_positions}; tokenise with text.max_length as max_length"
            )
        more = bool(hidden_states or attention)
        options = {"position_ids": torch.zeros_like(input_ids)} if self.zero_positions else {}
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=more, return_dict=True, **options
        )
        tokens = outputs.last_hidden_state
        if self.pooling == "pooler":
            report = self.model.pooler(tokens)
        else:
            report = pool_tokens(tokens, attention_mask, self.pooling)
        if not more:
            return tokens, report
        states: tuple[Tensor, ...] = outputs.hidden_states  # the embeddings first
        if not 0 <= hidden_states < len(states):
            raise ConfigError(f"{hidden_states} hidden states of a text encoder with {len(states) - 1} layers")
        return TextFeatures(
            tokens,
            report,
            torch.stack(states[len(states) - hidden_states :], 1) if hidden_states else None,
            self._attention(states[-2], attention_mask, attention_rows) if attention else None,
        )

    @torch.no_grad()
    def _attention(self, states: Tensor, attention_mask: Tensor, rows: int | None) -> Tensor:
        """Return the attention probabilities of the last layer's first rows from its input."""
        block: Any = getattr(getattr(_layers(self.model)[-1], "attention", None), "self", None)
        if not (hasattr(block, "query") and hasattr(block, "key")):
            raise ConfigError(f"{type(self.model).__name__} gives no attention weights; use a BERT-like text encoder")
        heads = self.model.config.num_attention_heads
        query, key = (
            part(tokens).unflatten(2, (heads, -1)).transpose(1, 2)
            for part, tokens in ((block.query, states[:, :rows]), (block.key, states))
        )
        dtype = torch.promote_types(query.dtype, torch.float32)
        scores = (query @ key.transpose(2, 3)).to(dtype) / query.shape[-1] ** 0.5
        return scores.masked_fill(attention_mask[:, None, None] == 0, -torch.inf).softmax(-1)


def _table(model: nn.Module, name: str) -> nn.Embedding | None:
    table = getattr(getattr(model, "embeddings", None), name, None)
    return table if isinstance(table, nn.Embedding) else None


def _freeze(model: Any, config: TextEncoderConfig) -> None:
    if config.freeze_layers:
        layers = _layers(model)
        if not 0 <= config.freeze_layers <= len(layers):
            raise ConfigError(f"text.freeze_layers {config.freeze_layers}: the encoder has {len(layers)} layers")
        layers[: config.freeze_layers].requires_grad_(False)
    if config.freeze_embeddings:
        model.embeddings.requires_grad_(False)


def _keep_layers(model: Any, count: int) -> None:
    layers = _layers(model)
    if not 1 <= count <= len(layers):
        raise ConfigError(f"text.keep_layers {count}: the encoder has {len(layers)} layers")
    del layers[count:]
    model.config.num_hidden_layers = count
    if getattr(model.config, "layer_types", None):  # one entry per layer
        model.config.layer_types = model.config.layer_types[:count]


def _layers(model: nn.Module) -> nn.ModuleList:
    encoder = getattr(model, "encoder", getattr(model, "transformer", model))
    layers = getattr(encoder, "layer", getattr(encoder, "layers", None))
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(f"text encoder {type(model).__name__}: its layers are not found; use a BERT-like encoder")
    return layers


def _plain_config(config: Any) -> dict[str, Any]:
    """Return the architecture without paths or versions: numbers, strings, lists, dictionaries."""
    drop = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}
    settings = {key: value for key, value in config.to_diff_dict().items() if key not in drop}
    settings["model_type"] = config.model_type
    return settings
