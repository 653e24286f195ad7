"""Token rows as one batch: each ends where the batch ends, and what stands before it is masked."""

from __future__ import annotations

from workbench.engines.decode import left_padded


def test_rows_of_a_batch_end_together_and_their_padding_is_masked() -> None:
    ids, mask = left_padded([[5, 6, 7], [8]], 2, "cpu")
    assert ids.tolist() == [[5, 6, 7], [2, 2, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
