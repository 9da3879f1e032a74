"""The report's HTML: plain values in, one page out that needs nothing but itself.

Every text from outside (names, messages, ids) is hostile: it passes `text` on its way in.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from math import log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]

INPUTS_SHOWN = 5
LABELS = ("manipulated", "uncertain", "authentic")


@dataclass(frozen=True, slots=True)
class Picture:
    """A row of the gallery.

    Attributes:
        row: result columns.
        jpeg: thumbnail; None when the source is gone or not what was scanned.
        layer: PNG of the mask to lie over it; None when the mask is empty.
    """

    row: Row
    jpeg: bytes | None
    layer: bytes | None


@dataclass(frozen=True, slots=True)
class Content:
    """What a page shows.

    Attributes:
        run_id: of the run.
        inputs: URIs as they were given to the scan.
        made_by: columns that name the model, policy, engine, prompts, preprocessing.
        notes: what the reader must know before all else, one sentence each.
        statuses, codes, labels: images by status, by error code, by label.
        histogram: (3, bins) images by label, as in LABELS, and score from 0 to 1.
        thresholds: scores at which labels change.
        span: when the first and the last row was made; None without rows.
        rate: images a second of the last launch; None when it scanned nothing.
        pictures: the gallery, highest score first.
        refused: rows that failed or were skipped, the first of them.
    """

    run_id: str
    inputs: Sequence[str]
    made_by: Row
    notes: Sequence[str]
    statuses: Counter[str]
    codes: Counter[str]
    labels: Counter[str]
    histogram: NDArray[np.int64]
    thresholds: Sequence[float]
    span: tuple[datetime, datetime] | None
    rate: float | None
    pictures: Sequence[Picture]
    refused: Sequence[Row]


def text(value: object) -> str:
    """Any text as HTML; characters that do not print or turn the line are spelled out."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in str(value))
    return escape(shown)


def render(content: Content) -> str:
    """The whole page."""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{text(content.run_id)} · prompt-iml</title>
<style>{_STYLE}</style>
{_switches(content)}
{_header(content)}
<main>
{_notes(content.notes)}
{_overview(content)}
{_gallery(content)}
{_refused(content)}
</main>
<footer>prompt-iml · everything is drawn in the stored frame, before any EXIF rotation</footer>
</html>
"""


def _header(content: Content) -> str:
    inputs = "".join(f"<li>{text(name)}</li>" for name in content.inputs[:INPUTS_SHOWN])
    if len(content.inputs) > INPUTS_SHOWN:
        inputs += f"<li>and {len(content.inputs) - INPUTS_SHOWN:,} more</li>"
    facts = "".join(
        f"<div><dt>{text(name.replace('_', ' '))}</dt><dd>{text(value)}</dd></div>"
        for name, value in [*content.made_by.items(), *_when(content)]
        if value
    )
    return f"""<header>
<p class="brand">prompt-iml <span>scan report</span></p>
<h1>{text(content.run_id)}</h1>
<ul class="inputs">{inputs}</ul>
<dl class="facts">{facts}</dl>
</header>"""


def _when(content: Content) -> list[tuple[str, str]]:
    facts = []
    if content.span:
        first, last = content.span
        ended = f"{last:%H:%M:%S}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M:%S}"
        facts.append(("scanned", f"{first:%Y-%m-%d %H:%M:%S} to {ended} UTC"))
    if content.rate:
        facts.append(("rate", f"{content.rate:,.1f} images/s, start-up included"))
    return facts


def _notes(notes: Sequence[str]) -> str:
    return "\n".join(f'<p class="note" role="note">{text(note)}</p>' for note in notes)


def _overview(content: Content) -> str:
    total = sum(content.statuses.values())
    tiles = [("images", total)]
    tiles += [(name, content.labels[name]) for name in LABELS]
    tiles += [(name, content.statuses[name]) for name in ("failed", "skipped")]
    shown = "".join(
        f'<div class="tile {name}"><b>{count:,}</b><span>{name}</span></div>'
        for name, count in tiles
    )
    return f"""<section class="overview">
