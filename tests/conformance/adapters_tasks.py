"""The adapters of metrics and segmentation losses; see ``adapters.py``."""

from collections.abc import Callable

import numpy as np
import torch
from adapters_baselines import Arrays, numbers, tensor
from torch import Tensor

from medvlp.losses.segmentation import focal_dice_mgca, focal_loss, soft_dice_of_batch, squared_dice_loss
from medvlp.metrics.classification import best_f1_thresholds, classification_measures
from medvlp.metrics.detection import detection_measures
from medvlp.metrics.grounding import grounding_measures, grounding_statistics
from medvlp.metrics.samples import Ragged, Samples
from medvlp.metrics.segmentation import mask_statistics, segmentation_measures
from medvlp.scoring.heatmaps import min_max, similarity_maps, smooth, upsample
from medvlp.tasks.detection.decode import corners_of, decode, detect


def _table(**columns: np.ndarray) -> Samples:
    length = len(next(iter(columns.values())))
    return Samples(torch.arange(length), {name: tensor(column) for name, column in columns.items()})


def medklip_best_f1(x: Arrays) -> Arrays:
    """All keys."""
    classes = [str(c) for c in range(x["scores"].shape[1])]
    found = classification_measures(_table(score=x["scores"], label=x["labels"]), names=classes)
    named = {"max_f1": "f1_medklip", "acc_at_threshold": "accuracy_medklip", "auc": "auroc"}
    out = {key: np.array([float(found[f"{name}/{c}"]) for c in classes]) for key, name in named.items()}
    out["threshold"] = best_f1_thresholds(tensor(x["scores"]), tensor(x["labels"])).numpy()
    means = {"f1_mean": "f1_medklip", "acc_mean": "accuracy_medklip", "auc_mean": "auroc"}
    return out | {key: np.array(float(found[name])) for key, name in means.items()}


def mgca_segmentation(x: Arrays) -> Arrays:
    """All keys."""
    logit, target, prob = (tensor(x[key]) for key in ("logit", "target", "prob"))
    gamma, smooth = float(x["gamma"]), float(x["smooth"])
    # One batch: then MGCA's mean of batch means is the mean over images.
    metric = segmentation_measures(
        Samples(torch.arange(len(prob)), mask_statistics(prob, target)), batch_size=len(prob)
    )
    return numbers(
        focal=focal_loss(logit, target, gamma),
        soft_dice=soft_dice_of_batch(logit.sigmoid(), target, smooth),
        mixed=focal_dice_mgca(logit, target, float(x["alpha"]), gamma, smooth),
        diceloss_class_on_prob=squared_dice_loss(prob, target, factor=1.0, smooth=smooth),
        dice_metric=metric["dice_mgca"],
    )


def mgca_segmentation_gradient(x: Arrays) -> Arrays:
    """Of the mixed loss."""
    logit = tensor(x["logit"], grad=True)
    focal_dice_mgca(logit, tensor(x["target"]), *(float(x[key]) for key in ("alpha", "gamma", "smooth"))).backward()
    assert logit.grad is not None
    return numbers(mgca_segmentation__d_logit=logit.grad)


def medklip_seg_metrics(x: Arrays) -> Arrays:
    """All keys."""
    statistics = mask_statistics(tensor(x["prob"]), tensor(x["mask"]))
    found = segmentation_measures(Samples(torch.arange(len(x["prob"])), statistics))
    positive = statistics["truth"] > 0
    return numbers(
        dice=found["dice_all"],
        dice_neg=found["dice_negative"],
        dice_pos=found["dice_positive"],
        num_neg=(~positive).sum(),
        num_pos=positive.sum(),
        miou=found["miou_medklip"],
    )


def mgca_det_map(x: Arrays) -> Arrays:
    """All keys; the images are 32 times as large as the coarsest grid, and 0.8.2 agrees with 1.9.0 within rounding."""
    outputs = [tensor(x[f"out{i}"]) for i in range(3)]
    side = 32 * outputs[0].shape[-1]
    found = detect(decode(outputs, tensor(x["anchors"]), (side, side)), min_score=0.5, iou_threshold=0.5)
    rows = [image[image.sum(1) > 0] for image in tensor(x["labels"])]
    truth = [corners_of(image[:, 1:]) * side for image in rows]
    columns = {
        "boxes": found.per_image(found.boxes),
        "scores": found.per_image(found.scores),
        "labels": found.per_image(found.labels),
        "truth": truth,
        "truth_labels": [image[:, 0].long() for image in rows],
    }
    samples = Samples(torch.arange(len(rows)), {}, {name: Ragged.of(parts) for name, parts in columns.items()})
    measures = detection_measures(samples, ious=x["iou_thresholds"].tolist())
    each = np.array([float(detection_measures(samples, ious=[t])["map_mgca"]) for t in x["iou_thresholds"].tolist()])
    kept = [i for i in range(len(rows)) if len(columns["boxes"][i]) and len(truth[i])]
    padded = {
        key: torch.nn.utils.rnn.pad_sequence([columns[name][i] for i in kept], batch_first=True)
        for key, name in (("pred_boxes", "boxes"), ("pred_scores", "scores"), ("gt_boxes", "truth"))
    }
    return numbers(
        **padded,
        kept_images=torch.tensor(kept),
        num_pred=torch.tensor([len(columns["boxes"][i]) for i in kept]),
        num_gt=torch.tensor([len(truth[i]) for i in kept]),
        map=measures["map_mgca"],
        map_all_images_kept=measures["map_coco"],
        map_torchmetrics_0_8_2=measures["map_mgca"],
    ) | {"map_per_threshold": each, "map_per_threshold_torchmetrics_0_8_2": each}


