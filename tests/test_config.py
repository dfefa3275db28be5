"""The study file: what is wrong with it is said in one line that names the key and the remedy."""

import re
import tomllib

import pytest

from kdstudy.config.load import load_study, preset_names
from kdstudy.config.messages import validate
from kdstudy.config.models import check_models
from kdstudy.config.smoke import smoke_study
from kdstudy.errors import UserError

PROBLEMS = {
    "search.trails=3": "search.trails is not a setting of [search]; did you mean search.trials?",
    "serach.trials=3": "serach is not a setting; did you mean search?",
    "search.trials=many": "search.trials = 'many': must be a whole number",
    "search.trials=3": "search.trials = 3 is too few: search.protected = 8 and the default point need at least 9",
    "train.batch_size=true": "train.batch_size = True: must be a whole number",
    "train.epochs=0": "train.epochs = 0: must be at least 1",
    "confirm.seeds=0": "confirm.seeds = 0: must be at least 1",
    "confirm.seeds=[5,3]": "confirm.seeds = [5, 3]: must grow from look to look, as in [3, 5, 10]",
    "confirm.seeds=[3,3]": "confirm.seeds = [3, 3]: must grow from look to look, as in [3, 5, 10]",
    "confirm.seeds=[1,3]": "confirm.seeds.0 = 1: must be at least 2",
    "confirm.seeds=[]": "confirm.seeds = []: must be a whole number or a list of at least 1",
    "confirm.gain=0": "confirm.gain = 0: must be greater than 0",
    "default.alpha=2": "default.alpha = 2: must be at most 1",
    "default.lr=5": "search.lr must include default.lr = 5.0",
    "views.mixup=0.9": "views.mixup = 0.9: must be at most 0.5",
    "views.flip=1": "views.flip = 1: must be true or false",
    "teacher.lr=[1e-3,-1]": "teacher.lr.1 = -1: must be greater than 0",
    "search.lr=3": "search.lr = 3: must be a table such as {log = [1e-4, 1e-2]}",
    "search.lr={log=[1,0.1]}": "search.lr: needs low < high, not [1.0, 0.1]",
    "search.lr={log=[1,2],linear=[1,2]}": "search.lr: takes exactly one of log",
    "search.lr={log=[1e-4]}": "search.lr.log needs two values, [low, high]",
    "search.alpha={linear=[-1,1]}": "search.alpha reaches -1.0: must be at least 0",
    "search.batch_size={linear=[16,64]}": "search.batch_size takes choice = [...] only",
    "search.optimizer={log=[1,2]}": "search.optimizer takes choice = [...] only",
    "search.warmup={choice=['a',0.1]}": "search.warmup reaches 'a': must be a number",
    "search.grace_period=1000": "search.grace_period = 1000 leaves no rung before 70 % of 300 epochs",
    "teacher.lr=[]": "teacher.lr = []: must be a number or a list of at least 1",
    "data.validation=0.9": "data.validation + data.test must be smaller than 1",
    "data=3": "data = 3: must be a table",
    "name=../x": "name = '../x': must consist of letters, digits",
    "epochs": "--set epochs is not of the form section.key=value, e.g. --set search.trials=40",
    "seed.x=1": "seed: must be a whole number",
    "default.loss=hintn": "default.loss = 'hintn': must be one of hinton, hard, mse, logit-std, dkd, dist, ttm, "
                          "features, token-hard, token-soft, or a",
    "search.loss={choice=['hinton','hrad']}": "search.loss reaches 'hrad': must be one of hinton, hard,",
    "search.loss={choice=['mse','dkd']}": "search.loss must include default.loss = hinton",
    "search.loss={choice=['hinton',3]}": "search.loss reaches 3: must be a string",
    "search.loss={linear=[0,1]}": "search.loss takes choice = [...] only",
    "search.dkd_beta={log=[1,8]}": "search.dkd_beta varies what no trial has: the loss is 'hinton', which has no "
                                   "dkd_beta; remove search.dkd_beta, or choose a loss that has it (dkd)",
    "default.loss=mse": "search.temperature varies what no trial has: the loss is 'mse'",
    "default.dkd_beta=-1": "default.dkd_beta = -1: must be at least 0",
    "search.temperature={log=[1e-3,8]}": "search.temperature reaches 0.001: must be at least 0.01",
}


@pytest.mark.parametrize("override", PROBLEMS)
def test_a_wrong_setting_is_named_with_its_remedy(override):
    with pytest.raises(UserError) as error:
        load_study("digits", (override,))
    assert PROBLEMS[override] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("asked", ["search.trials=1", "search.baseline_trials=2", "search.protected=40"])
