from __future__ import annotations

from dataclasses import replace

from benchmarks.cases import GATED, HEADLINE, KINDS_ALONE, ONE, RATES, Case, gated_kinds, select, with_dropouts


def test_cases_are_distinct_and_the_headline_is_there() -> None:
    for device in ("cpu", "cuda"):
        for quick in (True, False):
            found = select(device, quick, [])
            assert len({case.key for case in found}) == len(found)
            names = [c.name for c in found if c.pass_ == "train" and c.dtype == "fp32" and c.group == "headline"]
            assert names == [case.name for case in [*HEADLINE["RNN"][: 7 if quick else None], *GATED]]
            alone = {with_dropouts(ONE, dropouts).key for dropouts in KINDS_ALONE[1:]}
            assert alone < {case.key for case in found}
            assert {case.key for gated in (GATED[1], GATED[6]) for case in gated_kinds(gated)} < {case.key for case in found}
            assert all(case.dropouts.keys() <= RATES[case.cell].keys() for case in found)
    assert {c.group for c in select("cpu", False, ["T2048", "network"])} == {"T", "network"}


def test_a_name_has_what_differs_from_the_headline() -> None:
    case = Case("", 2, 3, 4, 5)
    recurrent = {"recurrent_dropout": 0.2}
    assert case.name == "T2-B3-I4-H5"
    assert replace(case, dropouts={}).name == "T2-B3-I4-H5 no dropout"
    assert replace(case, dropouts=recurrent, mask_scope="sequence").name == "T2-B3-I4-H5 recurrent sequence"
    assert replace(case, dropouts=case.dropouts | recurrent).name == "T2-B3-I4-H5 hidden+recurrent"
    assert replace(case, dropouts=case.dropouts | {"dropout": 0.2}, layers=2).name == "T2-B3-I4-H5 hidden+between 2 layers"
    assert with_dropouts(case, {"dropout": 0.2}).name == "T2-B3-I4-H5 between 2 layers"
    assert with_dropouts(case, RATES["RNN"], "sequence").name == "T2-B3-I4-H5 every kind sequence 2 layers"
    assert replace(case, packed=True).name == "T2-B3-I4-H5 packed"
    assert replace(case, bidirectional=True, input_grad=True).name == "T2-B3-I4-H5 bidirectional input gradient"
    assert replace(case, cell="LSTM").name == "T2-B3-I4-H5 LSTM"
    assert with_dropouts(replace(case, cell="GRU"), RATES["GRU"]).name == "T2-B3-I4-H5 GRU every kind 2 layers"
    kinds = ["recurrent sequence", "zoneout+cell_zoneout", "cell sequence", "candidate", "weight"]
    assert [case.name for case in gated_kinds(GATED[0])] == [f"T35-B20-I200-H200 LSTM {kind}" for kind in kinds]


def test_operations_and_bytes_are_those_of_the_products() -> None:
    """Counted one by one for two layers in both directions."""
    case = Case("", 7, 3, 4, 5, layers=2, bidirectional=True, pass_="inference")
    product = 2 * 7 * 3 * 5
    assert case.flops() == 2 * product * (4 + 5) + 2 * product * (10 + 5)
    train = replace(case, pass_="train")
    assert train.flops() == 2 * product * (2 * 4 + 3 * 5) + 2 * product * (3 * 10 + 3 * 5)
    assert replace(train, input_grad=True).flops() - train.flops() == 2 * product * 4
    packed = replace(case, T=4, B=2, packed=True)
    assert packed.rows == 8 and packed.flops() == case.flops() * 8 / 21
    assert replace(train, cell="LSTM").flops() == 4 * train.flops() and replace(train, cell="GRU").flops() == 3 * train.flops()
    weights = 2 * 5 * (4 + 5) + 2 * 5 * (10 + 5)
    assert case.least_bytes() == 4 * (7 * 3 * (4 + 10) + weights)
    assert replace(case, cell="GRU").least_bytes() == 4 * (7 * 3 * (4 + 10) + 3 * weights)
    assert replace(train, input_grad=True, dtype="bf16").least_bytes() == 2 * (7 * 3 * (2 * 4 + 10) + 2 * weights)
