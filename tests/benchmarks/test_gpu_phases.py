"""What the floors of phases count."""

from benchmarks.device_rates import Rates
from benchmarks.gpu_phases import floor

from ..engine.tiny import make_engine, write_model


def test_the_last_layer_counts_what_it_computes(tmp_path):
    """Behind the projections of q, k and v the last layer of a refresh has the rows alone that are read."""
    folder = write_model(tmp_path, "llada")
    with make_engine(folder) as engine:
        model = engine.model_config
    rates = Rates(1.0, 1.0)
    requests, queries, keys, rows = 3, 20, 30, 4
    _, whole = floor(model, rates, requests, queries, keys, 0, queries)
    _, some = floor(model, rates, requests, queries, keys, 0, rows)
    width, spared = model.hidden_size, requests * (queries - rows)
    mlp_and_output = 2 * width * (model.q_size + 3 * model.intermediate_size)
    assert whole - some == spared * (mlp_and_output + 4 * keys * model.q_size)
    per_layer = 2 * width * (2 * model.q_size + 2 * model.kv_size + 3 * model.intermediate_size)
    assert whole == model.num_layers * requests * queries * (per_layer + 4 * keys * model.q_size)
