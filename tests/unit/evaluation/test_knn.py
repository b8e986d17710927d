import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from dino_path.evaluation.protocols import knn
from dino_path.evaluation.protocols.knn import NeighbourIndex, centred, knn_classify, sum_votes, unit_length


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 16))
    labels = rng.integers(5, size=400)
    points = (centres[labels] + rng.normal(size=(400, 16)) * 1.5).astype(np.float32)
    return points[:300], labels[:300], points[300:], labels[300:]


def classify(train, labels, queries, k, temperature=0.07, **others):
    results = knn_classify(train, labels, queries, num_classes=5, ks=[k], temperature=temperature, **others)
    return results[k]


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
        result = classify(train, labels, queries, k)
        assert (result.predicted == reference(train, labels, queries, k, 0.07, 5)).all()


def test_predictions_and_scores_agree_with_scikit_learn(features):
    train, labels, queries, _ = features
    classifier = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    classifier.fit(train, labels)
    result = classify(train, labels, queries, 20)
    assert result.scores == pytest.approx(classifier.predict_proba(queries), abs=1e-5)
    assert (result.predicted == classifier.predict(queries)).all()


def test_many_chunks_give_the_answers_of_one(features, monkeypatch):
    train, labels, queries, _ = features
    whole = classify(train, labels, queries, 20)
    monkeypatch.setattr(knn, "QUERIES_PER_CHUNK", 7)
    pieces = classify(train, labels, queries, 20)
    assert pieces.scores == pytest.approx(whole.scores, abs=1e-5)


def test_k_is_clamped_to_the_training_set(features):
    train, labels, queries, _ = features
    result = classify(train[:7], labels[:7], queries, 20)
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
    plain = classify(train, labels, queries, 20)
    scaled = classify(train * 100, labels, queries * 0.01, 20)
    assert (plain.predicted == scaled.predicted).all()
    assert (unit_length(np.zeros((1, 3), np.float32)) == 0).all()


def test_one_search_answers_every_k_as_a_search_of_its_own_does(features):
    train, labels, queries, _ = features
    together = knn_classify(train, labels, queries, num_classes=5, ks=[10, 20, 100, 1000], temperature=0.07)
    for k, result in together.items():
        assert result.scores == pytest.approx(classify(train, labels, queries, k).scores, abs=1e-6)
    assert together[1000].k == 300


def test_uniform_votes_on_centred_features_are_unis_protocol(features):
    train, labels, queries, _ = features
    train, queries = train + 3, queries + 3  # features of networks lie off the origin
    mean = train.mean(axis=0)
    classifier = KNeighborsClassifier(20).fit(normalize(train - mean), labels)
    train_centred, queries_centred = centred(train, queries)
    result = classify(train_centred, labels, queries_centred, 20, temperature=None)
    assert (result.predicted == classifier.predict(normalize(queries - mean))).all()
    assert result.scores == pytest.approx(classifier.predict_proba(normalize(queries - mean)))


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_says_what_share_of_the_true_neighbours_it_finds(kind):
    rng = np.random.default_rng(0)
    train = (rng.normal(size=(40, 24))[rng.integers(40, size=4000)] + rng.normal(size=(4000, 24))).astype(np.float32)
    queries = train[:300] + 0.1 * rng.normal(size=(300, 24)).astype(np.float32)
    index = NeighbourIndex(train, kind)
    recall = index.recall(queries, 20)
    found = next(index.search(queries, 20))[2]
    true = next(NeighbourIndex(train, "flat").search(queries, 20))[2]
    assert recall == pytest.approx(np.mean([np.isin(f, t).mean() for f, t in zip(found, true, strict=True)]))
    assert 0.7 < recall <= 1
    assert NeighbourIndex(train, "flat").recall(queries, 20) == 1


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_of_few_images_still_finds_k_neighbours(kind, features):
    train, labels, queries, _ = features
    exact = classify(train, labels, queries, 300)
    assert classify(train, labels, queries, 300, index=NeighbourIndex(train, kind)).scores == pytest.approx(
        exact.scores, abs=1e-5
    )
