"""What of our results stands in which cell, of the papers' tables and of our own."""

import json

import pytest
from made_results import predictions, rows_of, write
from printed_tables import from_csv, result_row

from medvlp.benchmark.gridfile import GridFile
from medvlp.benchmark.rows import collected
from medvlp.benchmark.tables import Statistics, csv_text, html_fragment, latex, markdown, own_tables, paper_tables
from medvlp.benchmark.tables.cells import PHANTOM
from medvlp.benchmark.tables.paper import BESIDE, LEFT_OUT
from medvlp.errors import ConfigError, DataError


def filled(folder, rows, name="g2d-1", **options):
    frame = collected(write(folder / "results.jsonl", rows))
    return paper_tables(frame, GridFile.read(folder, frame), Statistics(folder, resamples=0), [name], **options)[0]


def own(folder, rows, resamples=0, **options):
    frame = collected(write(folder / "results.jsonl", rows))
    return own_tables(frame, GridFile.read(folder, frame), Statistics(folder, resamples), **options)


def at(table, label, *labels):
    column = [column.labels[-len(labels) :] for column in table.columns].index(labels)
    return next(row.cells[column] for block in table.blocks for row in block.rows if row.label == label)


def shown(cell):
    """Our value with its spread."""
    std = f"± {cell.std_text}" if cell.std_text else ""
    return " ".join(part for part in (cell.mean_text, std, cell.interval_text) if part)


def test_runs_become_mean_and_sample_deviation_and_keep_their_rows(tmp_path):
    rows = [result_row("mgca", "dice_positive", v, run=f"r{i}", job=f"j{i}") for i, v in enumerate((0.4, 0.5, 0.6))]
    cell = at(filled(tmp_path, rows), "MGCA", "SIIM", "1%")
    assert (shown(cell), cell.runs, cell.jobs, cell.lines) == ("50.0 ± 10.0", 3, ("j0", "j1", "j2"), (1, 2, 3))
    assert cell.reported.printed == "49.7"


def test_one_run_has_no_deviation_but_its_rows_interval(tmp_path):
    row = result_row("mgca", "dice_positive", 0.5, low=0.4, high=0.6, level=0.95)
    assert shown(at(filled(tmp_path, [row]), "MGCA", "SIIM", "1%")) == "50.0 [40.0, 60.0]"


def test_what_was_not_run_is_a_dash_and_keeps_the_papers_value(tmp_path):
    table = filled(tmp_path, [result_row("mgca", "dice_positive", 0.5)])
    cell = at(table, "MGCA", "SIIM", "10%")
    assert (cell.status, cell.value, cell.reported.printed) == ("-", None, "59.3")
    assert "'-': not run." in table.footnotes


def test_two_protocols_in_one_column_are_refused(tmp_path):
    rows = [
        result_row("mgca", "dice_positive", 0.5, protocol="mgca"),
        result_row("g2d", "dice_positive", 0.6, protocol="g2d"),
    ]
    with pytest.raises(ConfigError, match=r"protocol: mgca \(line 1\) and g2d \(line 2\).*never mixes"):
        filled(tmp_path, rows)
    with pytest.raises(ConfigError, match="never mixes"):
        own(tmp_path, rows)


def test_protocols_that_the_table_does_not_accept_stay_out(tmp_path):
    rows = [result_row("mgca", "dice_positive", 0.5, protocol="medklip")]
    assert not filled(tmp_path, rows).has_values()


def test_two_tasks_of_the_grid_in_one_cell_are_refused(tmp_path):
    rows = [
        result_row("mgca", "dice_positive", 0.5, bm_task="a"),
        result_row("mgca", "dice_positive", 0.6, bm_task="b"),
    ]
    with pytest.raises(ConfigError, match="mgca has results of a and b"):
        filled(tmp_path, rows)


def test_a_run_that_comes_twice_is_refused(tmp_path):
    rows = [result_row("mgca", "dice_positive", v, config_sha256=str(v)) for v in (0.5, 0.6)]
    with pytest.raises(ConfigError, match=r"run run0 is given twice \(lines 1 and 2\)"):
        filled(tmp_path, rows)


def test_the_metric_can_be_chosen(tmp_path):
    rows = [result_row("mgca", "dice_positive", 0.5), result_row("mgca", "dice_mgca", 0.7)]
    assert at(filled(tmp_path, rows), "MGCA", "SIIM", "1%").mean_text == "50.0"
    table = filled(tmp_path, rows, metrics=["dice_mgca"])
    assert at(table, "MGCA", "SIIM", "1%").mean_text == "70.0"
    assert any("dice_mgca by protocol g2d" in note for note in table.footnotes)


def test_an_undefined_metric_says_why(tmp_path):
    rows = [result_row("mgca", "dice_positive", v, run=f"r{i}") for i, v in enumerate((None, 0.5))]
    table = filled(tmp_path, rows)
    assert (shown(at(table, "MGCA", "SIIM", "1%")), at(table, "MGCA", "SIIM", "1%").runs) == ("50.0", 1)
    assert "dice_positive is not defined in 1 of 2 runs; the mean is of the others." in table.footnotes
    cell = at(filled(tmp_path, rows[:1]), "MGCA", "SIIM", "1%")
    assert (cell.status, cell.jobs) == ("-", ("j0",))


