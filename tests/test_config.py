"""Configuration: strict, hashable, and the same after a trip through YAML."""

from pathlib import Path

import pytest
import yaml

from csst_dask.config import EPOCHS, Config, IngestConfig, MaskConfig, build_config, load_config, with_settings
from csst_dask.config.reference import reference
from csst_dask.errors import ConfigError
from csst_dask.schema import MASK_MEANINGS, Mask

FULL = {
    "inputs": ["a.fits", "/data/b"],
    "store": "survey.zarr",
    "cluster": {"scheduler_file": "scheduler.json", "workers": 3},
    "simulation": {"seed": 3, "region": "fornax", "exposures": 2, "detectors": [8, 9], "star_counts": [10, 20]},
    "mask": {"flag_bits": {0: "bad", 9: "ghost"}, "invalid": ["nonfinite", "not_observed", "bad"]},
    "ingest": {"pixels": "quantised", "frame": [92, 96], "chunks": [46, 48], "shard": True},
    "inference": {"weights": "weights", "batch": 16},
    "routing": {"min_bright": 5},
    "map": {"nside": 256, "out": "map.zarr", "png": "/maps/map.png"},
    "training": {"recipe": "paper", "epochs": 3, "bands": ["g", "r"], "pretrained": "resnet50.pth"},
    "execution": {"report": "dask.html", "attempts": 5, "block": 2},
}


def written(folder, data):
    path = folder / "run.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs" / "training").glob("*.yaml")))
def test_configurations_that_come_with_the_package_are_valid(path):
    training = load_config(path).training
    assert training.recipe == path.stem
    assert training.recipe == "csst" or (training.epochs or EPOCHS) > training.early_stopping_epochs


def test_a_download_is_no_path(tmp_path):
    config = load_config(written(tmp_path, {"training": {"pretrained": "download"}}))
    assert config.training.pretrained == "download"
    assert load_config(written(tmp_path, yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_a_configuration_survives_yaml(tmp_path):
    config = load_config(written(tmp_path, FULL))
    again = load_config(written(tmp_path, yaml.safe_dump(config.model_dump(mode="json"))))
    assert again == config
    assert hash(again) == hash(config)
    for section, values in FULL.items():
        if isinstance(values, dict):
            for name in values:
                assert getattr(getattr(config, section), name) != getattr(getattr(Config(), section), name)


def test_the_defaults_survive_yaml(tmp_path):
    assert load_config(None) == Config()
    assert load_config(written(tmp_path, "")) == Config()
    assert load_config(written(tmp_path, yaml.safe_dump(Config().model_dump(mode="json")))) == Config()


def test_relative_paths_are_taken_from_the_files_folder(tmp_path, monkeypatch):
    folder = tmp_path / "runs"
    folder.mkdir()
    written(folder, FULL)
    monkeypatch.chdir(tmp_path)
    config = load_config("runs/run.yaml")
    assert config.inputs == (folder / "a.fits", Path("/data/b"))
    assert config.store == str(folder / "survey.zarr")
    assert config.cluster.scheduler_file == folder / "scheduler.json"
    assert config.inference.weights == folder / "weights"
    assert config.training.pretrained == folder / "resnet50.pth"
    assert config.execution.report == folder / "dask.html"
    assert (config.map.out, config.map.png, config.map.fits) == (folder / "map.zarr", Path("/maps/map.png"), None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"map": {"nsides": 512}}, ["map.nsides"]),
        ({"mapp": {}}, ["mapp"]),
        ({"map": {"nside": 1000}}, ["map.nside", "1000", "power of two"]),
        ({"map": {"nside": 131072}}, ["map.nside", "131072", "65536"]),
        ({"ingest": {"pixels": "lossy"}}, ["ingest.pixels", "lossy", "lossless"]),
        ({"ingest": {"frame": [92, 96]}}, ["ingest", "(92, 96)", "divide"]),
        ({"ingest": {"chunks": [0, 1152]}}, ["ingest.chunks", "0", "greater than 0"]),
        ({"simulation": {"exposures": 0}}, ["simulation.exposures", "0", "1"]),
        ({"simulation": {"star_counts": [5, -1]}}, ["simulation.star_counts", "-1"]),
        ({"mask": {"flag_bits": {16: "bad"}}}, ["mask.flag_bits", "16", "15"]),
        ({"mask": {"flag_bits": {1: "blue"}}}, ["mask.flag_bits", "blue", "saturated"]),
        ({"mask": {"invalid": ["bad"]}}, ["mask.invalid", "nonfinite", "not_observed"]),
        ({"inference": {"batch": 0}}, ["inference.batch", "0", "auto"]),
        ({"cluster": {"scheduler": "tcp://a:1", "scheduler_file": "b"}}, ["cluster", "not both"]),
        ({"execution": {"attempts": 0}}, ["execution.attempts", "0", "1"]),
        ({"execution": {"block": 0}}, ["execution.block", "0", "1"]),
        ({"training": None}, ["training", "None"]),
        ({"training": {"layer_rates": [1.0, 0.0, 0.1]}}, ["training.layer_rates.1", "found 0.0", "greater than 0"]),
        ({"routing": {"review_cost": -1}}, ["routing.review_cost", "-1", "0"]),
        (
            {"simulation": {"seed": "x"}, "routing": {"min_confidence": 2}},
            ["simulation.seed", "'x'", "confidence", "2"],
        ),
    ],
)
def test_every_wrong_field_is_named_with_what_was_found(tmp_path, data, words):
    for call in (lambda: build_config(data), lambda: load_config(written(tmp_path, data))):
        with pytest.raises(ConfigError) as error:
            call()
        for word in words:
            assert word in str(error.value)


