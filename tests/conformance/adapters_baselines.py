"""The adapters of GLoRIA, MGCA and MaCo; see ``adapters.py``."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from medvlp_baselines.gloria import losses as gloria
from medvlp_baselines.maco import losses as maco
from medvlp_baselines.mgca import losses as mgca
from medvlp_baselines.mgca import prototypes as proto
from torch import Tensor

Arrays = dict[str, np.ndarray]


def tensor(array: np.ndarray, grad: bool = False) -> Tensor:
    made = torch.from_numpy(np.asarray(array)).clone()
    return made.requires_grad_() if grad else made


def numbers(**values: Tensor) -> Arrays:
    return {key: value.detach().numpy() for key, value in values.items()}


def first_of(length: np.ndarray, width: int) -> Tensor:
    return torch.arange(width) < tensor(length)[..., None]


def pieces(ids: np.ndarray, vocab: np.ndarray) -> tuple[Tensor, Tensor, list[list[str]]]:
    """Word groups and attention mask of token ids as medvlp's collate makes them, and the merged words."""
    groups, mask, words = np.full(ids.shape, -1), np.zeros(ids.shape, np.int64), []
    for row, tokens in enumerate(vocab[ids]):
        merged: list[str] = []
        word = -1
        for place, token in enumerate(tokens):
            if token == "[PAD]":
                break
            mask[row, place] = 1
            if token.startswith("["):
                merged.append(token)
                continue
            if token.startswith("##"):
                merged[-1] += token[2:]
            else:
                word += 1
                merged.append(token)
            groups[row, place] = word
        words.append(merged)
    return tensor(groups), tensor(mask), words


def padded(words: list[list[str]], counts: Tensor, length: int) -> np.ndarray:
    kept = [row[:count] for row, count in zip(words, counts.tolist(), strict=True)]
    return np.array([[*row, *["[PAD]"] * (length - len(row))] for row in kept])


def gloria_global_loss(x: Arrays) -> Arrays:
    """All keys."""
    assert float(x["eps"]) == gloria.EPS
    image, text, scale = tensor(x["img_emb_g"]), tensor(x["text_emb_g"]), float(x["temp3"])
    rows, columns = gloria.two_way_cross_entropy(scale * gloria.global_similarity(image, text))
    return numbers(loss0=rows, loss1=columns, total=gloria.global_loss(image, text, temp3=scale))


def gloria_local_loss(x: Arrays) -> Arrays:
    """All keys."""
    regions, words = tensor(x["img_features"]), tensor(x["words_emb"]).mT
    mask = first_of(x["cap_lens"], words.shape[1])
    temp1, temp2, temp3 = (float(x[key]) for key in ("temp1", "temp2", "temp3"))
    scores = gloria.local_similarity(regions, words, mask, temp1=temp1, temp2=temp2)
    mean = gloria.local_similarity(regions, words, mask, temp1=temp1, temp2=temp2, agg="mean")
    rows, columns = gloria.two_way_cross_entropy(temp3 * scores)
    mean_rows, mean_columns = gloria.two_way_cross_entropy(temp3 * mean)
    total = gloria.local_loss(regions, words, mask, temp1=temp1, temp2=temp2, temp3=temp3)
    size = regions.shape[-2:]
    query = tensor(x["attn_query"]).mT
    attention = gloria.word_attention(regions, query, torch.ones(query.shape[:2]), temp1=temp1)
    out = numbers(
        loss0=rows,
        loss1=columns,
        total=total,
        similarities_times_temp3=temp3 * scores,
        loss0_mean_agg=mean_rows,
        loss1_mean_agg=mean_columns,
        attn_weighted_context=(attention @ regions.flatten(2).mT).mT,
        attn_weights=attention.unflatten(2, size),
    )
    own = gloria.word_attention(regions, words, mask, temp1=temp1).unflatten(2, size)
    for i, length in enumerate(x["cap_lens"]):
        out[f"att_map_{i}"] = own[i : i + 1, : int(length)].numpy()
    return out


def gloria_wordpiece_agg(x: Arrays) -> Arrays:
    """All keys."""
    groups, mask, words = pieces(x["ids"], x["vocab"])
    hidden = tensor(x["hidden_states"])[-int(x["last_n_layers"]) :]
    added, mean = (gloria.word_features(hidden, groups, mask, layers) for layers in ("sum", "mean"))
    return {
        **numbers(
            word_emb_sum=added.words.mT,
            sent_emb_sum=added.sentence,
            word_emb_mean=mean.words.mT,
            sent_emb_mean=mean.sentence,
            train_cap_lens=added.mask.sum(1),
        ),
        "sents": padded(words, added.entries.count, groups.shape[1]),
    }