def test_phantom_rows_carry_the_warning(tmp_path):
    rows = [result_row("mgca", "dice_positive", 0.5, notes={"data": {"phantom": True}})]
    for table in (filled(tmp_path, rows), *own(tmp_path, rows)):
        assert table.phantom
        assert PHANTOM in table.footnotes
    assert not filled(tmp_path, [result_row("mgca", "dice_positive", 0.5)]).phantom


def test_methods_without_a_row_are_named(tmp_path):
    table = filled(tmp_path, [result_row("maco", "dice_positive", 0.5)])
    assert any("maco" in note for note in table.footnotes)


@pytest.mark.parametrize("name", ["5a_none", "table5a_decoder_none"])
def test_ablations_take_the_fraction_that_was_run(tmp_path, name):
    rows = [result_row(name, "dice_positive", 0.5, fraction=1.0)]
    table = filled(tmp_path, rows, "g2d-5a")
    assert at(table, "None", "SIIM", "Dice").mean_text == "50.0"
    assert any("fraction 1" in note for note in table.footnotes)
    with pytest.raises(ConfigError, match=r"0\.1, 1 is the paper's 0\.01"):
        filled(tmp_path, [*rows, result_row(name, "dice_positive", 0.4, fraction=0.1, config_sha256="x")], "g2d-5a")


def bold(folder, effects):
    rows = [row for name, effect in effects.items() for row in rows_of(folder, name, "run0", predictions(effect, 0))]
    (table,) = own(folder, rows, resamples=200)
    return [row.label for row in table.blocks[0].rows if row.cells[0].best]


def test_the_best_is_bold_only_where_it_differs_from_the_second(tmp_path):
    assert bold(tmp_path / "far", {"a": 0.1, "b": 3.0}) == ["B"]
    assert bold(tmp_path / "near", {"a": 1.0, "b": 1.02}) == []
    assert bold(tmp_path / "alone", {"a": 1.0}) == []


def test_intervals_of_several_runs_come_from_the_predictions(tmp_path):
    rows = [row for i in range(2) for row in rows_of(tmp_path, "a", f"run{i}", predictions(1.0, i))]
    (table,) = own(tmp_path, rows, resamples=200)
    cell = table.blocks[0].rows[0].cells[0]
    assert cell.low < cell.value < cell.high
    assert cell.std is not None
    (tmp_path / "predictions/a-run1.parquet").unlink()
    with pytest.raises(DataError):
        own(tmp_path, rows, resamples=200)


def grid(folder, **content):
    folder.mkdir(exist_ok=True)
    (folder / "grid.json").write_text(json.dumps({"methods": {}, "tasks": {}, "cannot": {}, "jobs": [], **content}))


def test_own_tables_follow_the_grid(tmp_path):
    grid(
        tmp_path,
        methods={"random": "Random", "g2d": "G2D", "mae": "MAE"},
        tasks={"probe": {"title": "Linear probe", "metric": ""}, "seg": {"title": "Masks", "metric": "dice_all"}},
        cannot={"mae": ["seg"]},
    )
    rows = [
        result_row("g2d", "dice_positive", 0.5, bm_task="seg"),
        result_row("g2d", "dice_all", 0.7, bm_task="seg"),
        result_row("random", "dice_all", 0.2, bm_task="seg", fraction=1.0),
        result_row("g2d", "auroc", 0.9, task="classification", protocol="linear", bm_task="probe"),
    ]
    first, second = own(tmp_path, rows)
    assert [table.name for table in (first, second)] == ["own-classification", "own-segmentation"]
    assert first.columns[0].labels == ("Linear probe", "linear: auroc", "1 %")
    assert [column.labels for column in second.columns] == [("Masks", "g2d: dice_all", s) for s in ("1 %", "100 %")]
    texts = {row.label: [cell.mean_text for cell in row.cells] for row in second.blocks[0].rows}
    assert texts == {"Random": ["-", "20.0"], "G2D": ["70.0", "-"], "MAE": ["/", "/"]}
    assert "'/': the method cannot do this task." in second.footnotes


def test_what_the_grid_says_cannot_be_done_is_a_slash_in_the_papers_tables(tmp_path):
    grid(tmp_path, cannot={"random": ["segmentation_siim"]})
    table = filled(tmp_path, [result_row("mgca", "dice_positive", 0.5), result_row("random", "auroc", 0.5, task="x")])
    assert at(table, "Random Init", "SIIM", "1%").status == "/"


def test_zero_shot_has_no_fraction_and_cnr_is_no_percentage(tmp_path):
    rows = [result_row("maco", "cnr", 1.2, task="grounding", protocol="maco", dataset="ms_cxr", fraction=None)]
    (table,) = own(tmp_path, rows, metrics=["cnr"])
    assert (table.columns[0].labels[-1], table.blocks[0].rows[0].cells[0].mean_text) == ("no training", "1.200")
    assert at(filled(tmp_path, rows, "maco-5"), "MaCo", "CNR").mean_text == "1.200"