@pytest.mark.parametrize("name", preset_names())
def test_both_remedies_for_too_few_trials_are_accepted(name, asked):
    with pytest.raises(UserError, match="is too few") as error:
        load_study(name, (asked,))
    points, small = re.search("; set (search.*) too, or, for a small study, (.*)", str(error.value)).groups()
    load_study(name, (asked, points.replace(" to at most ", "=")))
    study = load_study(name, (asked, *small.split()[1::2]))
    assert study.confirm.seeds == 3 and study.search.trials > study.search.protected


MODEL_PROBLEMS = {
    "student.model=vit_tinny_patch16_224": "student.model = 'vit_tinny_patch16_224' is not a timm model; did you mean "
                                           "'vit_tiny_patch16_224'?",
    "teacher.model=resnet152.a1h_in1": "teacher.model = 'resnet152.a1h_in1' is not a timm model; did you mean "
                                       "'resnet152.a1h_in1k'?",
    "student.image_size=10": "student.image_size = 10 is not a multiple of vit_tiny_patch16_224's patch size 4; use 8",
    "student.args.dept=3": "student.args",
    "student.args.num_classes=5": "student.args must not hold num_classes",
    "train.optimizer=adahessian": "train.optimizer = 'adahessian' cannot be used",
    "train.optimizer=adamww": "train.optimizer = 'adamww' is not a timm optimizer; did you mean 'adamw'?",
    'search.optimizer={choice=["adamw","lyon"]}': "search.optimizer = 'lyon' is not a timm optimizer; did you mean "
                                                  "'lion'?",
}


@pytest.mark.parametrize("override", MODEL_PROBLEMS)
def test_what_timm_cannot_do_is_found_before_anything_starts(override):
    config = load_study("digits", (override,))
    with pytest.raises(UserError) as error:
        check_models(config, classes=10, channels=1, image_size=8)
    assert str(error.value).startswith(MODEL_PROBLEMS[override]) and "\n" not in str(error.value)


@pytest.mark.parametrize(("study", "message"), {
    "digit": "'digit' is not a preset, a TOML file or a study folder; did you mean 'digits'?",
    "nowhere/study.toml": "nowhere/study.toml does not exist",
    ".": ". is a folder without study.toml",
}.items())
def test_a_study_that_is_not_there_is_said_to_be_missing(study, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="^" + message.replace(".", r"\.").replace("?", r"\?")):
        load_study(study)


