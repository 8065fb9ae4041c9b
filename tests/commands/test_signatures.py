"""What is read from the source is what Python says of the imported classes and functions."""

import inspect

import pytest

import lit_extract
from lit_extract import extract, predict_trainer
from lit_extract.commands.signatures import class_signature, datasets, public_classes, signature
from lit_extract.commands.spelling import PARTS, known_classes
from lit_extract.data.base import StimulusDataModule
from lit_extract.datasets import DATASETS
from lit_extract.modules.base import Predictor

CLASSES = [name for part in PARTS for name in known_classes(part)]


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_takes_what_its_constructor_takes(name):
    parameters = list(inspect.signature(getattr(lit_extract, name).__init__).parameters.values())[1:]
    found = class_signature(name).settings
    assert list(found) == [parameter.name for parameter in parameters]
    for parameter in parameters:
        setting = found[parameter.name]
        assert (setting.default is None) == (parameter.default is inspect.Parameter.empty), parameter.name
        assert len(setting.help) > 10, parameter.name
    assert class_signature(name).summary


@pytest.mark.parametrize(("module", "function"), [("jobs.extraction", extract), ("jobs.trainer", predict_trainer)])
def test_a_function_takes_what_its_signature_says(module, function):
    found = signature(f"lit_extract.{module}", function.__name__).settings
    assert list(found) == list(inspect.signature(function).parameters)


def test_all_public_classes_of_a_job_are_known():
    for part, base in (("model", Predictor), ("data", StimulusDataModule)):
        public = [getattr(lit_extract, name) for name in lit_extract.__all__]
        assert {one.__name__ for one in public if inspect.isclass(one) and issubclass(one, base)} == {
            *known_classes(part)
        }


def test_datasets_have_their_names():
    found = {(dataset.name, dataset.title, dataset.data_module) for dataset in datasets()}
    assert found == {(dataset.name, dataset.title, dataset.data_module) for dataset in DATASETS.values()}


def test_only_classes_with_the_endings_are_given():
    assert public_classes(("Captioner",)) == ["Captioner"]
    assert public_classes(("captions",)) == []


def test_a_name_that_a_module_does_not_have_is_a_defect():
    with pytest.raises(LookupError, match="has no Nothing"):
        signature("lit_extract.modules.vision", "Nothing")