PATHS = (
    "cluster.scheduler_file", "execution.report", "simulation.psf", "inference.weights", "map.out", "map.png",
    "map.fits", "map.moc", "training.pretrained",
)  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("url", ["s3://bucket/x", "memory://x", "https://host/x", "s3:/bucket/x"])
def test_a_url_is_refused_where_a_path_is_expected(tmp_path, name, url):
    section, _, field = name.partition(".")
    for call in (
        lambda: with_settings(Config(), {name: url}),
        lambda: load_config(written(tmp_path, {section: {field: url}})),
    ):
        with pytest.raises(ConfigError, match="only a survey store may be a URL") as error:
            call()
        assert url in str(error.value)
        assert name in str(error.value)


def test_a_url_among_the_inputs_is_refused():
    with pytest.raises(ConfigError, match=r"inputs.*s3://bucket/exposures"):
        build_config({"inputs": ["/data/a", "s3://bucket/exposures"]})


@pytest.mark.parametrize("name", PATHS)
def test_a_file_url_is_a_path(tmp_path, name):
    section, _, field = name.partition(".")
    config = load_config(written(tmp_path, {section: {field: "file:///data/x"}}))
    assert getattr(getattr(config, section), field) == Path("/data/x")
    assert with_settings(Config(), {name: Path("file:///data/x")}) == with_settings(Config(), {name: "/data/x"})


def test_only_a_store_may_be_a_url_and_it_stays_as_it_is(tmp_path):
    for url in ("s3://bucket/survey.zarr", "memory://survey.zarr", "file:///data/survey.zarr", "s3:/slip/of/the/pen"):
        assert load_config(written(tmp_path, {"store": url})).store == url


@pytest.mark.parametrize(
    ("text", "word"),
    [("a: [1", "not valid YAML"), ("- 1\n- 2", "list"), ("just words", "str"), ("\x00", "not valid YAML")],
)
def test_files_that_are_no_configuration_are_refused(tmp_path, text, word):
    with pytest.raises(ConfigError, match=word):
        load_config(written(tmp_path, text))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot read"):
            load_config(path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x81\x00")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "binary.yaml")


def test_settings_change_what_they_name_and_nothing_else():
    config = build_config(FULL)
    changed = with_settings(config, {"map.nside": 32, "store": "other.zarr", "map.out": None, "ingest.shard": False})
    assert (changed.map.nside, changed.store, changed.ingest.shard) == (32, "other.zarr", False)
    assert changed.map.out == config.map.out
    undone = with_settings(changed, {"map.nside": 256, "store": "survey.zarr", "ingest.shard": True})
    assert undone == config
    assert with_settings(config, {"map.nside": None}) == config


@pytest.mark.parametrize("name", ["map.sides", "maps.nside", "store.name", "map.nside.x", "nside"])
def test_settings_with_unknown_names_are_refused(name):
    with pytest.raises(ConfigError) as error:
        with_settings(Config(), {name: 8}, "options")
    assert name.split(".")[-1] in str(error.value)
    assert "options" in str(error.value)


def test_settings_with_wrong_values_are_refused():
    with pytest.raises(ConfigError, match=r"command line.*\n.*map.nside.*7"):
        with_settings(Config(), {"map.nside": 7}, "command line")


def test_equal_configurations_hash_alike_and_all_are_frozen():
    one, two = build_config(FULL), build_config(FULL)
    assert one == two
    assert len({one, two, Config()}) == 2
    a, b = MaskConfig(flag_bits={0: "bad", 3: "hot"}), MaskConfig(flag_bits={3: "hot", 0: "bad"})
    assert a == b
    assert hash(a) == hash(b)
    with pytest.raises(ValueError, match="frozen"):
        one.map.nside = 4


def test_names_of_mask_bits_may_be_written_in_capitals():
    config = MaskConfig(flag_bits={2: "HOT"}, invalid=("NONFINITE", "not_observed", "Bad", "bad"))
    assert config.flag_bits == {2: "hot"}
    assert set(config.flag_bits.values()) <= set(MASK_MEANINGS)
    assert config.invalid_bits == Mask.NONFINITE | Mask.NOT_OBSERVED | Mask.BAD


def test_ghosts_are_valid_by_default_and_nothing_else():
    assert MaskConfig().invalid_bits == 255 - Mask.GHOST


def test_chunks_divide_the_default_frame():
    config = IngestConfig()
    assert all(size % chunk == 0 for size, chunk in zip(config.frame, config.chunks, strict=True))


def test_the_page_of_all_settings_is_what_the_code_says():
    page = Path(__file__).parents[1] / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == reference(), (
        "python -m csst_dask.config.reference > docs/configuration.md"
    )
    assert "|  |\n" not in reference()  # every setting says what it is


def test_a_misspelt_setting_is_told_with_what_there_is():
    with pytest.raises(ConfigError, match=r"training\.learning_rat: .*did you mean learning_rate\? \(found 0\.1\)"):
        build_config({"training": {"learning_rat": 0.1}}, "file")
    with pytest.raises(ConfigError, match=r"routing\.xyz: .*expected one of min_bright, min_confidence, references"):
        build_config({"routing": {"xyz": 1}}, "file")
    with pytest.raises(ConfigError, match=r"cluster\.slurm\.memry: .*did you mean memory\?"):
        build_config({"cluster": {"slurm": {"memry": "4GiB"}}}, "file")