def test_broken_toml_names_file_and_place(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[data\n")
    with pytest.raises(UserError, match=r"broken\.toml is not valid TOML: .*line 1"):
        load_study(str(path))


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid_survive_writing_and_shrink(name):
    config = load_study(name)
    assert validate(tomllib.loads(config.to_toml())) == config
    smoke = smoke_study(config)
    search = smoke.search
    trials = 3 if (config.data.image_size or 32) > 64 else 6
    counts = (search.trials, search.baseline_trials, search.protected, smoke.confirm.seeds)
    assert counts == (trials, trials, trials // 2, 2)
    assert smoke.train.epochs <= max(2, config.train.epochs / 5) and not smoke.student.pretrained
    check_models(config, classes=10, channels=3, image_size=config.data.image_size or 8)


def test_a_smoke_study_takes_few_images_where_they_are_large():
    assert load_study("cifar100", smoke=True).data.limit == 24 and load_study("cifar100", smoke=True).data.classes == 4
    assert load_study("cifar100-small", smoke=True).data.limit == 293
    assert load_study("digits", smoke=True).data.limit > 1077  # all of them
    named = ("data.classes=['a', 'b', 'c', 'd', 'e', 'f']",)
    assert smoke_study(load_study("cifar100", named)).data.classes == ("a", "b", "c", "d")


def test_a_smoke_study_of_settings_that_are_valid_is_valid():
    smoke_study(load_study("cifar100", ("search.batch_size={choice=[64, 128]}",)))
    smoke = smoke_study(load_study("cifar100-small", ("data.student_images=500", "data.unlabelled=1.0")))
    assert smoke.data.student_images == 0.5 and smoke.data.unlabelled == 1


def test_the_published_pairs_share_what_is_the_same():
    small, same, other = (load_study(name) for name in ("cifar100", "cifar100-vitb-vitt", "cifar100-vitb-resnet18"))
    assert same.teacher == other.teacher and small.student == same.student
    for name in ("seed", "data", "views", "train", "default", "search", "confirm"):
        assert getattr(small, name) == getattr(same, name) == getattr(other, name)
    assert (small.default.temperature, small.default.alpha, small.default.lr, small.train.epochs) == (4, 0.5, 3e-4, 10)


@pytest.mark.parametrize("given", [{}, {"model": "resnet18", "logits": "x"}, {"trained": ["a"], "logits": "x"}])
def test_a_teacher_has_one_origin(given):
    with pytest.raises(UserError, match=r"^teacher: needs exactly one of model"):
        validate({"name": "n", "teacher": given, "student": {"model": "resnet18"}})


def test_a_teacher_may_be_one_folder_or_several():
    one = validate({"name": "n", "teacher": {"trained": "a"}, "student": {"model": "resnet18"}})
    two = validate({"name": "n", "teacher": {"trained": ["a", "x/b"]}, "student": {"model": "resnet18"}})
    assert one.teacher.trained == ("a",) and two.teacher.title == "a + b" and two.teacher.is_given


def test_overrides_reach_the_settings(tmp_path):
    config = load_study("digits", ("search.trials=40", "teacher.lr=[1e-3, 1e-2]", "search.lr.log=[1e-4, 1e-1]",
                                   "about=a b", "views.count=7"))
    assert config.search.trials == 40 and config.teacher.learning_rates == (1e-3, 1e-2)
    assert config.search.lr.log == (1e-4, 1e-1) and config.about == "a b" and config.views.count == 7
    (tmp_path / "mine.toml").write_text(config.to_toml())
    assert load_study(str(tmp_path / "mine.toml")) == config


def test_the_seeds_of_the_confirmation_are_a_number_or_a_plan_of_looks(tmp_path):
    assert load_study("digits").confirm.looks == (5,) and load_study("digits", ("confirm.seeds=7",)).confirm.seeds == 7
    config = load_study("digits", ("confirm.seeds=[3,5,10]", "confirm.gain=2"))
    assert config.confirm.looks == (3, 5, 10) and config.confirm.most_seeds == 10 and config.confirm.gain == 2
    (tmp_path / "mine.toml").write_text(config.to_toml())
    assert load_study(str(tmp_path / "mine.toml")) == config and smoke_study(config).confirm.looks == (2,)
    assert "gain" not in load_study("digits").to_values()["confirm"]  # study files are as they were


@pytest.mark.parametrize(("overrides", "rungs"), [
    ((), [40, 120]),  # ceil(300 / 9) = 34, up to the reports' grid; 360 is beyond 70 % of 300
    (("train.warmup=0.2",), [70, 210]),  # the first rung lies after the warm-up
    (("search.grace_period=10",), [10, 30, 90]),
    (("search.reduction_factor=2",), [40, 80, 160]),
    (("search.early_stopping=false",), []),
    (("train.epochs=10", "search.report_every=1"), [2, 6]),
])
def test_rungs_lie_after_the_warm_up_and_before_the_end(overrides, rungs):
    assert load_study("digits", overrides).rungs == rungs


def test_the_baseline_searches_what_both_arms_share():
    config = load_study("digits", ("search.weight_decay={log=[0.01, 0.5]}",))
    assert set(config.space("baseline")) == {"lr", "weight_decay"}
    assert set(config.space("distill")) == {"temperature", "alpha", "lr", "weight_decay"}
    assert config.default_parameters("baseline") == {"lr": 1e-3, "weight_decay": 0.05}


@pytest.mark.parametrize("nested", ["x = {levels} = 1", "[student.args]\nx{levels} = 1"])
@pytest.mark.parametrize("levels", [60, 990, 3000])
def test_a_file_that_is_nested_too_deep_is_refused_in_one_line(nested, levels, tmp_path):
    deep = nested.replace("x = {levels}", "x" + ".a" * levels).replace("{levels}", ".a" * levels)
    (tmp_path / "deep.toml").write_text(deep + "\n")
    with pytest.raises(UserError, match="nested more than 50 deep"):
        load_study(str(tmp_path / "deep.toml"))
    with pytest.raises(UserError, match="nested more than 50 deep"):
        load_study("digits", ("student.args." + "a." * levels + "b=1",))


@pytest.mark.parametrize("searched, named", [
    ([], "lr"), (["warmup"], "lr and warmup"), (["warmup", "ema"], "lr, warmup and ema"),
    (["warmup", "ema", "label_smoothing"], "lr and 3 more"),
])
def test_the_row_that_tunes_what_both_arms_share_has_a_short_name(searched, named):
    config = load_study("digits", [f"search.{name}={{linear = [0, 0.5]}}" for name in searched])
    assert config.shared_parameters == ["lr", *searched] and config.shared_named == named
