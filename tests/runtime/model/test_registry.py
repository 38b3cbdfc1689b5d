"""Which family a configuration belongs to, and what is refused."""

from __future__ import annotations

import pytest

from shoal.runtime.model.registry import FAMILIES, family_named, published, read_config

PUBLISHED = [(family.name, name) for family in FAMILIES for name in family.published]


@pytest.mark.parametrize(("family", "name"), PUBLISHED)
def test_a_published_configuration_reads_as_its_family(family, name):
    assert read_config(published(name)).architecture == family


def test_names_are_distinct_and_found():
    assert [family_named(family.name) for family in FAMILIES] == list(FAMILIES)
    assert len({name for _, name in PUBLISHED}) == len(PUBLISHED)
    with pytest.raises(KeyError):
        family_named("gpt2")
    with pytest.raises(KeyError):
        published("gpt2")


def test_without_an_architecture_the_first_family_of_the_model_type_is_meant():
    values = published("llada-8b")
    del values["architectures"]
    assert read_config(values).architecture == "llada"
    assert read_config({**values, "architectures": ["MyOwnName"]}).architecture == "llada"
