"""Scores of classifiers add up over batches; invalid labels are named."""

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
import torch

from trainyard_trainer.data.rows import check_labels, class_names, read_labels
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.recipes.classification import Scores, class_sums

NAMES = ["World", "Sports", "Business"]


def test_scores_add_up_over_batches() -> None:
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 3
    sums = class_sums(logits[:20], labels[:20]) + class_sums(logits[20:], labels[20:])
    scores = Scores.of(sums.tolist(), NAMES)
    predicted = logits.argmax(1)
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert scores.loss == pytest.approx(expected, rel=1e-6)
    assert scores.accuracy == pytest.approx((predicted == labels).float().mean().item())
    assert scores.matrix[1, 2] == ((labels == 1) & (predicted == 2)).sum()
    assert scores.recall[0] == pytest.approx((predicted[labels == 0] == 0).float().mean().item())
    assert scores.precision[2] == pytest.approx((labels[predicted == 2] == 2).float().mean().item())


def test_the_confusion_matrix_reads_as_a_table() -> None:
    scores = Scores.of([3.5, 1500, 200, 300, 0, 4, 0, 0, 0, 0], NAMES)
    assert scores.table() == (
        "  true \\ predicted     World    Sports  Business   recall\n"
        "  World                1,500       200       300    75.0%\n"
        "  Sports                   0         4         0   100.0%\n"
        "  Business                 0         0         0     0.0%\n"
        "  precision           100.0%      2.0%      0.0%"
    )
    many = Scores.of([0.0, *torch.eye(30).flatten().tolist()], [f"c{i}" for i in range(30)])
    assert many.table() == (
        "  lowest recall: c0 100.0%, c1 100.0%, c2 100.0%, c3 100.0%, c4 100.0%"
    )


def refusal(values: list[object], names: list[str] | None = NAMES) -> str:
    def check() -> None:
        labels = read_labels("X", pa.chunked_array([values]))
        check_labels("X", labels, names)
        class_names("X", labels, names)

    with pytest.raises(ConfigError) as caught:
        check()
    return str(caught.value)


def test_invalid_labels_are_refused() -> None:
    three = "there are 3 classes (World, Sports, Business)"
    assert refusal(["a", "b"]) == "X holds string; classes must be the numbers 0, 1, 2, ..."
    assert refusal([0, 1, 3]) == f"X: row 2 has label 3; {three}"
    assert refusal([0, -1, 2]) == f"X: row 1 has label -1; {three}"
    assert refusal([0, None]) == "X: row 1 has no label"
    assert refusal([0, 1, 0]) == f"X: no row of 3 has label 2 (Business); {three}"
    assert refusal([0, 0], None) == "X: every row has label 0; at least two classes are required"
    found = read_labels("X", pa.chunked_array([[1, 0]]))
    assert class_names("X", found, None) == ["LABEL_0", "LABEL_1"]
