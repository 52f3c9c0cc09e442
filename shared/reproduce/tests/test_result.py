import pytest

from gyri.reproduce import Claim, Data, Result


def test_caption_without_figure_is_an_error():
    with pytest.raises(ValueError, match="captions: no figure is named"):
        Result([], {}, Data.simulated("noise"), captions={"a": "A."})


def test_missing_data_and_measured_claim_contradict_each_other():
    with pytest.raises(ValueError, match="claims: the data is missing"):
        Result([Claim.info("q", None, 1.0)], {}, Data.missing(needs="Cam-CAN"))