<div class="tiles">{shown}</div>
<div class="charts">{_histogram(content)}{_codes(content.codes)}</div>
</section>"""


def _histogram(content: Content) -> str:
    """Images by score; heights are logarithmic so that a few of a million can be seen."""
    counts = content.histogram.sum(axis=0)
    if not counts.any():
        return ""
    tallest = log10(1 + int(counts.max()))
    width = 100 / len(counts)
    bars = []
    for i, count in enumerate(counts.tolist()):
        height = 46 * log10(1 + count) / tallest
        label = LABELS[int(content.histogram[:, i].argmax())]
        low, high = i / len(counts), (i + 1) / len(counts)
        bars.append(
            f'<rect class="{label}" x="{i * width + 0.3:.2f}" y="{48 - height:.2f}"'
            f' width="{width - 0.6:.2f}" height="{height:.2f}">'
            f"<title>{low:.2f} to {high:.2f}: {count:,} images</title></rect>"
        )
    marks = "".join(
        f'<line x1="{100 * at:.2f}" x2="{100 * at:.2f}" y1="0" y2="48"/>'
        for at in content.thresholds
    )
    axis = "".join(f"<span>{tick / 4:g}</span>" for tick in range(5))
    return f"""<figure><figcaption>Images by score <i>logarithmic</i></figcaption>
<svg class="histogram" viewBox="0 0 100 48" preserveAspectRatio="none" role="img"
 aria-label="images by score">{"".join(bars)}{marks}</svg><div class="axis">{axis}</div></figure>"""


def _codes(codes: Counter[str]) -> str:
    if not codes:
        return ""
    most = max(codes.values())
    rows = "".join(
        f"<tr><th>{text(code)}</th><td>{count:,}</td>"
        f'<td><i style="width:{100 * count / most:.1f}%"></i></td></tr>'
        for code, count in codes.most_common()
    )
    return f"""<figure><figcaption>Not scored, by code</figcaption>
<table class="codes">{rows}</table></figure>"""


def _switches(content: Content) -> str:
    """Form controls that the style sheet reads; their labels are in the gallery's bar."""
    labels = ["all", *_labels_shown(content)]
    radios = "".join(
        f'<input type="radio" name="label" class="switch" id="only-{name}"'
        f"{' checked' if name == 'all' else ''}>"
        for name in labels
    )
    checks = "".join(
        f'<input type="checkbox" class="switch" id="{name}" checked>' for name in ("mask", "boxes")
    )
    return radios + checks


def _labels_shown(content: Content) -> list[str]:
    shown = {picture.row["label"] for picture in content.pictures}
    return [name for name in LABELS if name in shown]


def _gallery(content: Content) -> str:
    shown, scored = len(content.pictures), content.statuses["ok"]
    counts = Counter(picture.row["label"] for picture in content.pictures)
    tabs = "".join(
        f'<label for="only-{name}">{name} <b>{count:,}</b></label>'
        for name, count in [("all", shown), *((n, counts[n]) for n in _labels_shown(content))]
    )
    rest = f" {scored - shown:,} with lower scores are not shown." if scored > shown else ""
    cards = "\n".join(_card(i, picture) for i, picture in enumerate(content.pictures, start=1))
    return f"""<section>
<h2>Highest scores</h2>
<p class="hint">{shown:,} of {scored:,} scored images.{rest} Click a picture to see it bare.</p>
<div class="bar"><div class="tabs">{tabs}</div>
<div class="tabs"><label for="mask">mask</label><label for="boxes">boxes</label></div></div>
<div class="gallery">
{cards}
</div>
</section>"""


def _card(number: int, picture: Picture) -> str:
    row = picture.row
    name, place = _source(row)
    quality = f" · quality {row['jpeg_quality']}" if row["jpeg_quality"] else ""
    return f"""<article class="card {text(row["label"])}">
{_canvas(picture)}
<div class="line"><b class="score">{row["score"]:.3f}</b>
<span class="chip">{text(row["label"])}</span><span class="rank">{number}</span></div>
<div class="meter"><i style="width:{100 * row["score"]:.1f}%"></i></div>
<p class="name"><bdi>{text(name)}</bdi></p>
<p class="place"><bdi>{text(place)}</bdi></p>
<p class="place">{row["width"]} &times; {row["height"]}{quality}</p>
<p class="place">{_extent(row)}</p>
{_details(row)}
</article>"""


