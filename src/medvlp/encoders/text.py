"""Text encoders: any Hugging Face encoder, by hub name, local folder, or built from a config."""

import os
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from medvlp.encoders.pooling import pool_tokens
from medvlp.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class TextEncoderConfig:
    """Which text encoder.

    With ``pretrained`` the architecture, weights and tokenizer come from there, and the sizes below are not read.
    Without it a BERT of these sizes starts from scratch, with a WordPiece vocabulary trained on the training reports.

    Args:
        pretrained: hub name ("emilyalsentzer/Bio_ClinicalBERT") or local folder, or None.
        hidden_size: width of a BERT built here.
        num_layers: its layers.
        num_heads: its attention heads.
        vocab_size: largest size of the WordPiece vocabulary trained for it.
        lowercase: whether that vocabulary folds case.
        max_length: reports are cut after so many word pieces, [CLS] and [SEP] included.
        padding: "longest" pads to the longest of the batch, "max_length" always to ``max_length``.
        pooling: how the report vector is made of the token vectors.
        freeze_layers: the first n layers get no gradient (released G2D: 9 of 12).
        freeze_embeddings: nor do the embeddings, which also spares the backward pass through the frozen layers.
        dropout: keep the encoder's dropout in training. Released G2D and M-FLAG train without, since they never
            leave the eval mode in which Hugging Face hands models out; MGCA, GLoRIA, MaCo train with it.
        architecture: a Hugging Face configuration with its "model_type", built with random weights in place of the
            BERT above; checkpoints store the one in use here, so that loading needs no hub.
    """

    pretrained: str | None = None
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    vocab_size: int = 4096
    lowercase: bool = True
    max_length: int = 256
    padding: Literal["longest", "max_length"] = "longest"
    pooling: Literal["cls", "mean", "max"] = "cls"
    freeze_layers: int = 0
    freeze_embeddings: bool = False
    dropout: bool = False
    architecture: dict | None = None


def _from_pretrained(name: str) -> nn.Module:
    from transformers import AutoModel

    try:
        # Files of tensors alone; code from the hub is never run.
        model, report = AutoModel.from_pretrained(
            name, trust_remote_code=False, weights_only=True, output_loading_info=True
        )
    except Exception as error:  # transformers, safetensors and the hub raise errors of many kinds here
        where = "folder" if os.path.isdir(name) else "model"
        raise CheckpointError(
            f"text.pretrained: {where} {name!r} cannot be loaded ({type(error).__name__}); give a local folder with "
            "config.json, the tokenizer's files and model.safetensors"
        ) from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:  # transformers would go on with random values
        raise CheckpointError(
            f"text.pretrained: {name!r} lacks {len(missing)} weights of its own config.json (first: {missing[0]})"
        )
    return model


class TextEncoder(nn.Module):
    """A Hugging Face encoder without its pooler.

    Attributes:
        architecture: Hugging Face configuration as a plain dictionary: enough to build the encoder without the hub.
        width: channels D of the token vectors.
        vocab_size: rows of the embedding table; a tokenizer may have fewer entries.
        max_positions: longest sequence that the position table holds.

    Args:
        config: which encoder.

    Raises:
        CheckpointError: ``config.pretrained`` cannot be loaded.
        ConfigError: more frozen layers than there are, or ``max_length`` beyond the position table.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel, BertConfig

        if config.architecture is not None:
            settings = dict(config.architecture)
            self.model = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
        elif config.pretrained:
            self.model = _from_pretrained(config.pretrained)
        else:
            self.model = AutoModel.from_config(
                BertConfig(
                    vocab_size=config.vocab_size,
                    hidden_size=config.hidden_size,
                    num_hidden_layers=config.num_layers,
                    num_attention_heads=config.num_heads,
                    intermediate_size=4 * config.hidden_size,
                    max_position_embeddings=max(512, config.max_length),
                    pad_token_id=0,
                )
            )
        # Unused, and parameters without gradient would stall DistributedDataParallel.
        if getattr(self.model, "pooler", None) is not None:
            self.model.pooler = None
        self.pooling = config.pooling
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
        if not config.dropout:
            for module in self.model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        self._freeze(config)

    def _freeze(self, config: TextEncoderConfig) -> None:
        frozen: list[nn.Module] = []
        if config.freeze_layers:
            layers = _layers(self.model)
            if not 0 <= config.freeze_layers <= len(layers):
                raise ConfigError(f"text.freeze_layers {config.freeze_layers}: the encoder has {len(layers)} layers")
            frozen.extend(layers[: config.freeze_layers])
        if config.freeze_embeddings:
            frozen.append(self.model.embeddings)
        for module in frozen:
            module.requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes.

        Args:
            input_ids: (B, L) word-piece ids.
            attention_mask: (B, L), 1 for tokens and 0 for padding.

        Returns:
            Token vectors (B, L, D) of the last layer and the report vector (B, D).
        """
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden, pool_tokens(hidden, attention_mask, self.pooling)


def _layers(model: nn.Module) -> nn.ModuleList:
    encoder = getattr(model, "encoder", getattr(model, "transformer", model))
    layers = getattr(encoder, "layer", getattr(encoder, "layers", None))
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(f"text encoder {type(model).__name__}: its layers are not found; use a BERT-like encoder")
    return layers


def _plain_config(config: Any) -> dict[str, Any]:
    """The architecture without paths or versions: numbers, strings, lists, dictionaries."""
    drop = {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"}
    settings = {key: value for key, value in config.to_diff_dict().items() if key not in drop}
    settings["model_type"] = config.model_type
    return settings
