"""MGCA's prototypes: balanced soft assignments, and their prediction across modalities.

Paper and code agree here but for the minus sign of the paper's Eq. 8; the paper leaves Sinkhorn's settings open.
Everything is computed in float32 at least. Embeddings are (B, d), prototypes (K, d).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from medvlp import distributed
from medvlp.losses.precision import exact


@torch.no_grad()
def normalise_prototypes_(weight: Tensor) -> Tensor:
    """L2-normalise each prototype in place, as the code does before every use, in training and validation."""
    return weight.copy_(F.normalize(exact(weight)[0], dim=1))


def prototype_scores(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Return the dot products (B, K) of the normalised embeddings with the prototypes as they are."""
    with torch.autocast(embeddings.device.type, enabled=False):
        embeddings, prototypes = exact(embeddings, prototypes)
        return F.normalize(embeddings, dim=1) @ prototypes.T


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3, across_ranks: bool = False) -> Tensor:
    """Assign samples softly to prototypes such that each prototype gets the same share of the batch.

    The released code's iteration, in logarithms: exp(1/0.05) leaves the range of half precision, and large scores that
    of float32, while the result is the same.

    Args:
        scores: (B, K).
        epsilon: entropy of the assignment.
        iterations: of scaling prototypes, then samples.
        across_ranks: share the prototypes over the batch of all ranks. The released code always uses the rank's own.

    Returns:
        (B, K) without gradient, each row of sum 1.
    """
    (logits,) = exact(scores)
    count = len(logits)
    if across_ranks:
        logits = distributed.all_gather(logits)
    logits = logits / epsilon
    for _ in range(iterations):
        logits = logits - logits.logsumexp(0, keepdim=True)
        logits = logits - logits.logsumexp(1, keepdim=True)
    codes = logits.softmax(1)
    first = distributed.rank() * count if across_ranks else 0
    return codes[first : first + count]


def assignment_loss(codes: Tensor, scores: Tensor, temperature: float = 0.2) -> Tensor:
    """Cross-entropy of softmax(scores / τ) against soft codes (B, K), mean over samples; ln K for equal scores."""
    return -(codes * (scores / temperature).log_softmax(1)).sum(1).mean()


def prototype_loss(
    image: Tensor,
    report: Tensor,
    prototypes: Tensor,
    *,
    temperature: float = 0.2,
    epsilon: float = 0.05,
    iterations: int = 3,
    across_ranks: bool = False,
) -> Tensor:
    """Let each modality predict the other's assignment to prototypes; mean of the two, ln K for equal scores.

    The paper's Eq. 8 lacks the minus sign; both variants minimise the cross-entropy. ``temperature`` is that of the
    predictions, the other options are those of :func:`sinkhorn`. Embeddings are normalised here, prototypes are not.
    """
    image_scores, report_scores = prototype_scores(image, prototypes), prototype_scores(report, prototypes)
    image_codes = sinkhorn(image_scores, epsilon, iterations, across_ranks)
    report_codes = sinkhorn(report_scores, epsilon, iterations, across_ranks)
    to_report = assignment_loss(image_codes, report_scores, temperature)
    to_image = assignment_loss(report_codes, image_scores, temperature)
    return (to_report + to_image) / 2
