import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from dino_path.evaluation import knn
from dino_path.evaluation.knn import knn_classify, sum_votes, unit_length


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 16))
    labels = rng.integers(5, size=400)
    points = (centres[labels] + rng.normal(size=(400, 16)) * 1.5).astype(np.float32)
    return points[:300], labels[:300], points[300:], labels[300:]


def reference(train, labels, queries, k, temperature, num_classes):
    """Slow and plain, in fp64: eval_knn of facebookresearch/dino, from its description."""
    train = train.astype(np.float64) / np.linalg.norm(train.astype(np.float64), axis=1, keepdims=True)
    queries = queries.astype(np.float64) / np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    predicted = []
    for query in queries:
        similarity = train @ query
        votes = np.zeros(num_classes)
        for index in np.argsort(-similarity)[:k]:
            votes[labels[index]] += np.exp(similarity[index] / temperature)
        predicted.append(votes.argmax())
    return np.array(predicted)


def test_predictions_agree_with_a_plain_reference(features):
    train, labels, queries, _ = features
    for k in (1, 5, 20):
        result = knn_classify(train, labels, queries, num_classes=5, k=k, temperature=0.07)
        assert (result.predicted == reference(train, labels, queries, k, 0.07, 5)).all()


def test_predictions_and_scores_agree_with_scikit_learn(features):
    train, labels, queries, _ = features
    classifier = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    classifier.fit(train, labels)
    result = knn_classify(train, labels, queries, num_classes=5, k=20, temperature=0.07)
    assert result.scores == pytest.approx(classifier.predict_proba(queries), abs=1e-5)
    assert (result.predicted == classifier.predict(queries)).all()


def test_many_chunks_give_the_answers_of_one(features, monkeypatch):
    train, labels, queries, _ = features
    whole = knn_classify(train, labels, queries, num_classes=5, k=20, temperature=0.07)
    monkeypatch.setattr(knn, "QUERIES_PER_CHUNK", 7)
    pieces = knn_classify(train, labels, queries, num_classes=5, k=20, temperature=0.07)
    assert pieces.scores == pytest.approx(whole.scores, abs=1e-5)


def test_k_is_clamped_to_the_training_set(features):
    train, labels, queries, _ = features
    result = knn_classify(train[:7], labels[:7], queries, num_classes=5, k=20, temperature=0.07)
    assert result.k == 7
    assert result.scores.sum(axis=1) == pytest.approx(1)


def test_votes_at_tiny_temperatures_neither_overflow_nor_vanish():
    similarity = np.array([[1.0, 0.999, -1.0]], np.float32)
    votes = sum_votes(similarity, np.array([[2, 0, 1]]), num_classes=4, temperature=1e-4)
    assert np.isfinite(votes).all()
    assert votes.argmax() == 2
    assert votes[0, 3] == 0


def test_length_plays_no_part_and_a_zero_vector_stays_finite(features):
    train, labels, queries, _ = features
    plain = knn_classify(train, labels, queries, num_classes=5, k=20, temperature=0.07)
    scaled = knn_classify(train * 100, labels, queries * 0.01, num_classes=5, k=20, temperature=0.07)
    assert (plain.predicted == scaled.predicted).all()
    assert (unit_length(np.zeros((1, 3), np.float32)) == 0).all()
