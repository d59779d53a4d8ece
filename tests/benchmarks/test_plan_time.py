"""The table of a plan beside its run."""

from benchmarks.plan_time import table


def test_the_table_holds_prediction_interval_measure_and_error():
    found = {
        "budget": "minutes=4", "planning_s": 21.0, "parameters": 3_000_000,
        "recipe": {"steps": 400, "global_batch": 8, "num_workers": 2, "zero_stage": 2},
        "predicted_s": {"value": 220.0, "low": 176.0, "high": 275.0}, "measured_s": 200.0, "error": 0.1,
        "predicted_step_s": 0.5, "measured_step_s": 0.45, "predicted_loss": {"value": 3.0, "low": 2.5, "high": 3.6}, "reached_loss": 3.125,
        "loss_error": -0.04,
    }  # fmt: skip
    head, _, seconds, loss = table(found).splitlines()
    assert "3.00 M parameters, 400 steps of 8 sequences on 2 workers, ZeRO 2" in head
    assert seconds.split()[-6:] == ["220.00", "(176.00", "to", "275.00)", "200.00", "+10.0%"]
    assert loss.split() == ["loss", "3.00", "(2.50", "to", "3.60)", "3.12", "-4.0%"]
