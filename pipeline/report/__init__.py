"""Report of a run: one self-contained HTML file made from its table of results.

`report.py` reads the table and the images to show, `pictures.py` makes thumbnails and masks, and
`page.py` fills the Jinja2 template `page.html`, whose style sheet is `page.css`.
"""
