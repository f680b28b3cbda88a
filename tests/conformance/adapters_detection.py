"""The adapters of the detection head, its loss, decoding and non-maximum suppression; see ``adapters.py``."""

from collections.abc import Callable

import numpy as np
import torch
from adapters_baselines import Arrays, numbers, tensor
from torch import Tensor

from medvlp.tasks.detection.decode import Predictions, corners_of, decode_scale, detect
from medvlp.tasks.detection.loss import TERMS, ScaleTargets, Truth, assign, scale_terms, weighted, yolo_loss


def _truth(rows: np.ndarray) -> Truth:
    """Padded rows (class, cx, cy, w, h) as ragged boxes."""
    rows_ = tensor(rows)
    owner, place = rows_.sum(2).nonzero(as_tuple=True)
    found = rows_[owner, place]
    return Truth(found[:, 1:], found[:, 0].long(), owner, torch.ones(len(owner), dtype=torch.bool), len(rows))


def _one_scale(x: Arrays, raw: Tensor) -> tuple[Tensor, dict[str, Tensor], ScaleTargets]:
    height, width = (int(s) for s in x["img_size"][::-1])
    [targets] = assign(
        _truth(x["targets"]),
        [(raw.shape[2], raw.shape[3])],
        tensor(x["anchors"])[None],
        (height, width),
        int(x["num_classes"]),
        ignore_threshold=float(x["ignore_threshold"]),
    )
    terms = scale_terms(raw, targets)
    return _total(terms), terms, targets


def _total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(weighted(terms).values())).sum()


def mgca_yolo_one_scale(x: Arrays) -> Arrays:
    """All keys."""
    raw = tensor(x["input"])
    height, width = (int(s) for s in x["img_size"][::-1])
    total, terms, targets = _one_scale(x, raw)
    decoded = decode_scale(raw, tensor(x["anchors"]), (height, width), int(x["num_classes"]))
    names = dict(zip(TERMS, ("x", "y", "w", "h", "conf", "cls"), strict=True))
    return numbers(
        loss=total,
        decoded=decoded,
        target_mask=targets.mask,
        target_noobj_mask=targets.noobj_mask,
        target_tx=targets.x,
        target_ty=targets.y,
        target_tw=targets.w,
        target_th=targets.h,
        target_tconf=targets.mask,
        target_tcls=targets.classes,
        **{f"loss_{names[term]}": value for term, value in terms.items()},
    )


def mgca_yolo_one_scale_gradients(x: Arrays) -> Arrays:
    """Of the total."""
    raw = tensor(x["input"], grad=True)
    _one_scale(x, raw)[0].backward()
    assert raw.grad is not None
    return {"mgca_yolo_one_scale__d_input": raw.grad.numpy()}


def mgca_yolo_three_scales(x: Arrays) -> Arrays:
    """All keys; the images are 32 times as large as the coarsest grid."""
    outputs = [tensor(x[f"out{i}"]) for i in range(3)]
    anchors = tensor(x["anchors"])
    grids = [(raw.shape[2], raw.shape[3]) for raw in outputs]
    image_size = (32 * grids[0][0], 32 * grids[0][1])
    targets = assign(_truth(x["targets"]), grids, anchors, image_size)
    terms = yolo_loss(outputs, targets)
    alone = [_total(scale_terms(raw, target)) for raw, target in zip(outputs, targets, strict=True)]
    return {
        **numbers(total=torch.stack(alone).sum(), loss_per_scale=torch.stack(alone)),
        "summed_terms": torch.stack([torch.stack(alone).sum(), *(terms[term] for term in TERMS)]).numpy(),
        **{f"decoded{i}": decode_scale(raw, anchors[i], image_size).numpy() for i, raw in enumerate(outputs)},
    }


def mgca_nms(x: Arrays) -> Arrays:
    """All keys."""
    rows = tensor(x["candidates_cxcywh_conf_cls"])
    real = torch.arange(rows.shape[1]) < tensor(x["num_candidates"])[:, None]
    # rows of padding have objectness 0, below any cut
    predictions = Predictions(corners_of(rows[..., :4]), rows[..., 4] * real, rows[..., 5:])
    found = detect(predictions, min_score=float(x["conf_thres"]), iou_threshold=float(x["nms_thres"]))
    scored = torch.stack([found.scores, found.class_scores, found.labels.float()], 1)
    images = found.per_image(torch.cat([found.boxes, scored], 1))
    counts = [len(image) for image in images]
    padded = torch.nn.utils.rnn.pad_sequence(images, batch_first=True)
    return {"detections": padded.numpy(), "num_detections": np.array(counts)}


ADAPTERS_DETECTION: dict[str, Callable[[Arrays], Arrays]] = {
    "mgca_yolo_one_scale": mgca_yolo_one_scale,
    "mgca_yolo_three_scales": mgca_yolo_three_scales,
    "mgca_nms": mgca_nms,
}
"""File to adapter: mgca_yolo_one_scale, mgca_yolo_three_scales, mgca_nms."""

GRADIENTS_DETECTION: dict[str, Callable[[Arrays], Arrays]] = {"mgca_yolo_one_scale": mgca_yolo_one_scale_gradients}
"""File to gradients of its main loss, keys ``<file>__d_<input>``; called with the file's own inputs."""
