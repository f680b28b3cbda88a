"""The adapters of zero-shot scores and similarity maps; see ``adapters.py``."""

from collections.abc import Callable

import torch.nn.functional as F
from adapters_baselines import Arrays, numbers, tensor
from medvlp_baselines.maco.losses import grounding_weights

from medvlp.scoring.heatmaps import min_max, similarity_maps, smooth, upsample, with_crop_margin
from medvlp.scoring.prompts import class_vectors, standardised_over_classes

_ROW, _COLUMN = 100, 57  # that the file holds of its enlarged maps


def chexzero_single_template(x: Arrays) -> Arrays:
    """``single_template_sigmoid``; the others are with the metrics of pre-training."""
    image, positive = F.normalize(tensor(x["img_feat"]), dim=-1), F.normalize(tensor(x["pos_text"]), dim=-1)
    return numbers(single_template_sigmoid=standardised_over_classes(image @ positive.T))


def biovil_projection_similarity(x: Arrays) -> Arrays:
    """All keys; the projectors, which are BioViL's own, are put together here from torch's functions."""
    w = {key.removeprefix("proj_model_"): tensor(value) for key, value in x.items() if key.startswith("proj_model_")}
    hidden = F.conv2d(tensor(x["patch_features"]), w["0_weight"])
    hidden = F.batch_norm(hidden, w["1_running_mean"], w["1_running_var"], w["1_weight"], w["1_bias"]).relu()
    patches = F.conv2d(hidden, w["3_weight"], w["3_bias"])
    t = {key.removeprefix("text_"): tensor(value) for key, value in x.items() if key.startswith("text_")}
    dense = F.gelu(F.linear(tensor(x["cls_hidden"]), t["dense_to_hidden_weight"], t["dense_to_hidden_bias"]))
    dense = F.layer_norm(dense, dense.shape[-1:], t["LayerNorm_weight"], t["LayerNorm_bias"], eps=1e-12)
    text = F.linear(dense, t["dense_to_output_weight"], t["dense_to_output_bias"])
    image = F.normalize(patches.mean((2, 3)), dim=-1)
    prompts = class_vectors(text, [range(len(text))], "direction")
    # every prompt on the first image
    maps = smooth(similarity_maps(patches[:1], text[None]), float(x["sigma"]))[0]
    out = numbers(
        projected_patch=patches,
        projected_patch_normalised=F.normalize(patches, dim=1).movedim(1, -1),
        projected_global=patches.mean((2, 3)),
        projected_global_normalised=image,
        text_projected=text,
        text_projected_normalised=F.normalize(text, dim=-1),
        score_image0_mean_of_prompts=(image[0] @ prompts[0]).double(),
        sim_maps=maps,
    )
    for case, (width, height, resize, crop) in enumerate(x["cases_W_H_resize_crop"].tolist()):
        for mode in ("nearest", "bilinear"):
            laid = with_crop_margin(
                maps[0], height, width, None if resize < 0 else resize, None if crop < 0 else crop, mode
            )
            out[f"map_case{case}_{mode}"] = laid.numpy()
    return out


def maco_grounding_maps(x: Arrays) -> Arrays:
    """Similarity maps, enlarged and stretched; the metrics are in another room."""
    patches, text = tensor(x["patch_emb"]).movedim(-1, 1), tensor(x["text_emb"])
    sigma, size = float(x["sigma"]), x["gt_masks"].shape[-1]
    maps = smooth(similarity_maps(patches, text, normalise=False), sigma)
    large = upsample(maps, size)
    weights = grounding_weights(tensor(x["pos_weight"]), float(x["weight_tau"])).view(maps.shape[-2:])
    weighted = similarity_maps(patches, text, normalise=False, patch_weights=weights)
    return numbers(
        sim_map=maps,
        heatmap_row100=large[:, _ROW],
        heatmap_col57=large[:, :, _COLUMN],
        norm_heatmap_row100=min_max(large, -1, 1)[:, _ROW],
        sim_map_weighted=smooth(weighted, sigma),
    )


ADAPTERS_ZERO_SHOT: dict[str, Callable[[Arrays], Arrays]] = {
    "biovil_projection_similarity": biovil_projection_similarity,
    "chexzero_softmax": chexzero_single_template,
    "maco_grounding": maco_grounding_maps,
}
"""An adapter may give a part of a file's keys when another room gives the rest: those of one file are put together."""

GRADIENTS_ZERO_SHOT: dict[str, Callable[[Arrays], Arrays]] = {}
"""File to gradients of its main loss, keys ``<file>__d_<input>``; called with the file's own inputs."""
