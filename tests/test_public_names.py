"""The public names: all there, and none of them costs anything before it is used."""

import subprocess
import sys

import pytest

import adder


def test_every_public_name_is_there():
    for name in adder.__all__:
        assert getattr(adder, name) is not None
    assert dir(adder) == sorted(adder.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Mambo'"):
        _ = adder.Mambo


def test_importing_the_package_does_not_import_torch():
    code = "import adder, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