def gloria_zero_shot(x: Arrays) -> Arrays:
    """All keys."""
    classes, prompts = x["cap_lens"].shape
    images = len(x["img_emb_g"])
    words = tensor(x["text_emb_l"]).flatten(0, 1).mT
    mask = first_of(x["cap_lens"].reshape(-1) + 1, words.shape[1])
    mask[:, 0] = False
    found = gloria.zero_shot_similarity(
        tensor(x["img_emb_l"]),
        tensor(x["img_emb_g"]),
        words,
        tensor(x["text_emb_g"]).flatten(0, 1),
        mask,
        temp1=float(x["temp1"]),
        temp2=float(x["temp2"]),
    )
    both, whole, local = (scores.view(images, classes, prompts) for scores in found)
    return numbers(
        both_sim=both.transpose(0, 1),
        global_sim=whole.transpose(0, 1),
        local_sim=local.transpose(0, 1),
        class_scores=gloria.class_scores(both),
    )


def mgca_token_agg(x: Arrays) -> Arrays:
    """All keys."""
    groups, mask, words = pieces(x["ids"], x["vocab"])
    made = mgca.merge_report(tensor(x["last_hidden_state"]), tensor(x["last_attentions"]), groups, mask, "official")
    return {
        **numbers(report_feat=made.report, word_feat=made.words, word_attn=made.attention),
        "sents": padded(words, 1 + (~made.padding).sum(1), groups.shape[1]),
    }


def _tokens(x: Arrays) -> tuple[Tensor, ...]:
    patches, words = (F.normalize(tensor(x[key]), dim=-1) for key in ("patch_emb", "word_emb"))
    return patches, words, tensor(x["pad_mask"]), mgca.clip_weights(tensor(x["word_attn"]))


def _token_loss(x: Arrays, patches: Tensor, words: Tensor) -> mgca.TokenLoss:
    attention = tensor(x["img_attention_map"])[:, :, 0, 1:].mean(1) if "img_attention_map" in x else None
    return mgca.token_loss(
        patches,
        words,
        tensor(x["word_attn"]),
        tensor(x["pad_mask"]),
        patch_attention=attention,
        variant="official",
        temperature=float(x["tau_local"]),
    )


def mgca_cta_resnet(x: Arrays) -> Arrays:
    """All keys."""
    tau = float(x["tau_local"])
    patches, words, padding, word_weights = _tokens(x)
    whole = _token_loss(x, tensor(x["patch_emb"]), tensor(x["word_emb"]))
    patch_context = mgca.soft_match(patches, words, tau, padding)
    patch_output = F.normalize(patch_context[1], dim=-1)
    word_output = F.normalize(mgca.soft_match(words, patches, tau)[1], dim=-1)
    weights = torch.full(patches.shape[:2], 1 / patches.shape[1])
    patch_1, patch_2 = mgca.token_contrast(patches, patch_output, weights, tau)
    word_1, word_2 = mgca.token_contrast(words, word_output, word_weights, tau)
    return numbers(
        loss_local=whole.patch + whole.word,
        loss_patch=whole.patch,
        loss_patch_1=patch_1,
        loss_patch_2=patch_2,
        loss_word=whole.word,
        loss_word_1=word_1,
        loss_word_2=word_2,
        patch_atten_output=patch_output,
        patch_atten_scores=patch_context[0],
        patch_atten_weights=weights,
        patch_sim=patches @ patch_output.mT / tau,
        word_atten_output=word_output,
        word_atten_weights=word_weights,
        word_sim=words @ word_output.mT / tau,
    )


def mgca_cta_vit(x: Arrays) -> Arrays:
    """All keys."""
    tau = float(x["tau_local"])
    patches, words, padding, word_weights = _tokens(x)
    whole = _token_loss(x, tensor(x["patch_emb"]), tensor(x["word_emb"]))
    output = mgca.soft_match(patches, words, tau, padding)[1]
    weights = mgca.clip_weights(tensor(x["img_attention_map"])[:, :, 0, 1:].mean(1))
    patch_1, patch_2 = mgca.token_contrast(patches, output, weights, tau)
    return numbers(
        loss_local=whole.patch + whole.word,
        loss_patch=whole.patch,
        loss_patch_1=patch_1,
        loss_patch_2=patch_2,
        loss_word=whole.word,
        patch_atten_output=output,
        patch_atten_weights=weights,
        word_atten_weights=word_weights,
    )


