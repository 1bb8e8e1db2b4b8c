"""How good drawn digits are, by a classifier that learned only from images that their generator never saw."""

from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from evaluation.training.digits import CLASSES, Digits, to_images

ROW = 20  # samples of a class in the picture


def judge_samples(found: Digits, train: Digits, held_out: Digits) -> dict[str, float]:
    """Of samples `found` from a generator trained on `train`:

    sample_accuracy: the share that the classifier, which is trained on `held_out`, takes for what they were to be.
    real_accuracy: the same of `train`, the best to hope for.
    sample_distance: Fréchet distance between what the classifier says of the samples and of `held_out`.
    real_distance: the same of as many images of `train`, the least to hope for.
    """
    from sklearn.svm import SVC  # slow to import

    classifier = SVC(C=5).fit(_rows(held_out.tokens), held_out.labels.numpy())  # 98.8 % of the others right
    wanted = _features(classifier, held_out.tokens)
    real = Digits(*(t[: max(len(found.labels), CLASSES + 1)] for t in train))
    return {
        "sample_accuracy": classifier.score(_rows(found.tokens), found.labels.numpy()),
        "real_accuracy": classifier.score(_rows(train.tokens), train.labels.numpy()),
        "sample_distance": frechet_distance(_features(classifier, found.tokens), wanted),
        "real_distance": frechet_distance(_features(classifier, real.tokens), wanted),
    }


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Between the normal distributions with the means and covariances of two samples (N, F), N > 1: squared, as in
    FID (Heusel et al., 2017).
    """
    means = one.mean(0) - other.mean(0)
    a, b = (np.cov(t, rowvar=False) for t in (one, other))
    roots = np.sqrt(np.maximum(np.linalg.eigvals(a @ b).real, 0))  # of a product of two that are semidefinite
    return float(max(means @ means + np.trace(a) + np.trace(b) - 2 * roots.sum(), 0))


def save_grid(found: Digits, file: Path) -> None:
    """A picture with a row for each class, of its first ROW samples."""
    from matplotlib.image import imsave  # slow to import

    per_class = min(ROW, len(found.labels) // CLASSES)
    framed = F.pad(to_images(found.tokens), (1, 1, 1, 1))
    rows = [framed[found.labels == label][:per_class].transpose(0, 1).flatten(1) for label in range(CLASSES)]
    picture = np.concatenate([row.numpy() for row in rows])  # (CLASSES (SIDE + 2), per_class (SIDE + 2))
    imsave(file, np.kron(picture, np.ones((4, 4))), cmap="gray", vmin=-1, vmax=1)


def _features(classifier: object, tokens: Tensor) -> np.ndarray:
    return classifier.decision_function(_rows(tokens))


def _rows(tokens: Tensor) -> np.ndarray:
    return tokens.flatten(1).numpy()
