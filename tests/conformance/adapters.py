"""From the inputs of a reference implementation to its outputs, through medvlp's public functions.

Each adapter takes a file's input arrays and returns output arrays under the file's own keys. Nothing here knows a
shape or a seed: another set of vectors with other sizes must pass as well.
"""

import dataclasses
from collections.abc import Callable

import adapters_baselines
import numpy as np
import torch
from adapters_baselines import Arrays
from adapters_baselines import tensor as _tensor
from adapters_detection import ADAPTERS_DETECTION, GRADIENTS_DETECTION
from adapters_tasks import ADAPTERS_TASKS, GRADIENTS_TASKS
from adapters_zero_shot import ADAPTERS_ZERO_SHOT, GRADIENTS_ZERO_SHOT
from torch import Tensor

from medvlp.encoders.pooling import AttentionPool
from medvlp.losses.contrastive import image_text_contrast, info_nce
from medvlp.losses.segmentation import dice_bce_official, soft_dice_loss
from medvlp.methods.g2d.pseudo_mask import OFFICIAL, PseudoMaskSettings, aggregate_heads, pseudo_mask
from medvlp.metrics.retrieval import in_batch_accuracy
from medvlp.scoring.prompts import prompt_embeddings, zero_shot_probability
from medvlp.training.optim import warm_restarts, warmup_cosine


def convirt_loss(x: Arrays) -> Arrays:
    """All keys."""
    image, text = _tensor(x["img_emb"]), _tensor(x["txt_emb"])
    lam, tau = float(x["lam"]), float(x["tau"])

    def contrast(first: float, second: float, temperature: float) -> Tensor:
        return image_text_contrast(image, text, temperature=temperature, image_to_text=first, text_to_image=second)

    # One row at a time: a query against all keys, its positive at its own place.
    rows = range(len(image))
    return {
        "loss": contrast(lam, 1 - lam, tau).numpy(),
        "benchx_loss": contrast(lam, 1 - lam, tau).numpy(),
        "loss_i2t": contrast(1, 0, tau).numpy(),
        "loss_t2i": contrast(0, 1, tau).numpy(),
        "benchx_loss_v_per_sample": np.array([info_nce(image[i : i + 1], text, tau, offset=i) for i in rows]),
        "benchx_loss_l_per_sample": np.array([info_nce(text[i : i + 1], image, tau, offset=i) for i in rows]),
        "mgca_convirt_loss": contrast(1, 1, float(x["mgca_tau"])).numpy(),
    }


def g2d_clip_loss(x: Arrays) -> Arrays:
    """All keys."""
    image, text, tau = _tensor(x["img_emb"]), _tensor(x["txt_emb"]), float(x["temperature"])
    accuracy = in_batch_accuracy(image, text, top_k=(1, 5))
    return {
        "loss": image_text_contrast(image, text, temperature=tau).numpy(),
        "loss_float64": image_text_contrast(image.double(), text.double(), temperature=tau).numpy(),
        "acc1": accuracy[1].reshape(1).numpy(),
        "acc5": accuracy[5].reshape(1).numpy(),
    }


def g2d_bce_dice(x: Arrays) -> Arrays:
    """All keys."""
    logits, target = _tensor(x["pred_logits"]), _tensor(x["target"])
    smooth, weight = float(x["smooth"]), float(x["bce_weight"])
    whole = dice_bce_official(logits, target, smooth=smooth, bce_weight=weight)
    dice = dice_bce_official(logits, target, smooth=smooth, bce_weight=0)
    return {
        "loss_train_true": whole.numpy(),
        "loss_train_false": dice.numpy(),
        "bce": (dice_bce_official(logits, target, smooth=smooth, bce_weight=1) - dice).numpy(),
        "loss_train_false_if_sigmoid": soft_dice_loss(logits.sigmoid(), target, smooth).numpy(),
    }