def mgca_cpa(x: Arrays) -> Arrays:
    """All keys."""
    image, text = tensor(x["img_emb"]), tensor(x["txt_emb"])
    prototypes = proto.normalise_prototypes_(tensor(x["proto_weight"]))
    epsilon, rounds, tau = float(x["epsilon"]), int(x["sinkhorn_iterations"]), float(x["proto_temperature"])
    image_scores, text_scores = (proto.prototype_scores(e, prototypes) for e in (image, text))
    image_code, text_code = (proto.sinkhorn(scores, epsilon, rounds) for scores in (image_scores, text_scores))
    loss = proto.prototype_loss(image, text, prototypes, temperature=tau, epsilon=epsilon, iterations=rounds)
    return numbers(
        proto_weight_normalised=prototypes,
        img_proto_out=image_scores,
        report_proto_out=text_scores,
        img_code=image_code,
        report_code=text_code,
        loss_i2t_proto=proto.assignment_loss(image_code, text_scores, tau),
        loss_t2i_proto=proto.assignment_loss(text_code, image_scores, tau),
        loss_proto=loss,
    )


def mgca_total(x: Arrays) -> Arrays:
    """All keys."""
    command_line, constructor = (tuple(x[f"lambdas_{key}_default"].tolist()) for key in ("cli", "ctor"))
    assert (command_line, constructor) == (mgca.COMMAND_LINE_WEIGHTS, mgca.CONSTRUCTOR_WEIGHTS)

    def total(kind: str, weights: tuple[float, float, float]) -> Tensor:
        local = tensor(x[f"loss_local_{kind}"])
        terms = mgca.weighted_terms(tensor(x["loss_ita"]), local, tensor(x["loss_proto"]), weights)
        return torch.stack(list(terms.values())).sum()

    return numbers(
        total_resnet_ctor_lambdas=total("resnet", constructor),
        total_vit_ctor_lambdas=total("vit", constructor),
        total_resnet_cli_lambdas=total("resnet", command_line),
    )


def maco_random_masking(x: Arrays) -> Arrays:
    """All keys."""
    out: Arrays = {}
    for ratio in x["mask_ratios"].tolist():
        name = str(ratio).replace(".", "")
        visible, mask, restore = maco.random_masking(tensor(x["x"]), ratio, noise=tensor(x["noise"]))
        out.update(numbers(**{f"x_masked_{name}": visible, f"mask_{name}": mask, f"ids_restore_{name}": restore}))
    return out


def maco_patchify(x: Arrays) -> Arrays:
    """All keys."""
    image, patch = tensor(x["image"]), int(x["patch_size"])
    return numbers(patches_sr0=maco.patchify(image, patch), patches_sr1=maco.patchify(image, 2 * patch))


