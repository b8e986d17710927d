"""The baseline of all slide-level models: the mean of a slide's tile features, and one linear model on it.

Shape suffixes: N cases, D features, M tested cases, C classes, K principal components.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from dino_path.config import CohortConfig
from dino_path.errors import DataError
from dino_path.evaluation.cohorts.folds import Fold
from dino_path.evaluation.measures.confusion import Floats, Ints
from dino_path.evaluation.protocols.linear import MAX_ITERATIONS, PRIOR_VARIANCE


def mean_logistic(means_ND: Floats, labels_N: Ints, fold: Fold) -> Floats:
    """Class probabilities (M, C) of a fold's test part.

    Logistic regression on mean features, standardised by the training cases, with C = 10 / D as in `evaluate logistic`:
    nothing is chosen, so no validation part is needed. Classes weigh the same, however rare.
    """
    model = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=PRIOR_VARIANCE / means_ND.shape[1], class_weight="balanced", max_iter=MAX_ITERATIONS),
    )
    with threadpool_limits(1, user_api="blas"):
        model.fit(means_ND[fold.train], labels_N[fold.train])
        scores_MC: Floats = model.predict_proba(means_ND[fold.test])
    return scores_MC


def cox_risks(means_ND: Floats, times_N: Floats, events_N: Ints, fold: Fold, config: CohortConfig) -> Floats:
    """Log partial hazards (M,) of a fold's test part: larger is a higher risk.

    Cox regression (lifelines, Efron ties) with a ridge penalty on the first principal components of the standardised
    mean features; components are brought to variance 1, and are never more than half the training events.

    Raises:
        DataError: the fit does not converge.
    """
    import pandas as pd
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError, ConvergenceWarning

    train, test = fold.train, fold.test
    most = min(config.cox_components, max(1, int(events_N[train].sum()) // 2), len(train) - 1, means_ND.shape[1])
    reduce = make_pipeline(StandardScaler(), PCA(most, whiten=True, random_state=config.seed))
    with threadpool_limits(1, user_api="blas"):
        train_NK, test_MK = reduce.fit_transform(means_ND[train]), reduce.transform(means_ND[test])
    columns: Sequence[str] = [f"component_{number}" for number in range(train_NK.shape[1])]
    table = pd.DataFrame(train_NK, columns=columns).assign(time=times_N[train], event=events_N[train])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            model = CoxPHFitter(penalizer=config.cox_penalty).fit(table, "time", "event")
    except (ConvergenceError, ConvergenceWarning) as error:
        raise DataError(
            f"repeat {fold.repeat}, fold {fold.fold}",
            f"Cox regression does not converge ({' '.join(str(error).split())[:200]}).",
            "Features that vary, and a sufficient penalty, are needed.",
            "Raise cohort.cox_penalty, or lower cohort.cox_components.",
        ) from None
    risks: NDArray[np.float64] = model.predict_log_partial_hazard(pd.DataFrame(test_MK, columns=columns)).to_numpy()
    return risks
