"""The report's page: markup and style in one template, no script, no outside resource."""

__all__ = ["PAGE"]

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { --ink: #1f2933; --soft: #616e7c; --line: #e4e7eb; --paper: #ffffff; --back: #f5f7fa; --accent: #2a6f97; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 1.25rem; margin: 0; }
h3 { font-size: 0.95rem; margin: 0 0 0.4rem; color: var(--soft); font-weight: 600; }
nav { margin: 0.75rem 0 1.5rem; display: flex; flex-wrap: wrap; gap: 0.4rem; }
nav a { color: var(--accent); text-decoration: none; border: 1px solid var(--line); background: var(--paper);
        border-radius: 999px; padding: 0.1rem 0.7rem; font-size: 0.85rem; }
section, .card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1.25rem; margin: 0 0 1.25rem; }
header.stage { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0.4rem 0.9rem; margin-bottom: 0.75rem; }
.headline { font-weight: 500; } .meta { color: var(--soft); font-size: 0.85rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); gap: 1.25rem; margin-top: 1rem; }
figure { margin: 0; min-width: 0; } figure svg { width: 100%; height: auto; } figure.wide { grid-column: 1 / -1; }
a { color: var(--accent); }
.scroll { overflow: auto; max-height: 26rem; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; min-width: 5rem; } td:first-child { overflow-wrap: normal; min-width: 10.5rem; }
th { position: sticky; top: 0; background: var(--back); font-weight: 600; }
pre { margin: 0; padding: 0.75rem; overflow: auto; max-height: 26rem; background: var(--back); border-radius: 6px;
      font-size: 0.8rem; white-space: pre-wrap; }
.counts { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; color: var(--soft); font-size: 0.85rem; }
.counts b { color: var(--ink); font-weight: 600; }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
{% for line in summary %}<div class="meta">{{ line }}</div>{% endfor %}
<nav>{% for s in sections %}<a href="#{{ s.anchor }}">{{ s.name }}</a>{% endfor %}</nav>
<div class="card scroll" style="padding:0"><table>
<tr><th>stage</th><th>headline</th><th>time</th><th>folder</th></tr>
{% for s in sections %}
<tr><td><a href="#{{ s.anchor }}">{{ s.stage }}</a></td><td>{{ s.headline }}</td><td>{{ s.seconds }}</td><td>{{ s.folder }}</td></tr>
{% endfor %}
</table></div>
{% for s in sections %}
<section id="{{ s.anchor }}">
<header class="stage"><h2>{{ s.stage }}</h2><span class="headline">{{ s.headline }}</span>
<span class="meta">{{ s.seconds }} · {{ s.folder }} · {{ s.digest }}</span></header>
<div class="counts">{% for name, value in s.counts %}<span>{{ name }} <b>{{ value }}</b></span>{% endfor %}</div>
<div class="figures">
{% for f in s.figures %}
<figure{% if not f.svg %} class="wide"{% endif %}><h3>{{ f.title }}</h3>
{% if f.svg %}{{ f.svg | safe }}{% elif f.rows is defined %}
<div class="scroll"><table><tr>{% for c in f.columns %}<th>{{ c }}</th>{% endfor %}</tr>
{% for row in f.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table></div>
{% else %}<pre>{{ f.text }}</pre>{% endif %}
</figure>
{% endfor %}
</div>
</section>
{% endfor %}
</main>
</body>
</html>
"""
