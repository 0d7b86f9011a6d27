"""Settings: one file, overridden field by field; each fault is a sentence with the field, its value and what is allowed."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from deconvnet.datasets.palette import GENERATED_CLASSES
from docs.generate_settings import CHAPTERS, Chapter
from infra.errors import UserError
from infra.settings import Section
from tests.workflows.setting_changes import value_of
from workflows import cli
from workflows.cli import setting_fields
from workflows.settings import CONFIGS, EdgeSettings, PredictSettings, ServeSettings, Settings, as_dict, load, parser
from workflows.settings.export import ExportSettings
from workflows.settings.import_data import ImportSettings


@pytest.fixture
def config(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return str(path)

    return write


NAMES = ("a/b", "a:b", "me@lab")
"""Names of registered models that MLflow refuses, or that could not be told from a name with an alias."""
OTHER_CONFIGS = {CONFIGS / f"{chapter.config}.yaml" for chapter in CHAPTERS if chapter.kind is not Settings}


@pytest.mark.parametrize("path", sorted({*CONFIGS.glob("*.yaml")} - OTHER_CONFIGS), ids=lambda p: p.stem)
def test_every_pipeline_config_that_ships_is_valid(path: Path) -> None:
    assert load(str(path)).workspace.startswith("/")


def test_own_data_have_the_settings_of_the_sample() -> None:
    """Only the paths differ, and the weight file, which everybody can download."""
    own, sample = (as_dict(load(str(CONFIGS / f"{name}.yaml"))) for name in ("own_data", "voc_sample_cpu"))
    own["model"] |= {name: sample["model"][name] for name in ("vgg16", "convention")}
    assert {**own, "workspace": "", "data": {}} == {**sample, "workspace": "", "data": {}}
    assert as_dict(load(str(CONFIGS / "voc_sample.yaml")))["segment"] == sample["segment"], "chosen on dev, for both"


STEPS = {"schedule": "step", "gamma": 0.1}
PROMISED: dict[str, dict[str, Any]] = {
    "voc2012": {
        "data.train_split": "train_aug",
        "model.width": 1.0,
        "model.convention": "torchvision",
        "compute.workers": 8,
        "compute.gpu": True,
        "train.stage1": STEPS | {"step_every": 9000, "max_steps": 20_000},
        "train.stage2": STEPS | {"step_every": 10_000, "max_steps": 40_000},
    },
    "voc_sample": {"model.width": 1.0, "compute.workers": 1, "compute.gpu": True},
    "camvid": {
        "data.background": "none",
        "data.test_split": "test",
        "proposals.kind": "windows",
        "segment.aggregation": "mean",
        "model.width": 0.5,
    },
    "serve": {"host": "127.0.0.1", "model": "models:/edeconvnet@champion"},
}
"""What the comments in settings files and the documentation say of their values."""


@pytest.mark.parametrize("name", PROMISED)
def test_a_config_has_the_values_that_its_comments_and_the_documentation_promise(name: str) -> None:
    kind = next((chapter.kind for chapter in CHAPTERS if chapter.config == name), Settings)
    settings = cli.load(str(CONFIGS / f"{name}.yaml"), kind, [])
    for path, promised in PROMISED[name].items():
        found = value_of(settings, path)
        assert promised == ({key: getattr(found, key) for key in promised} if isinstance(promised, dict) else found), path


def test_every_field_can_be_overridden(config) -> None:
    options = {f"--{path}" for path, _ in setting_fields(Settings)}
    assert {"--workspace", "--data.root", "--seed", "--train.stage2.lr", "--segment.crf.xy_sigma", "--init.from"} <= options
    settings, _ = parser("x").parse_settings(
        ["--config", config("seed: 1\n"), "--seed", "7", "--train.stage1.lr", "0.5", "--init.from", "models:/m@champion"]
    )
    assert (settings.seed, settings.train.stage1.lr, settings.init.from_) == (7, 0.5, "models:/m@champion")
    assert settings.train.stage2.lr == 0.01


@pytest.mark.parametrize("name", ["2024", "1e3", "yes", "[a", "null"])
def test_text_on_the_command_line_is_text_whatever_yaml_makes_of_it(config, name: str) -> None:
    assert load(config(""), "--workspace", name).workspace == str(Path.cwd() / name)
    assert load(config("model: {vgg16: w.npz}"), "--model.vgg16", "").model.vgg16 is None


def test_classes_from_the_command_line(config) -> None:
    settings = load(config("data: {root: /x}"), "--data.classes", "background, cat,dog")
    assert settings.data.classes == ("background", "cat", "dog")
    settings = load(config("data: {root: /x}"), "--data.classes", '["background", "lamp, lit"]')
    assert settings.data.classes == ("background", "lamp, lit")


def test_generated_data_bring_their_own_classes(config) -> None:
    assert load(config("")).data.classes == GENERATED_CLASSES
    with pytest.raises(UserError, match=r"data\.classes .* don't fit the generated data"):
        load(config("data: {classes: [background, cat]}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {rot: /x}", r"unknown setting data\.rot .*did you mean data\.root\?"),
        ("sed: 1", r"unknown setting sed .*did you mean seed\?"),
        ("seed: -1", r"seed: -1 is not allowed"),
        ("train: {stage1: {lr: fast}}", r"train\.stage1\.lr: 'fast' is not allowed: a number is needed"),
        ("train: {stage1: {epochs: 2.5}}", r"train\.stage1\.epochs: 2\.5 is not allowed: a whole number is needed"),
        ("compute: {gpu: maybe}", r"compute\.gpu: 'maybe' is not allowed: true or false is needed"),
        ("model: 5", r"model: 5 is not allowed: it is a section, and has settings below it"),
        ("workspace: 2024", r"workspace: 2024 is not allowed: text is needed; .* goes in quotes"),
        ("data: {classes: 7}", r"data\.classes: 7 is not allowed: a list is needed"),
        ("model: {input_size: 100}", r"model\.input_size: 100 is not allowed: must be a multiple of 32; 96 or 128 would do"),
        ("compute: {workers: 21}", r"train\.fcn8s\.batch 20 leaves some of 21 workers .*lower compute\.workers to 20"),
        ("compute: {workers: 2, min_workers: 3}", r"compute\.min_workers 3 is more than compute\.workers 2"),
        ("compute: {min_workers: 0}", r"compute\.min_workers: 0 is not allowed"),
        ("train: {stage2: {micro_batch: 65}}", r"train\.stage2\.micro_batch 65 is more than train\.stage2\.batch 64"),
        ("model: {width: 1.5, vgg16: w.npz}", r"model\.width 1\.5 can't start from VGG-16"),
        ("segment: {proposals: 3000}", r"segment\.proposals 3000 is more than proposals\.max_boxes 2000"),
        ("segment: {early_exit: 1}", r"segment\.early_exit: 1 is not allowed"),
        (
            "proposals: {kind: windows}\nsegment: {early_exit: 0.01}",
            r"segment\.early_exit has no effect with proposals\.kind windows",
        ),
        (
            "data: {root: /x, classes: [a, b], background: none}\nsegment: {early_exit: 0.02}",
            r"segment\.early_exit may leave parts of an image without boxes, and data\.background none .*proposals\.kind to both",
        ),
        ("data: {root: /x, classes: [a, b, a]}", r"data\.classes: .*repeated: a"),
        ("examples: {window: round}", r"examples\.window: 'round' is not allowed"),
        ("- 1\n- 2", "must hold sections and keys"),
        ("a: [1", "line 1 can't be read as YAML"),
        ("seed: 1\nseed: 5", "line 2 can't be read as YAML: seed is given twice"),
        ("data: {root: /a}\nseed: 1\ndata: {limit: 3}", "line 3 .*: data is given twice"),
        ("train:\n  stage1: {lr: 0.1, epochs: 3, lr: 0.2}", "line 2 .*: lr is given twice"),
        (
            "train: {stage2: {batch: 5, micro_batch: 2}}",
            r"^train\.stage2\.micro_batch 2 with train\.stage2\.batch 5 makes a single worker compute one .*: take 3 or more",
        ),
        ("train: {stage1: {batch: 1}}", r"^train\.stage1\.batch 1 makes a single worker compute one .*: raise it$"),
        ("train: {stage1: {lr: .nan}}", r"train\.stage1\.lr: nan is not allowed: input should be a finite number"),
        ("segment: {min_side: .inf}", r"segment\.min_side: inf is not allowed"),
        ("data: {dev_fraction: .nan}", r"data\.dev_fraction: nan is not allowed"),
        ("workspace: ${NO_SUCH_VARIABLE_HERE}/x", "NO_SUCH_VARIABLE_HERE"),
        *(
            (f"tracking: {{model_name: {name}}}", f"model_name: '{name}' is not allowed: a name without / : and @")
            for name in NAMES
        ),
    ],
)
def test_each_fault_is_a_sentence(config, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(config(text))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.rot", "x"], r"--data\.rot x; did you mean --data\.root\?"),
        (["--zzz"], r"--zzz; --help lists the options"),
        (["--compute.gpu"], r"--compute\.gpu: expected one argument"),
        (["--train.stage1.lr", "fast", "--seed=-1"], r"(?s)seed: '-1' is not allowed.*\n.*lr: 'fast' is not allowed: a number"),
        (["--examples.window", "round"], r"examples\.window: 'round' is not allowed: .*'square' or 'stretched'"),
        (["--train.stage1", "{lr: 3}"], r"--train\.stage1 is a section, and has settings below it"),
        (["--data.classes", '["a"'], r"data\.classes: Missing end delimiter"),
        (["--train.stage1.lr", "0.5", "--data", '{"root": "/x"}'], r"--data is a section"),
        (["--model.width", ""], r"model\.width: '' is not allowed"),
    ],
)
def test_each_fault_of_the_command_line_is_a_sentence(config, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(config(""), *arguments)


LIKE_A_FOLDER_OR_A_NAME: dict[type[cli.CommandSettings], tuple[str, ...]] = {
    Settings: ("workspace", "tracking.experiment", "tracking.model_name", "proposals.window_sizes"),
    EdgeSettings: ("workspace", "tracking.experiment"),
    PredictSettings: ("input", "output"),
    ExportSettings: ("to",),
    ServeSettings: ("host",),
}
"""Settings for which an empty text, as of a variable that is not set, would mean another folder, name or address."""


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in LIKE_A_FOLDER_OR_A_NAME.items() for name in names])
def test_a_text_that_must_name_something_may_not_be_empty(kind: type[cli.CommandSettings], name: str) -> None:
    config = next(chapter.config for chapter in CHAPTERS if chapter.kind is kind)
    with pytest.raises(UserError, match=rf"(^|\s){name}: .* is not allowed"):
        cli.load(str(CONFIGS / f"{config}.yaml"), kind, [f"--{name}", ""])


def test_each_setting_that_had_another_name_is_named(config) -> None:
    for old, new in {
        "model.deconv_start": "decoder_init",
        "train.stage1.lr_factor": "gamma",
        "train.stage1.stop_after": "early_stopping_patience",
        "segment.fcn_share": "fcn_weight",
        "proposals.spread_strength": "soft_nms_strength",
        "proposals.spread_power": "soft_nms_power",
        "proposals.spread_first": "soft_nms_first",
    }.items():
        *sections, key = old.split(".")
        raw: dict[str, Any] = {key: 1}
        for section in reversed(sections):
            raw = {section: raw}
        with pytest.raises(UserError, match=rf"{old} .* is called {'.'.join([*sections, new])} now"):
            load(config(yaml.safe_dump(raw)))


@pytest.mark.parametrize(
    "arguments", [["--seed", "http://anne:" + "hush" * 30 + "@host/x"], ["--wieghts", "https://anne:hush/hush@host/x"]]
)
def test_a_message_that_is_cut_shows_no_part_of_a_password(config, arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"^(seed|unknown): .*//host") as refused:
        load(config(""), *arguments)
    assert "hush" not in str(refused.value)


def test_the_command_line_wins_wherever_config_stands(config) -> None:
    assert parser("x").parse_settings(["--seed", "7", "--config", config("seed: 1")])[0].seed == 7


def test_a_missing_file_says_where_the_configs_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; did you mean .*quickstart\.yaml"):
        load(str(tmp_path / "quickstart.yaml"))


def test_variables_are_filled_in(config, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "data: {root: '${SOME_FOLDER:-/default}/voc'}"
    assert load(config(text)).data.root == "/default/voc"
    monkeypatch.setenv("SOME_FOLDER", "/mine")
    assert load(config(text)).data.root == "/mine/voc"


def test_a_comment_may_name_a_variable_that_is_not_set(config) -> None:
    text = (
        "# url: ${NO_SUCH_VARIABLE_HERE}\nworkspace: ${SOME_WORKSPACE:-/default}\nseed: 1\n   # seed: ${NO_SUCH_VARIABLE_HERE}\n"
    )
    assert (load(config(text)).workspace, load(config(text)).seed) == ("/default", 1)


def test_a_default_also_stands_for_an_empty_variable(config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY", "")
    assert load(config("data: {root: '${EMPTY:-/default}'}")).data.root == "/default"
    assert load(config("data: {root: '${EMPTY}'}")).data.root is None
    assert load(config("data: {root: '${EMPTY:-}'}")).data.root is None


@pytest.mark.parametrize("name", ["data.root", "model.vgg16", "init.from", "model.fcn_width", "train.stage1.max_steps"])
def test_empty_text_means_none_in_yaml_as_on_the_command_line(config, name: str) -> None:
    text = '""'
    for part in reversed(name.split(".")):
        text = f"{{{part}: {text}}}"
    assert load(config(text)) == load(config(""), f"--{name}", "") == load(config(""))


def test_empty_text_stays_where_it_is_a_value_and_names_no_class() -> None:
    given = ["--from", "masks", "--images", "/a", "--annotations", "/b", "--to", "/c"]
    config = str(CONFIGS / "import_data.yaml")
    assert cli.load(config, ImportSettings, [*given, "--mask_suffix", "", "--classes", ""]).classes == ()
    with pytest.raises(UserError, match=r"data\.classes: .* is not allowed: needs between 2 and 255 names"):
        load(str(CONFIGS / "quickstart.yaml"), "--data.classes", "")


def test_a_submitted_job_must_not_write_into_rays_copy(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runtime_resources" / "working_dir_files"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"workspace: 'runs/x' is not allowed: it is relative.*absolute path"):
        load(config("workspace: runs/x"))
    assert load(config("workspace: s3://bucket/x")).workspace == "s3://bucket/x"


def test_settings_survive_their_own_dump(config, tmp_path: Path) -> None:
    settings = load(config("init: {from: /m}\nseed: 3"))
    assert load(config(yaml.safe_dump(as_dict(settings)))) == settings


def _another(value: Any) -> Any:
    """A value of the same type as `value` that is not `value`."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 or 1
    return ("background", "other") if isinstance(value, tuple) else f"{value}x"


