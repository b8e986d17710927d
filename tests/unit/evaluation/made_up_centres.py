"""Images of three classes from three centres, ten patients each, as features: of tissue, centre, patient and noise."""

import numpy as np

from dino_path.evaluation.measures.sample import Units
from dino_path.evaluation.protocols.makers import Cohort


def cohort_of(labels, makers, patients, kind="centre"):
    classes, names = (
        tuple(f"{word}{n}" for n in range(int(values.max()) + 1))
        for word, values in (("class", labels), (kind, makers))
    )
    units = Units("patients", np.unique(patients, return_inverse=True)[1].astype(np.int64))
    return Cohort(kind, np.arange(len(labels)), labels, makers, units.index, classes, names, units)


def made_up(*, of_class=1.0, of_maker=0.8, of_patient=0.5, noise=1.0, num_images=600, seed=0):
    """Features and cohort; the weights say what features are made of."""
    rng = np.random.default_rng(seed)
    labels, patients = rng.integers(0, 3, num_images), rng.integers(0, 30, num_images)
    makers = patients % 3
    parts = (of_class, 3, labels), (of_maker, 3, makers), (of_patient, 30, patients)
    features = sum(weight * rng.normal(size=(number, 16))[of_image] for weight, number, of_image in parts)
    features = (features + noise * rng.normal(size=(num_images, 16))).astype(np.float32)
    return features, cohort_of(labels, makers, patients)
