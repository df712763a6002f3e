"""Feature skew for tasks without a class: k-means clusters take the place of labels."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.preprocessing import normalize

from fedsim.data.activity import apportion
from fedsim.data.partitions.labels import draw_by_label
from fedsim.data.partitions.owners import OwnerPartitioner, Owners, column
from fedsim.errors import WrongInput
from fedsim.seeds import generator

HASHED_WORDS = 2**16
Vectors = NDArray[np.float32]


class ClusterPartitioner(OwnerPartitioner):
    """FedNLP's feature rule: the label rule over k-means clusters of texts or of given vectors.

    `partition_by` names a column of strings, which are embedded, or of vectors of one width.
    """

    def __init__(
        self,
        num_partitions: int,
        partition_by: str,
        alpha: float,
        seed: int,
        num_clusters: int = 10,
        dimensions: int = 32,
    ) -> None:
        super().__init__(num_partitions, seed)
        self._partition_by = partition_by
        self._alpha = alpha
        self._num_clusters = num_clusters
        self._dimensions = dimensions

    def assign(self) -> Owners:
        rng = generator(self._seed, "partition", "cluster")
        state = int(rng.integers(2**32))
        clusters = find_clusters(self._vectors(state), self._num_clusters, state)
        sizes = apportion(np.ones(self._num_partitions), len(clusters))
        return draw_by_label(clusters, sizes, self._alpha, rng)

    def _vectors(self, state: int) -> Vectors:
        values = column(self.dataset, self._partition_by)
        if isinstance(values[0], str):
            return embed(values, self._dimensions, state)
        return np.asarray(values, dtype=np.float32)


def embed(texts: Sequence[str], dimensions: int, state: int) -> Vectors:
    """Return unit vectors [texts, at most `dimensions`]: hashed TF-IDF, then an SVD (LSA)."""
    words = HashingVectorizer(
        n_features=HASHED_WORDS, alternate_sign=False, token_pattern=r"(?u)\S+"
    )
    weights = TfidfTransformer(sublinear_tf=True).fit_transform(words.transform(texts))
    width = min(dimensions, max(1, len(texts) - 1))
    reduced = TruncatedSVD(width, random_state=state).fit_transform(weights)
    return normalize(reduced).astype(np.float32)


def find_clusters(vectors: Vectors, clusters: int, state: int) -> Owners:
    """Return the k-means cluster of each row; where many rows are equal, fewer are used."""
    if clusters > len(vectors):
        raise WrongInput(
            f"partition.clusters = {clusters} cannot be made of {len(vectors)} examples; lower it"
        )
    with warnings.catch_warnings():
        # the warning says that equal rows fill fewer clusters
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(clusters, n_init=1, random_state=state).fit_predict(vectors)
    return np.asarray(found, dtype=np.int64)
