"""The version of tf_dpdiff; setup.cfg and the privacy statement read it here."""

__version__ = '0.1.0'
