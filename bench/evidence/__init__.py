"""The evidence that it learns: `python -m bench.evidence`, or `make evidence`.

`plan` says what is measured and on which problems, `folder` keeps what was, part by part; `serving` is one server with
its client, `parts` what is done on it, `controls` the rival ways to a second try, `trained` the rival ways to train;
`checks` judges every answer anew, `figures` counts, `page` and `plots` show. Models are asked through the API alone.
"""
