"""How a `paper.toml` begins, for tests that go on with notebooks of their own."""

HEAD = """\
[paper]
title = "A report"
authors = ["Ada", "Grace"]
year = 2019
reference = "Proc. of X"
url = "https://example.org"
document = "the report"
"""
