"""An estimate computes as a float, prints for people, and is stored as three numbers."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from twinlens.measure.estimate import Estimate, NumberEstimate

EER = Estimate(0.041, 0.03, 0.052)


def test_it_is_a_float() -> None:
    assert EER == 0.041
    assert EER < 0.05 < 2 * EER
    assert type(EER + 1) is float
    assert f"{EER:.1%} {EER:.3f}" == "4.1% 0.041"
    assert round(EER, 2) == 0.04
    assert max([EER, Estimate(0.2)]) == 0.2
    assert np.array([EER, 0.5]).dtype == np.float64
    assert json.dumps(EER) == "0.041"
    assert math.isnan(Estimate(None))
    assert not Estimate(None) < 1


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (EER, "4.1 % (3.0 to 5.2 %)"),
        (Estimate(0.0, 0.0, 0.05), "0 % (0 to 5.0 %)"),
        (Estimate(0.9991), "99.910 %"),
        (Estimate(-1e-17), "0 %"),
        (Estimate(None), "undefined: too little data"),
        (NumberEstimate(0.41, 0.38, 0.45), "0.4100 (0.3800 to 0.4500)"),
        (NumberEstimate.of(EER), "0.0410 (0.0300 to 0.0520)"),
    ],
)
def test_it_prints_for_people(estimate: Estimate, text: str) -> None:
    assert str(estimate) == f"{estimate}" == text


def test_equal_estimates_have_equal_intervals() -> None:
    assert Estimate(0.041, 0.03, 0.052) == EER
    assert Estimate(0.041) != EER
    assert Estimate(None) == Estimate(None)
    assert len({EER, Estimate(0.041, 0.03, 0.052), 0.041, Estimate(None), Estimate(None)}) == 2
    assert replace(EER, low=0.01) == Estimate(0.041, 0.01, 0.052)
    for copied in (copy.deepcopy(EER), pickle.loads(pickle.dumps(EER))):
        assert (copied, float(copied)) == (EER, 0.041)
    assert copy.copy(Estimate(None)) == Estimate(None)


@dataclass(frozen=True)
class Rates:
    eer: Estimate
    low: float


def test_it_is_stored_as_three_numbers() -> None:
    values = {"value": 0.041, "low": 0.03, "high": 0.052}
    assert asdict(Rates(EER, 0.1)) == {"eer": values, "low": 0.1}
    adapter = TypeAdapter(Rates)
    assert adapter.dump_python(Rates(EER, 0.1), mode="json") == {"eer": values, "low": 0.1}
    assert adapter.validate_json('{"eer": {"value": null}, "low": 0}').eer == Estimate(None)
    back = adapter.validate_json(json.dumps({"eer": values, "low": 0.1}))
    assert (back.eer, float(back.eer)) == (EER, 0.041)
    for wrong in ('{"low": 1}', '{"value": "0.1"}', '{"value": true}', '{"value": NaN}', "0.1"):
        with pytest.raises(ValidationError):
            adapter.validate_json(f'{{"eer": {wrong}, "low": 0}}')
    assert Estimate(math.inf, -math.inf, 1).as_json() == {"value": None, "low": None, "high": 1}
