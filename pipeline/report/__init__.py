"""The report of a run: its table of results goes in, one self-contained HTML file comes out.

`report.py` reads the table and the images it shows, `pictures.py` draws thumbnails and masks, and
`page.py` fills the Jinja2 template `page.html`, whose style sheet is `page.css`.
"""