def test_an_accuracy_comes_first_where_labels_exclude_each_other(tmp_path):
    notes = {"model": {"labels": "multiclass"}}
    rows = [
        result_row("g2d", m, v, task="classification", protocol="linear", dataset="covidx", notes=notes)
        for m, v in (("auroc", 0.9), ("accuracy", 0.8))
    ]
    assert own(tmp_path, rows)[0].columns[0].metric == "accuracy"


def test_a_damaged_description_of_the_grid_is_refused(tmp_path):
    (tmp_path / "grid.json").write_text("{")
    with pytest.raises(DataError, match=r"grid\.json"):
        own(tmp_path, [result_row("g2d", "dice_positive", 0.5)])


DRAWN = {"data": {"phantom": True}}


def test_a_papers_numbers_stand_beside_no_phantom_unless_asked_for(tmp_path):
    rows = [result_row("mgca", "dice_positive", 0.5, notes=DRAWN), result_row("g2d", "dice_positive", 0.6, notes=DRAWN)]
    alone = filled(tmp_path, rows)
    assert not any(cell.reported for *_, cell in alone.cells())
    assert LEFT_OUT in alone.caption
    for printed in (markdown(alone), latex(alone), html_fragment(alone)):
        assert "49.7" not in printed
    both = filled(tmp_path, rows, beside_phantom=True)
    assert at(both, "MGCA", "SIIM", "1%").reported.printed == "49.7"
    for text in (markdown(both), latex(both), html_fragment(both).replace("&#x27;", "'")):
        assert "PHANTOM BESIDE PAPER: our values are measured on drawn images" in text
    lines = from_csv(csv_text([both]))
    assert all(BESIDE in line["caption"] and line["phantom"] == "1" for line in lines)
    real = filled(tmp_path, [result_row("mgca", "dice_positive", 0.5)])
    assert at(real, "MGCA", "SIIM", "1%").reported.printed == "49.7"
    assert "phantom" not in real.caption.lower()


def test_one_phantom_in_a_table_is_enough(tmp_path):
    rows = [
        result_row("mgca", "dice_positive", 0.5),
        result_row("mgca", "dice_positive", 0.5, dataset="rsna", notes=DRAWN),
    ]
    assert not any(cell.reported for *_, cell in filled(tmp_path, rows).cells())


def test_methods_that_no_paper_has_follow_as_ours(tmp_path):
    grid(tmp_path, methods={"g2d": "G2D", "mine": "My method"})
    rows = [result_row(name, "dice_positive", v) for name, v in (("g2d", 0.5), ("mine", 0.7), ("maco", 0.6))]
    table = filled(tmp_path, rows)
    ours = [block for block in table.blocks if block.title.startswith("Ours")]
    assert [[row.label for row in block.rows] for block in ours] == [["My method"]]
    assert at(table, "My method", "SIIM", "1%").mean_text == "70.0"
    assert at(table, "My method", "SIIM", "10%").mean_text == "-"
    assert not any("mine" in note for note in table.footnotes)
    assert not [b for b in filled(tmp_path, rows, "maco-5").blocks if b.title == "Ours"], "it has no result there"


def test_ours_follow_each_block_that_holds_a_fraction(tmp_path):
    notes = {"task": "classification", "protocol": "finetune_g2d", "dataset": "cxr14"}
    rows = [result_row("mine", "auroc", v, fraction=f, run=f"r{f}", **notes) for f, v in ((0.01, 0.6), (1.0, 0.8))]
    titles = [block.title for block in filled(tmp_path, rows, "g2d-3").blocks]
    assert titles == [
        "1% of the training data",
        "Ours, 1% of the training data",
        "10% of the training data",
        "100% of the training data",
        "Ours, 100% of the training data",
    ]


def test_an_ablation_shows_ours_beside_its_variants(tmp_path):
    rows = [result_row("5a_none", "dice_positive", 0.5, fraction=0.1)]
    mine = [
        result_row("mine", "dice_positive", v, fraction=f, config_sha256=str(f)) for f, v in ((0.1, 0.6), (1.0, 0.7))
    ]
    assert at(filled(tmp_path, [*rows, *mine], "g2d-5a"), "mine", "SIIM", "Dice").mean_text == "60.0"
    other = filled(tmp_path, [*rows, mine[1]], "g2d-5a")
    assert any("mine" in note for note in other.footnotes), "it is named where it has no place"


@pytest.mark.parametrize(
    ("key", "changes"), [("split_sha256", {"split_sha256": "other"}), ("phantom", {"notes": DRAWN})]
)
def test_two_splits_or_phantom_and_real_in_one_column_are_refused(tmp_path, key, changes):
    rows = [result_row("mgca", "dice_positive", 0.5), result_row("g2d", "dice_positive", 0.6, **changes)]
    for show in (filled, own):
        with pytest.raises(ConfigError, match=rf"two values of {key}: .*line 1.*line 2.*never mixes"):
            show(tmp_path, rows)