def _extent(row: Row) -> str:
    regions = len(row["regions"] or ())
    if not regions:
        return "no region marked"
    plural = "s" if regions > 1 else ""
    return f"{row['manipulated_fraction']:.1%} of the pixels in {regions} region{plural}"


def _source(row: Row) -> tuple[str, str]:
    """The name of the image itself, and where it lies."""
    if row["member"] is not None:
        return row["member"], row["uri"]
    place, _, name = row["uri"].rpartition("/")
    return name, place


def _canvas(picture: Picture) -> str:
    row = picture.row
    frame = f"{row['width']} {row['height']}"
    ratio = f'style="--ratio:{row["width"] / row["height"]:.5f}"'
    base = (
        f'<img alt="{text(_source(row)[0])}" src="{_uri("jpeg", picture.jpeg)}">'
        if picture.jpeg
        else '<span class="problem">the source is gone or has changed since the scan</span>'
    )
    mask = f'<img class="mask" alt="" src="{_uri("png", picture.layer)}">' if picture.layer else ""
    boxes = "".join(_box(region) for region in row["regions"] or ())
    return f"""<label class="picture"><input type="checkbox" aria-label="without mask">
<span class="frame" {ratio}>{base}{mask}
<svg class="boxes" viewBox="0 0 {frame}" preserveAspectRatio="none">{boxes}</svg></span></label>"""


def _box(region: Row) -> str:
    return (
        f'<rect x="{region["x"]}" y="{region["y"]}" width="{region["width"]}"'
        f' height="{region["height"]}"><title>mean {region["mean_score"]:.3f},'
        f" highest {region['max_score']:.3f}</title></rect>"
    )


def _details(row: Row) -> str:
    named = {
        "source": row["uri"] if row["member"] is None else f"{row['uri']}#{row['member']}",
        "content id": row["content_id"],
        "image id": row["image_id"],
        "sha256": row["sha256"],
        "type": f"{row['media_type']}, {row['size_bytes']:,} bytes",
        "EXIF orientation": row["exif_orientation"],
        "threshold": row["threshold"] and f"{row['threshold']:.3f}",
    }
    facts = "".join(
        f"<dt>{name}</dt><dd><bdi>{text(value)}</bdi></dd>"
        for name, value in named.items()
        if value is not None
    )
    regions = "".join(
        f"<tr><td>{r['x']}, {r['y']}</td><td>{r['width']} &times; {r['height']}</td>"
        f"<td>{r['area']:,}</td><td>{r['mean_score']:.3f}</td></tr>"
        for r in row["regions"] or ()
    )
    head = "<tr><th>x, y</th><th>size</th><th>pixels</th><th>mean</th></tr>"
    table = f"<table>{head}{regions}</table>" if regions else ""
    return f"<details><summary>Details</summary><dl>{facts}</dl>{table}</details>"


def _refused(content: Content) -> str:
    total = content.statuses["failed"] + content.statuses["skipped"]
    if not total:
        return ""
    rows = "".join(_refused_row(row) for row in content.refused)
    more = total - len(content.refused)
    hint = f'<p class="hint">{more:,} more are in the table of results.</p>'
    return f"""<section>
<h2>Not scored</h2>
{hint if more else ""}
<div class="scroll"><table class="refused">
<tr><th>status</th><th>stage</th><th>code</th><th>message</th><th>source</th></tr>
{rows}</table></div>
</section>"""


def _refused_row(row: Row) -> str:
    source = row["uri"] if row["member"] is None else f"{row['uri']}#{row['member']}"
    cells = (row["error_stage"] or "", row["error_code"] or "", row["error_message"] or "", source)
    return (
        f'<tr><td><span class="chip {text(row["status"])}">{text(row["status"])}</span></td>'
        + "".join(f"<td><bdi>{text(cell)}</bdi></td>" for cell in cells)
        + "</tr>"
    )


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{b64encode(data).decode()}"