def _maco_mae(normalise: bool) -> Callable[[Arrays], Arrays]:
    def adapter(x: Arrays) -> Arrays:
        """All keys."""
        images = ((tensor(x["gray_u8"]) / 255 - 0.4978) / 0.2449).expand(-1, 3, -1, -1)
        prediction, noise = tensor(x["pred"]), tensor(x["noise"])
        patch = round((prediction.shape[2] // 3) ** 0.5)
        _, mask, restore = maco.random_masking(noise[..., None], float(x["mask_ratio"]), noise=noise)
        loss = maco.reconstruction_loss(prediction, images, mask, patch, normalise)
        return numbers(mask=mask, ids_restore=restore, loss_img=loss, forward_loss_method=loss)

    return adapter


def maco_contrastive(x: Arrays) -> Arrays:
    """All keys; the reconstruction loss comes from the images and predictions of maco_mae_sr0_rawpix."""
    stem = "maco_mae_sr0_rawpix__"
    pixels = {key.removeprefix(stem): value for key, value in x.items() if key.startswith(stem)}
    found = _maco_forward({key: tensor(value) for key, value in x.items() if not key.startswith(stem)})
    loss = tensor(_maco_mae(False)(pixels)["loss_img"])
    terms = maco.weighted_terms(loss, found["loss_c"], "official")
    return numbers(**found, loss_img=loss, total=torch.stack(list(terms.values())).sum())


def _maco_forward(x: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = x["latent"].shape[1] - 1
    mask = (x["ids_restore"] >= kept).float()
    visible = 1 - mask
    logit = F.linear(visible, x["pos_weight"], x["pos_bias"])
    image = maco.image_embedding(x["latent"], x["img_mlp_weight"], x["img_mlp_bias"])
    cosine = F.normalize(image, dim=1) @ F.normalize(x["text_emb"], dim=1).T
    return {
        "mask": mask,
        "x_pos": visible,
        "weight_logit": logit,
        "scale": F.softplus(logit),
        "img_emb_global": image,
        "logits1": x["Tpar"] * cosine,
        "logits2": (x["Tpar"] * cosine).T,
        "loss_c": maco.contrast_official(image, x["text_emb"], logit, x["Tpar"]),
    }


def maco_grounding(x: Arrays) -> Arrays:
    """The weights of the patches; similarity maps and metrics are in the files of those rooms."""
    return numbers(patch_weight=maco.grounding_weights(tensor(x["pos_weight"]), float(x["weight_tau"])))


def gradients(x: Arrays) -> Arrays:
    """The gradients of these methods' losses."""
    out: Arrays = {}

    def collect(stem: str, loss: Tensor, **leaves: Tensor) -> None:
        found = torch.autograd.grad(loss, list(leaves.values()))
        out.update({f"{stem}__d_{key}": value.numpy() for key, value in zip(leaves, found, strict=True)})

    def inputs(stem: str) -> Arrays:
        return {key.removeprefix(f"{stem}__"): value for key, value in x.items() if key.startswith(f"{stem}__")}

    part = inputs("gloria_local_loss")
    regions, words = tensor(part["img_features"], grad=True), tensor(part["words_emb"], grad=True)
    mask = first_of(part["cap_lens"], words.shape[2])
    options = {key: float(part[key]) for key in ("temp1", "temp2", "temp3")}
    loss = gloria.local_loss(regions, words.mT, mask, **options)
    collect("gloria_local_loss", loss, img_features=regions, words_emb=words)

    for stem in ("mgca_cta_resnet", "mgca_cta_vit"):
        part = inputs(stem)
        patches, words = tensor(part["patch_emb"], grad=True), tensor(part["word_emb"], grad=True)
        sides = _token_loss(part, patches, words)
        collect(stem, sides.patch + sides.word, patch_emb=patches, word_emb=words)

    part = inputs("mgca_cpa")
    image, text = tensor(part["img_emb"], grad=True), tensor(part["txt_emb"], grad=True)
    prototypes = proto.normalise_prototypes_(tensor(part["proto_weight"])).requires_grad_()
    loss = proto.prototype_loss(
        image,
        text,
        prototypes,
        temperature=float(part["proto_temperature"]),
        epsilon=float(part["epsilon"]),
        iterations=int(part["sinkhorn_iterations"]),
    )
    collect("mgca_cpa", loss, img_emb=image, txt_emb=text, proto_weight_normalised=prototypes)

    leaves = ("latent", "text_emb", "pos_weight", "pos_bias", "Tpar")
    maco_inputs = {key: tensor(value, grad=key in leaves) for key, value in inputs("maco_contrastive").items()}
    collect("maco_contrastive", _maco_forward(maco_inputs)["loss_c"], **{key: maco_inputs[key] for key in leaves})
    return out


BASELINES: dict[str, Callable[[Arrays], Arrays]] = {
    "gloria_global_loss": gloria_global_loss,
    "gloria_local_loss": gloria_local_loss,
    "gloria_wordpiece_agg": gloria_wordpiece_agg,
    "gloria_zero_shot": gloria_zero_shot,
    "maco_contrastive": maco_contrastive,
    "maco_grounding": maco_grounding,
    "maco_mae_sr0_normpix": _maco_mae(True),
    "maco_mae_sr0_rawpix": _maco_mae(False),
    "maco_mae_sr1_normpix": _maco_mae(True),
    "maco_mae_sr1_rawpix": _maco_mae(False),
    "maco_patchify": maco_patchify,
    "maco_random_masking": maco_random_masking,
    "mgca_cpa": mgca_cpa,
    "mgca_cta_resnet": mgca_cta_resnet,
    "mgca_cta_vit": mgca_cta_vit,
    "mgca_token_agg": mgca_token_agg,
    "mgca_total": mgca_total,
}
