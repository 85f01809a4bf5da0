"""Examples of a batch: roles, counts and variety."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from twinlens.config import SamplerSettings
from twinlens.data.samplers import make_sampler
from twinlens.report.example_pairs import example_pairs, example_triplets


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["pk", "pairs", "triplets"]),
    seed=st.integers(0, 1000),
    num=st.integers(1, 9),
    with_forgeries=st.booleans(),
    rotations=st.booleans(),
)
def test_examples_have_their_roles(
    kind: str, seed: int, num: int, with_forgeries: bool, rotations: bool
) -> None:
    label = np.repeat(np.arange(5), 5)
    forged = np.tile([False, False, False, with_forgeries, with_forgeries], 5)
    sampler = make_sampler(label, forged, SamplerSettings(kind=kind, rotations=rotations), seed)
    batch = sampler.batch(seed % sampler.steps_per_epoch)
    rng = np.random.default_rng(seed)
    genuine, impostor = example_pairs(batch, num, rng)
    triplets = example_triplets(batch, num, rng)

    def is_genuine(a: int, b: int) -> bool:
        return a != b and batch.label[a] == batch.label[b] and not batch.forged[[a, b]].any()

    def is_impostor(a: int, b: int) -> bool:
        if batch.label[a] == batch.label[b]:
            return bool(batch.forged[a]) != bool(batch.forged[b])
        return not (batch.forged[a] and batch.forged[b])

    for pairs, has_role in ((genuine, is_genuine), (impostor, is_impostor)):
        assert len(pairs) <= num
        assert len(set(pairs)) == len(pairs)
        assert all(has_role(a, b) for a, b in pairs)
    for anchor, positive, negative in triplets:
        assert is_genuine(anchor, positive)
        assert is_impostor(anchor, negative)
    assert len(triplets) <= num


def test_identities_repeat_only_after_all_others() -> None:
    label = np.repeat(np.arange(6), 4)
    sampler = make_sampler(label, np.zeros(24, bool), SamplerSettings(), 0)
    batch = sampler.batch(0)
    genuine, _ = example_pairs(batch, 12, np.random.default_rng(0))
    shown = [int(batch.label[a]) for a, _ in genuine]
    assert sorted(shown[:6]) == sorted(shown[6:]) == list(range(6))