_STYLE = """
:root { color-scheme: light dark; --page:#f7f7f5; --card:#fff; --ink:#1c1917; --soft:#6f6a65;
 --line:#e4e1dd; --well:#ecebe8; --manipulated:#d4006f; --uncertain:#b97700; --authentic:#0b8a66;
 --failed:#b3261e; --skipped:#78716c; --accent:#3a3ad6; --raised:#fff; --note:#fff4d6;
 --note-line:#e2b53e; }
@media (prefers-color-scheme: dark) { :root { --page:#131214; --card:#1d1c1f; --ink:#eeebe7;
 --soft:#a39d97; --line:#343136; --well:#29272b; --manipulated:#ff5cae; --uncertain:#e9a93a;
 --authentic:#3ecfa2; --failed:#ff8a80; --skipped:#a8a29e; --accent:#9c9cff; --raised:#454148;
 --note:#332a10; --note-line:#8f7424; } }
* { box-sizing:border-box; margin:0; }
body { background:var(--page); color:var(--ink); font:15px/1.5 system-ui,-apple-system,"Segoe UI",
 Roboto,"Helvetica Neue",Arial,sans-serif; }
header, main, footer { max-width:1480px; margin:0 auto; padding:0 28px; }
header { padding-top:28px; padding-bottom:20px; }
.brand { font-weight:650; letter-spacing:-.01em; }
.brand span { color:var(--soft); font-weight:400; }
h1 { font-size:30px; line-height:1.25; letter-spacing:-.02em; overflow-wrap:anywhere; }
h2 { font-size:20px; letter-spacing:-.01em; margin-top:40px; }
.inputs { list-style:none; padding:0; font:13px/1.6 ui-monospace,Menlo,Consolas,monospace;
 color:var(--soft); overflow-wrap:anywhere; }
.facts { display:flex; flex-wrap:wrap; gap:6px 32px; margin-top:14px; font-size:13px; }
.facts dt { color:var(--soft); } .facts dd { font-weight:550; }
.note { background:var(--note); border:1px solid var(--note-line); border-radius:10px;
 padding:12px 16px; margin-bottom:12px; font-weight:550; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(130px,1fr)); gap:12px; }
.tile, figure { background:var(--card); border:1px solid var(--line); border-radius:12px; }
.tile { padding:14px 18px; display:flex; flex-direction:column; }
.tile b { font-size:28px; line-height:1.2; font-weight:650; letter-spacing:-.02em;
 font-variant-numeric:tabular-nums; } .tile span { color:var(--soft); font-size:13px; }
.manipulated { --tone:var(--manipulated); } .uncertain { --tone:var(--uncertain); }
.authentic { --tone:var(--authentic); } .failed { --tone:var(--failed); }
.skipped { --tone:var(--skipped); }
.tile b { color:var(--tone,var(--ink)); }
.charts { display:grid; grid-template-columns:repeat(auto-fit,minmax(320px,1fr)); gap:12px;
 margin-top:12px; }
figure { padding:14px 18px; } figcaption { font-size:13px; color:var(--soft); margin-bottom:10px; }
figcaption i { opacity:.7; }
.histogram { display:block; width:100%; height:120px; border-bottom:1px solid var(--line); }
.histogram rect { fill:var(--tone); }
.histogram line { stroke:var(--ink); stroke-width:1; stroke-dasharray:3 3;
 vector-effect:non-scaling-stroke; }
.axis { display:flex; justify-content:space-between; font-size:12px; color:var(--soft); }
table { border-collapse:collapse; width:100%; font-size:13px; font-variant-numeric:tabular-nums; }
th { text-align:left; font-weight:550; } td, th { padding:4px 12px 4px 0; vertical-align:top; }
.codes th, .codes td:nth-child(2) { width:1%; white-space:nowrap; }
.codes td { text-align:right; }
.codes i { display:block; height:10px; margin-top:5px; border-radius:3px;
 background:var(--failed); }
.hint { color:var(--soft); font-size:13px; }
.switch { position:fixed; opacity:0; pointer-events:none; }
.bar { position:sticky; top:0; z-index:2; display:flex; flex-wrap:wrap; gap:8px;
 justify-content:space-between; padding:12px 0; background:var(--page); }
.tabs { display:flex; gap:4px; padding:3px; border-radius:10px; background:var(--well); }
.tabs label { padding:4px 12px; border-radius:8px; font-size:13px; cursor:pointer;
 color:var(--soft); user-select:none; } .tabs b { font-weight:550; opacity:.7; }
.gallery { display:grid; gap:18px; align-items:start;
 grid-template-columns:repeat(auto-fill,minmax(300px,1fr)); }
.card { background:var(--card); border:1px solid var(--line); border-radius:14px; overflow:hidden;
 padding-bottom:12px; } .card > :not(.picture) { margin-left:16px; margin-right:16px; }
.picture { display:flex; position:relative; height:250px; background:var(--well); cursor:pointer;
 align-items:center; justify-content:center; }
.picture input { position:absolute; opacity:0; }
.frame { position:relative; width:min(100%,250px*var(--ratio)); aspect-ratio:var(--ratio); }
.frame > * { position:absolute; inset:0; width:100%; height:100%; }
.mask, .boxes { transition:opacity .12s; }
.boxes rect { fill:none; stroke:#fff; stroke-width:1.5; vector-effect:non-scaling-stroke;
 filter:drop-shadow(0 0 1px #000); }
.picture input:checked ~ .frame :is(.mask,.boxes) { opacity:0; }
.picture input:focus-visible ~ .frame { outline:3px solid var(--accent); outline-offset:-3px; }
.problem { display:flex; align-items:center; justify-content:center; text-align:center;
 padding:16px; font-size:13px; color:var(--soft); overflow-wrap:anywhere; }
.line { display:flex; align-items:baseline; gap:10px; padding-top:12px; }
.score { font-size:20px; font-weight:650; font-variant-numeric:tabular-nums; }
.chip { font-size:12px; font-weight:550; padding:1px 9px; border-radius:99px; color:var(--tone);
 background:color-mix(in srgb,var(--tone) 14%,transparent); }
.rank { margin-left:auto; color:var(--soft); font-size:12px; } .rank::before { content:"#"; }
.meter { height:4px; border-radius:2px; background:var(--well); margin-top:8px; }
.meter i { display:block; height:100%; border-radius:2px; background:var(--tone); }
.name { margin-top:10px; font-weight:550; overflow-wrap:anywhere; }
.place { color:var(--soft); font-size:12px; overflow-wrap:anywhere; }
details { margin-top:8px; font-size:12px; } summary { color:var(--soft); cursor:pointer; }
details dl { display:grid; grid-template-columns:auto 1fr; gap:2px 12px; margin:6px 0; }
details dt { color:var(--soft); white-space:nowrap; }
details dd { overflow-wrap:anywhere; font-family:ui-monospace,Menlo,Consolas,monospace; }
details table { font-size:12px; }
.scroll { overflow-x:auto; margin-top:10px; background:var(--card); border:1px solid var(--line);
 border-radius:12px; padding:8px 18px; }
.refused tr + tr { border-top:1px solid var(--line); } .refused td { padding-top:7px;
 padding-bottom:7px; overflow-wrap:anywhere; min-width:70px; }
footer { color:var(--soft); font-size:12px; padding-top:36px; padding-bottom:36px; }
#mask:not(:checked) ~ main .mask, #boxes:not(:checked) ~ main .boxes { display:none; }
#only-manipulated:checked ~ main .card:not(.manipulated),
#only-uncertain:checked ~ main .card:not(.uncertain),
#only-authentic:checked ~ main .card:not(.authentic) { display:none; }
#only-all:checked ~ main [for=only-all], #only-manipulated:checked ~ main [for=only-manipulated],
#only-uncertain:checked ~ main [for=only-uncertain],
#only-authentic:checked ~ main [for=only-authentic], #mask:checked ~ main [for=mask],
#boxes:checked ~ main [for=boxes] { background:var(--raised); color:var(--ink);
 box-shadow:0 1px 2px #0002; }
#only-all:focus-visible ~ main [for=only-all], #mask:focus-visible ~ main [for=mask],
#only-manipulated:focus-visible ~ main [for=only-manipulated],
#only-uncertain:focus-visible ~ main [for=only-uncertain],
#only-authentic:focus-visible ~ main [for=only-authentic],
#boxes:focus-visible ~ main [for=boxes] { outline:2px solid var(--accent); }
@media print { .bar, details { display:none; } .card { break-inside:avoid; } }
"""
