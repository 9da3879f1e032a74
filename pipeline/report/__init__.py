"""Report of a run: one self-contained HTML file made from its table of results.

`survey.py` counts the rows and selects those to show, `reasons.py` derives why a picture is
uncertain and whether its mask is believed, `originals.py` reads the pictures again, `pictures.py`
makes thumbnails and masks, and `page.py` fills the Jinja2 template `page.html`, whose style sheet
is `page.css` and whose script is `page.js`. `report.py` is the command. For the terminal, `top.py`
prints the highest scores, and `runs.py` the runs of an output.
"""