def _sections(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every section below `kind`, with its pydantic field."""
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield f"{prefix}{name}", field
            yield from _sections(field.annotation, f"{prefix}{name}.")


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.config)
def test_no_section_has_other_defaults_than_its_class(chapter: Chapter) -> None:
    """Otherwise setting one field of the section would reset its siblings to the defaults of the class."""
    for path, field in _sections(chapter.kind):
        assert field.get_default() == field.annotation(), path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_overriding_one_field_leaves_all_others_as_they_were(path: Path) -> None:
    """Of every config: with each field written out in turn at another value, its siblings keep theirs."""
    kind = next((chapter.kind for chapter in CHAPTERS if chapter.config == path.stem), Settings)
    raw = yaml.safe_load(path.read_text()) or {}
    missing = {name: "x" for name, field in kind.model_fields.items() if field.is_required() and name not in raw}
    if path.stem == "import_data":
        missing = {"check": "x"}  # it must be given something to do
    if path.stem == "export":
        missing |= {"format": "coco", "predictions": "x"}
    before = kind.model_validate({**raw, **missing}).model_dump(by_alias=True)
    tried = 0
    for name, _ in setting_fields(kind):
        if name == "data.root":  # a folder in place of the generated data set has other classes
            continue
        *sections, key = name.split(".")
        changed = copy.deepcopy({**raw, **missing})
        target, value = changed, before
        for section in sections:
            target, value = target.setdefault(section, {}), value[section]
        target[key] = _another(value[key])
        try:
            after = kind.model_validate(changed).model_dump(by_alias=True)
        except ValidationError:  # that value alone is not allowed
            continue
        for section in sections:
            after = after[section]
        assert {**after, key: None} == {**value, key: None}, name
        tried += 1
    assert tried > len(list(setting_fields(kind))) / 3


def test_fcn8s_keeps_its_defaults_beside_one_that_is_set(config) -> None:
    """The paper's recipe sets `epochs`, which once reset the learning rate to DeconvNet's."""
    fcn8s = load(str(CONFIGS / "voc2012.yaml")).train.fcn8s
    assert (fcn8s.bias_lr_factor, fcn8s.bn_batches) == (2.0, 0)
    for override in (["--train.fcn8s.epochs", "3"], ["--train.fcn8s.momentum", "0.5"]):
        fcn8s = load(config(""), *override).train.fcn8s
        assert (fcn8s.batch, fcn8s.lr, fcn8s.bias_lr_factor, fcn8s.bn_batches) == (20, 1e-4, 2.0, 0)


def test_edge_trainings_keep_their_experiment_beside_a_tracking_server(config) -> None:
    assert cli.load(config(""), EdgeSettings, ["--tracking.uri", "http://x"]).tracking.experiment == "edges"