def medklip_grounding(x: Arrays) -> Arrays:
    """All keys."""
    attention = tensor(x["layer_attn_pneumonia"]).mean(1)
    side, size = round(attention.shape[1] ** 0.5), x["seg_map"].shape[-1]
    maps = attention.view(-1, side, side)
    threshold = float(x["threshold"])
    large = upsample(maps, size, "nearest")
    found = grounding_statistics(large, tensor(x["seg_map"]).float(), [threshold])
    samples = Samples(torch.arange(len(maps)), found).select(tensor(x["labels"])[:, 0] == 1)
    measures = grounding_measures(samples, thresholds=[threshold])
    each = [grounding_measures(samples.select(torch.tensor([i])), thresholds=[threshold]) for i in range(len(samples))]
    return numbers(
        pred_map_14=maps,
        num_positive=torch.tensor(len(samples)),
        point_hits=samples["pointing_medklip"].sum(),
        point_score=measures["pointing_medklip"],
        iou_per_positive=torch.stack([one[f"iou@{threshold:g}"] for one in each]),
        dice_per_positive=torch.stack([one[f"dice@{threshold:g}"] for one in each]),
        iou_mean=measures[f"iou@{threshold:g}"],
        dice_mean=measures[f"dice@{threshold:g}"],
    )


def maco_grounding_metrics(x: Arrays) -> Arrays:
    """The metrics of the enlarged and stretched maps; the maps themselves are in another room."""
    thresholds = x["thresholds"].tolist()
    patches, text = tensor(x["patch_emb"]).movedim(-1, 1), tensor(x["text_emb"])
    maps = smooth(similarity_maps(patches, text, normalise=False), float(x["sigma"]))
    heat = min_max(upsample(maps, x["gt_masks"].shape[-1]), -1, 1)
    names, category = np.unique(x["category"], return_inverse=True)
    columns = grounding_statistics(heat, tensor(x["gt_masks"]).float(), thresholds)
    samples = Samples(torch.arange(len(heat)), {**columns, "category": tensor(category)})
    found = grounding_measures(samples, thresholds=thresholds, categories=names.tolist())
    each = [grounding_measures(samples.select(torch.tensor([i])), thresholds=thresholds) for i in range(len(heat))]

    def over(name: str) -> Tensor:
        return torch.stack([found[name.format(t=f"{t:g}")] for t in thresholds])

    return numbers(
        iou_per_threshold_per_image=torch.stack([torch.stack([one[f"iou@{t:g}"] for one in each]) for t in thresholds]),
        cnr_per_image=samples["cnr"],
        iou=over("iou@{t}"),
        dice=over("dice@{t}"),
        recall=over("recall@{t}"),
        precision=over("precision@{t}"),
        pointing_game=over("pointing_medklip"),
        cnr=over("cnr"),
        iou_by_category=over("iou@{t}_category"),
        cnr_by_category=over("cnr_category"),
        miou_final=found["miou"],
        cnr_final=found["cnr"],
    )


ADAPTERS_TASKS: dict[str, Callable[[Arrays], Arrays]] = {
    "maco_grounding": maco_grounding_metrics,
    "medklip_grounding": medklip_grounding,
    "mgca_det_map": mgca_det_map,
    "medklip_seg_metrics": medklip_seg_metrics,
    "mgca_segmentation": mgca_segmentation,
    "medklip_best_f1": medklip_best_f1,
}
"""File to adapter. An adapter may give a part of a file's keys when another room gives the rest."""

GRADIENTS_TASKS: dict[str, Callable[[Arrays], Arrays]] = {"mgca_segmentation": mgca_segmentation_gradient}
"""File to gradients of its main loss, keys ``<file>__d_<input>``; called with the file's own inputs."""
