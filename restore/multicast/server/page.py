"""The page that shows a room: one file, nothing from elsewhere, and nothing that clients say is markup in it."""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from restore.multicast.session import STATUS

_STYLE: Final = """
:root { color-scheme: light dark; --dim: #6b7280; --line: #8884; --bad: #c0262d; --slow: #a16207; --good: #15803d; }
@media (prefers-color-scheme: dark) { :root { --bad: #f87171; --slow: #facc15; --good: #4ade80; --dim: #9ca3af; } }
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; }
h1 { font-size: 1.2rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .3rem 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; margin-top: 1rem; font-variant-numeric: tabular-nums; }
th { color: var(--dim); font-weight: normal; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); }
td { max-width: 22rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.number { text-align: right; }
progress { width: 4rem; margin-right: .4rem; accent-color: var(--good); }
.silent, .failed, #lost { color: var(--bad); }
.straggler { color: var(--slow); }
.done { color: var(--good); }
.left, .waiting { color: var(--dim); }
"""

_SCRIPT: Final = """
'use strict';
const byId = id => document.getElementById(id);
const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];
function size(bytes) {
  let power = 0;
  while (power < units.length - 1 && Math.round(bytes / 1024 ** power * 10) / 10 >= 1024) power++;
  return (power ? (bytes / 1024 ** power).toFixed(1) : bytes) + ' ' + units[power];
}
function time(seconds) {
  const two = number => String(number).padStart(2, '0');
  const hours = Math.floor(seconds / 3600), minutes = Math.floor(seconds / 60) % 60;
  return (hours ? hours + ':' + two(minutes) : minutes) + ':' + two(seconds % 60);
}
function cell(row, text, number) {
  const made = row.insertCell();
  made.textContent = text;
  made.title = text;
  if (number) made.className = 'number';
  return made;
}
function share(row, percent) {
  const made = cell(row, ' ' + Math.floor(percent) + ' %', true);
  const bar = document.createElement('progress');
  bar.max = 100;
  bar.value = percent;
  made.prepend(bar);
}
function show(view) {
  document.title = view.image + ' - asr server';
  byId('image').textContent = view.image + ', ' + size(view.size);
  byId('stream').textContent = view.stream + '; to ' + view.group + ' port ' + view.port;
  byId('clients').textContent = view.summary;
  const body = document.createElement('tbody');
  for (const each of view.rows) {
    const row = body.insertRow();
    row.className = each.state.replace(' ', '-') + (each.straggler && each.state !== 'silent' ? ' straggler' : '');
    cell(row, each.name);
    cell(row, each.address);
    cell(row, each.targets.join(', '));
    cell(row, each.state);
    share(row, each.received);
    share(row, each.written);
    share(row, each.verified);
    cell(row, each.here ? size(each.rate) + '/s' : '', true);
    cell(row, (each.loss * 100).toFixed(1) + ' %', true);
    cell(row, each.left === null ? '' : time(each.left), true);
  }
  byId('rows').replaceChildren(...body.rows);
}
async function look() {
  try {
    const answer = await fetch('STATUS', {cache: 'no-store', signal: AbortSignal.timeout(5000)});
    if (!answer.ok) throw new Error(answer.status);
    show(await answer.json());
    byId('lost').textContent = '';
  } catch (error) {
    byId('lost').textContent = 'The server does not answer: this is how it was';
  }
  setTimeout(look, 1000);
}
look();
""".replace("STATUS", STATUS)

_PAGE: Final = f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>asr server</title>
<style>{_STYLE}</style>
<h1 id="image">asr server</h1>
<p id="stream"></p>
<p id="clients"></p>
<p id="lost" role="status"></p>
<noscript><p>This page needs JavaScript; {STATUS} has the same without.</p></noscript>
<table>
<thead><tr><th>Client<th>Address<th>Targets<th>State<th class="number">Received<th class="number">Written
<th class="number">Verified<th class="number">Rate<th class="number">Loss<th class="number">Left</thead>
<tbody id="rows"></tbody>
</table>
<script>{_SCRIPT}</script>
</html>
"""


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PAGE: Final = _PAGE.encode()
HEADERS: Final = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_digest(_SCRIPT)}; style-src {_digest(_STYLE)}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
