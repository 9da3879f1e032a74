"""Find manipulated regions in photographs, over millions of images.

The package has three parts, which the checkout keeps at its top level: `engine` (decoded pixels
to a finding), `pipeline` (files to a Parquet table) and `cluster` (training and fleets). The links
beside this file give them their import names, so that every tool finds `prompt_iml.engine` as
plain files: Python, mypy, editors, wheels, and workers that get the checkout as their working
directory.
"""
