"""Review of a scan's findings: a local page on which people decide, picture by picture.

A run's rows enter, and its pictures from where they lie; a small Parquet file leaves for each
decision (`prompt_iml.pipeline.truth.reviews`). `queue.py` chooses and orders the pictures,
`session.py` holds what is known of them and saves decisions, `sources.py` reads their bytes and
`pictures.py` turns pictures and masks. `server.py` answers the page (`page.html`, `page.css`,
`page.js`), behind `guard.py`. `review.py` is the command.
"""
