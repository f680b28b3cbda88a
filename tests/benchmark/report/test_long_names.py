"""Identifiers as long as SIIM's leave room for the pictures."""

from medvlp.benchmark.report.panels import PanelRow


def test_both_ends_of_a_long_identifier():
    def short(label: str) -> str:
        return PanelRow(label, "", None, ()).short

    assert short("00000013_005.png") == "00000013_005.png"
    assert short("1.2.276.0.7230010.3.1.4.8323329.641.1517875160.643713") == "1.2.276.…0.643713"