def g2d_attention_pool(x: Arrays) -> Arrays:
    """All keys."""
    features = _tensor(x["x"])
    _, dim, height, width = features.shape
    heads, out_dim = int(x["num_heads"]), len(x["param_c_proj_bias"])
    pool = AttentionPool(dim, height, heads, head_dim=dim // heads, out_dim=out_dim, query="mean")
    pool.load_state_dict(
        {
            "positional_embedding": _tensor(x["param_positional_embedding"]),
            "in_proj.weight": _tensor(x["param_mhsa_in_proj_weight"]),
            "in_proj.bias": _tensor(x["param_mhsa_in_proj_bias"]),
            "out_proj.weight": _tensor(x["param_mhsa_out_proj_weight"]),
            "out_proj.bias": _tensor(x["param_mhsa_out_proj_bias"]),
            "c_proj.weight": _tensor(x["param_c_proj_weight"]),
            "c_proj.bias": _tensor(x["param_c_proj_bias"]),
        }
    )
    with torch.no_grad():
        pooled, attention = pool(features)
    return {
        "out": pooled.numpy(),
        "att": attention.numpy(),
        "att_grid": pool.attention_grid(attention, height, width).numpy(),
    }


def g2d_pseudo_mask(x: Arrays) -> Arrays:
    """All keys: every grid in the inputs, at 224 and 256 pixels, under every rule."""
    out: Arrays = {}
    rules = {"mean": "mean", "median": "median", "q085": 0.85, "q075": 0.75}
    for key, array in x.items():
        grid = key.removeprefix("att_")
        attention = _tensor(array)
        out[f"agg_{grid}"] = aggregate_heads(attention)[:, 0].numpy()
        for size in (224, 256):
            images = torch.zeros(len(attention), 1, size, size)  # the official masks do not look at the image
            for rule, threshold in rules.items():
                made = pseudo_mask(attention, images, _official(threshold))
                out[f"mask_{grid}_{size}_{rule}"] = made.mask.to(torch.uint8).numpy()
                out[f"thr_{grid}_{size}_{rule}"] = made.threshold[:, 0].numpy()
            made = pseudo_mask(attention, images, _official(0.85, aggregate=False))
            out[f"multi_mask_{grid}_{size}_q085"] = made.mask.to(torch.uint8).numpy()
            out[f"multi_thr_{grid}_{size}_q085"] = made.threshold.numpy()
    return out


def _official(threshold: float | str, aggregate: bool = True) -> PseudoMaskSettings:
    return dataclasses.replace(OFFICIAL, threshold=threshold, aggregate=aggregate)


def chexzero_softmax(x: Arrays) -> Arrays:
    """All but ``single_template_sigmoid``, CheXzero's score by one template alone, which medvlp does not use yet."""
    image, positive, negative = (_tensor(x[key]) for key in ("img_feat", "pos_text", "neg_text"))
    cosine = torch.nn.functional.cosine_similarity
    both = [prompt_embeddings(torch.stack([positive[c], negative[c]])) for c in range(min(2, len(positive)))]
    return {
        "pos_logits": cosine(image[:, None], positive[None], dim=-1).numpy(),
        "neg_logits": cosine(image[:, None], negative[None], dim=-1).numpy(),
        "prob": zero_shot_probability(image, positive, negative).numpy(),
        "two_template_weights_first2": torch.stack(both, 1).numpy(),
    }


def mgca_ita(x: Arrays) -> Arrays:
    """All keys: MGCA's instance alignment is the same contrast."""
    image, text, tau = _tensor(x["img_emb"]), _tensor(x["txt_emb"]), float(x["tau"])
    accuracy = in_batch_accuracy(image, text, top_k=(1, 5))
    return {
        "loss_i2t": info_nce(image, text, tau).numpy(),
        "loss_t2i": info_nce(text, image, tau).numpy(),
        "loss_ita": image_text_contrast(image, text, temperature=tau).numpy(),
        "acc1": accuracy[1].reshape(1).numpy(),
        "acc5": accuracy[5].reshape(1).numpy(),
    }


def lr_schedules(x: Arrays) -> Arrays:
    """All keys."""
    lr, min_lr, period = (float(v) for v in x["g2d_cfg_lr_minlr_T0"])
    maco_lr, maco_min, maco_warmup, maco_epochs = (float(v) for v in x["maco_cfg_lr_minlr_warmup_epochs"])
    peak, floor, start, warmup, epochs = (float(v) for v in x["medklip_cfg_lr_minlr_warmuplr_warmup_epochs"])
    return {
        "g2d_lr_per_step": np.array([warm_restarts(t, lr=lr, period=period, min_lr=min_lr) for t in range(450)]),
        "maco_lr": np.array(
            [
                warmup_cosine(e, lr=maco_lr, warmup=maco_warmup, total=maco_epochs, min_lr=maco_min, start_lr=0.0)
                for e in x["maco_epoch"]
            ]
        ),
        "medklip_lr_per_epoch": np.array(
            [
                warmup_cosine(e, lr=peak, warmup=warmup, total=warmup + epochs, min_lr=floor, start_lr=start)
                for e in range(110)
            ]
        ),
    }


def mgca_lr_schedule(x: Arrays) -> Arrays:
    """All keys: the first 200 steps, as the file's description says."""
    lr, floor = float(x["max_lr"]), float(x["min_lr"])
    total, warmup = int(x["training_steps"]), int(x["warmup_steps"])
    return {"lr": np.array([warmup_cosine(t, lr=lr, warmup=warmup, total=total, min_lr=floor) for t in range(200)])}


def gradients(x: Arrays) -> Arrays:
    """The gradients of the losses that are here; that of M-FLAG is not yet."""
    out = adapters_baselines.gradients(x)

    def contrast(stem: str, **weights: float) -> None:
        image, text = _tensor(x[f"{stem}__img_emb"], grad=True), _tensor(x[f"{stem}__txt_emb"], grad=True)
        image_text_contrast(image, text, **weights).backward()
        assert image.grad is not None
        assert text.grad is not None
        out[f"{stem}__d_img_emb"], out[f"{stem}__d_txt_emb"] = image.grad.numpy(), text.grad.numpy()

    lam = float(x["convirt_loss__lam"])
    contrast("g2d_clip_loss", temperature=float(x["g2d_clip_loss__temperature"]))
    contrast("convirt_loss", temperature=float(x["convirt_loss__tau"]), image_to_text=lam, text_to_image=1 - lam)
    contrast("mgca_ita", temperature=float(x["mgca_ita__tau"]))
    logits = _tensor(x["g2d_bce_dice__pred_logits"], grad=True)
    dice_bce_official(
        logits,
        _tensor(x["g2d_bce_dice__target"]),
        smooth=float(x["g2d_bce_dice__smooth"]),
        bce_weight=float(x["g2d_bce_dice__bce_weight"]),
    ).backward()
    assert logits.grad is not None
    out["g2d_bce_dice__d_pred_logits"] = logits.grad.numpy()
    for stem, task_gradients in (GRADIENTS_TASKS | GRADIENTS_DETECTION | GRADIENTS_ZERO_SHOT).items():
        own = {key.removeprefix(f"{stem}__"): value for key, value in x.items() if key.startswith(f"{stem}__")}
        out.update(task_gradients(own))
    return out


def _together(*rooms: dict[str, Callable[[Arrays], Arrays]]) -> dict[str, Callable[[Arrays], Arrays]]:
    """One adapter per file; those that several rooms give for one file are put together, each key from one room."""

    def joined(parts: list[Callable[[Arrays], Arrays]]) -> Callable[[Arrays], Arrays]:
        def adapter(x: Arrays) -> Arrays:
            out: Arrays = {}
            for part in parts:
                found = part(x)
                assert not set(out) & set(found)
                out.update(found)
            return out

        adapter.__doc__ = " ".join(part.__doc__ or "" for part in parts)
        return adapter

    stems = dict.fromkeys(stem for room in rooms for stem in room)
    return {stem: joined([room[stem] for room in rooms if stem in room]) for stem in stems}


_METHODS: dict[str, Callable[[Arrays], Arrays]] = {
    **adapters_baselines.BASELINES,
    "chexzero_softmax": chexzero_softmax,
    "convirt_loss": convirt_loss,
    "g2d_attention_pool": g2d_attention_pool,
    "g2d_bce_dice": g2d_bce_dice,
    "g2d_clip_loss": g2d_clip_loss,
    "g2d_pseudo_mask": g2d_pseudo_mask,
    "gradients": gradients,
    "lr_schedules": lr_schedules,
    "mgca_ita": mgca_ita,
    "mgca_lr_schedule": mgca_lr_schedule,
}

ADAPTERS = _together(_METHODS, ADAPTERS_TASKS, ADAPTERS_DETECTION, ADAPTERS_ZERO_SHOT)
